//! One request queue on its worker thread: takes chains, runs them on the engine, answers them.
//!
//! ```text
//!            ┌───────────────── turn, until nothing moves ────────────────┐
//! kick ───►  │ take chains ─► engine.submit … kick ─► complete ─► used ring │ ─► sleep
//! event ──►  │      ▲                                     │               │   (notifications
//!            │      └── spin, if events came fast lately ─┘               │    and event armed)
//!            └─────────────────────────────────────────────────────────────┘
//! ```
//! A disk at its limits takes no chains: they stay in the ring, and a timer wakes the queue when
//! the next one may start.
//!
//! During a turn the driver is asked not to notify and the engine not to signal, so that a busy
//! queue costs one system call for many requests.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::timerfd::TimerFd;

use super::cache::CacheMode;
use super::chain::{Chain, ChainError, Segment};
use super::engine::{Completion, Engine};
use super::request::{self, Action, Kind, Limits, Operation};
use super::shared::Shared;
use super::spin::Spin;
use crate::devices::virtio::worker::Handler;
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, Interrupt};
use crate::memory::GuestMemory;
use std::os::fd::RawFd;

const KICK: u32 = 0;
const COMPLETION: u32 = 1;
const TIMER: u32 = 2;
/// A turn ends after this long even if the driver keeps the queue full, so that pause, reset and
/// the rest get their turn too.
const LONGEST_TURN: Duration = Duration::from_millis(1);
/// Shortest sleep of a disk at its limits: what may start meanwhile starts in one turn.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// Serves queue number `index` of a block device.
pub(super) struct QueueHandler {
    shared: Arc<Shared>,
    index: u16,
    engine: Box<dyn Engine>,
    slots: Box<[InFlight]>,
    free: Vec<u16>,
    chain: Chain,
    /// Segment lists of ended operations, for the next ones.
    spare: Vec<Vec<Segment>>,
    /// Heads of chains that the host failed and that are tried again at the next activation, in
    /// the order of their failure.
    kept: Vec<u16>,
    spin: Spin,
    /// Ends the wait for the disk's limits.
    timer: TimerFd,
    active: Option<Active>,
}

#[derive(Clone)]
struct InFlight {
    head: u16,
    status: GuestAddress,
    operation: Operation,
    /// The operation is a write that is done and is now being flushed (write-through).
    flushing: bool,
    started: Instant,
}

struct Active {
    memory: Arc<GuestMemory>,
    queue: ActiveQueue,
    interrupt: Arc<dyn Interrupt>,
    cache: CacheMode,
    taking: Taking,
    /// How long the disk's limits let the next chain wait, as of the last look; `None`: no longer.
    held: Option<Duration>,
    /// Something was put on the used ring since the last look at whether to interrupt.
    answered: bool,
}

/// Whether chains are taken off the available ring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taking {
    Yes,
    /// [`QueueHandler::quiesce`] was called.
    Quiesced,
    /// The host failed a request, and the machine was asked to pause.
    Failed,
    /// The rings or a chain are broken: until a reset.
    Broken,
}

impl QueueHandler {
    /// A handler for at most `slots` requests at a time.
    ///
    /// # Errors
    /// The host refuses a timer.
    pub fn new(
        shared: Arc<Shared>,
        index: u16,
        engine: Box<dyn Engine>,
        slots: u16,
    ) -> io::Result<Self> {
        let unused = InFlight {
            head: 0,
            status: GuestAddress(0),
            operation: Operation {
                kind: Kind::Flush,
                offset: 0,
                len: 0,
            },
            flushing: false,
            started: Instant::now(),
        };
        Ok(Self {
            shared,
            index,
            engine,
            slots: vec![unused; usize::from(slots)].into(),
            free: (0..slots).rev().collect(),
            chain: Chain::default(),
            spare: Vec::new(),
            kept: Vec::new(),
            spin: Spin::default(),
            timer: TimerFd::new()?,
            active: None,
        })
    }

    /// Heads of chains that wait for the next activation.
    pub fn kept(&self) -> &[u16] {
        &self.kept
    }

    /// Sets what [`Self::kept`] said before.
    pub fn keep(&mut self, heads: Vec<u16>) {
        self.kept = heads;
    }

    /// Takes no more chains and waits for those in flight; returns how many still are at the
    /// deadline. Ends with [`Self::unquiesce`] or with the next activation.
    pub fn quiesce(&mut self, deadline: Instant) -> usize {
        let Some(mut active) = self.active.take() else {
            return 0;
        };
        if active.taking == Taking::Yes {
            active.taking = Taking::Quiesced;
        }
        self.finish(&mut active, Some(deadline));
        self.active = Some(active);
        // What is left ends by the engine's event.
        self.turn();
        self.in_flight()
    }

    /// Goes on after [`Self::quiesce`].
    pub fn unquiesce(&mut self) {
        if let Some(active) = &mut self.active
            && active.taking == Taking::Quiesced
        {
            active.taking = Taking::Yes;
        }
        self.turn();
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Does all that can be done now.
    pub fn turn(&mut self) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        self.engine.disarm();
        let started = Instant::now();
        let mut now = started;
        loop {
            let mut moved = self.take(&mut active, now);
            self.engine.kick();
            moved |= self.complete(&mut active);
            self.notify(&mut active);
            now = Instant::now();
            if now - started > LONGEST_TURN {
                self.engine.arm();
                let _ = active.queue.kick.write(1);
                break;
            }
            if !moved && !self.spin(&active, now) && self.may_sleep(&mut active) {
                break;
            }
        }
        self.active = Some(active);
        self.spin.sleeps();
    }

    /// Takes what waits in the available ring, as far as there are slots and the disk's limits
    /// allow.
    fn take(&mut self, active: &mut Active, now: Instant) -> bool {
        let mut taken = false;
        let memory = Arc::clone(&active.memory);
        active.held = None;
        while active.taking == Taking::Yes && !self.free.is_empty() {
            active.held = self.shared.throttle.wait(now);
            let queue = &mut active.queue.queue;
            if active.held.is_some() {
                let _ = queue.disable_notification(&*memory);
                break;
            }
            let head = match queue.iter(&*memory) {
                Ok(mut chains) => chains.next().map(|chain| chain.head_index()),
                Err(error) => {
                    self.broken(active, &error);
                    break;
                }
            };
            let Some(head) = head else { break };
            if !taken {
                let _ = queue.disable_notification(&*memory);
            }
            taken = true;
            if let Err(error) = self.serve(active, &memory, head, now) {
                // Left in the ring, so that whoever activates the queue again meets it again.
                active.queue.queue.go_to_previous_position();
                self.broken(active, &error);
            }
        }
        taken
    }

    fn serve(
        &mut self,
        active: &mut Active,
        memory: &GuestMemory,
        head: u16,
        now: Instant,
    ) -> Result<(), ChainError> {
        self.chain.walk(memory, &active.queue.queue, head)?;
        let limits = Limits {
            capacity_sectors: self.shared.capacity_sectors.load(Ordering::Acquire),
            read_only: self.shared.read_only,
        };
        let request = request::parse(memory, &mut self.chain, limits)?;
        match request.action {
            Action::Submit(operation) if !is_nothing(operation, limits) => {
                self.submit(active, head, request.status, operation, now);
            }
            Action::Submit(operation) => {
                self.shared.metrics[usize::from(self.index)].completed(
                    operation.kind,
                    0,
                    Duration::ZERO,
                );
                self.answer(active, head, request.status, VIRTIO_BLK_S_OK, 0);
            }
            Action::Reply(status) => {
                self.shared.metrics[usize::from(self.index)].other();
                self.answer(active, head, request.status, u32::from(status), 0);
            }
            Action::GetId => {
                self.shared.metrics[usize::from(self.index)].other();
                let written = self.write_serial(memory);
                self.answer(active, head, request.status, VIRTIO_BLK_S_OK, written);
            }
        }
        Ok(())
    }

    fn submit(
        &mut self,
        active: &Active,
        head: u16,
        status: GuestAddress,
        operation: Operation,
        now: Instant,
    ) {
        self.shared.throttle.charge(operation, now);
        let slot = self.free.pop().expect("the caller has looked");
        self.slots[usize::from(slot)] = InFlight {
            head,
            status,
            operation,
            flushing: false,
            started: now,
        };
        let empty = self.spare.pop().unwrap_or_default();
        let data = match operation.kind {
            Kind::Read => std::mem::replace(&mut self.chain.writable, empty),
            Kind::Write => std::mem::replace(&mut self.chain.readable, empty),
            _ => empty,
        };
        self.engine.submit(slot, operation, data, &active.memory);
    }

    fn write_serial(&self, memory: &GuestMemory) -> u64 {
        let mut rest: &[u8] = &self.shared.serial;
        for segment in &self.chain.writable {
            let count = rest.len().min(segment.len as usize);
            let _ = memory.write_slice(&rest[..count], segment.address);
            rest = &rest[count..];
        }
        (self.shared.serial.len() - rest.len()) as u64
    }

    /// Answers what the engine has done.
    fn complete(&mut self, active: &mut Active) -> bool {
        let mut completed = false;
        let mut now = None;
        while let Some(Completion { slot, data, result }) = self.engine.complete(&active.memory) {
            completed = true;
            let place = &mut self.slots[usize::from(slot)];
            let InFlight {
                head,
                status,
                operation,
                ..
            } = *place;
            if result.is_ok() && !place.flushing && self.shared.needs_flush(active.cache, operation)
            {
                place.flushing = true;
                let flush = Operation {
                    kind: Kind::Flush,
                    offset: 0,
                    len: 0,
                };
                self.engine.submit(slot, flush, data, &active.memory);
                self.engine.kick();
                continue;
            }
            let started = place.started;
            self.free.push(slot);
            self.spare.push(data);
            let metrics = &self.shared.metrics[usize::from(self.index)];
            match result {
                Ok(()) => {
                    let now = *now.get_or_insert_with(Instant::now);
                    let latency = now.saturating_duration_since(started);
                    metrics.completed(operation.kind, operation.len, latency);
                    let written = match operation.kind {
                        Kind::Read => operation.len,
                        _ => 0,
                    };
                    self.answer(active, head, status, VIRTIO_BLK_S_OK, written);
                }
                Err(error) => {
                    metrics.failed(operation.kind);
                    if self.shared.pauses_on(operation, &error) {
                        if active.taking != Taking::Broken {
                            active.taking = Taking::Failed;
                        }
                        self.kept.push(head);
                    } else {
                        self.answer(active, head, status, VIRTIO_BLK_S_IOERR, 0);
                    }
                }
            }
        }
        completed
    }

    fn answer(
        &mut self,
        active: &mut Active,
        head: u16,
        status: GuestAddress,
        value: u32,
        written: u64,
    ) {
        let used = u32::try_from(written + 1).unwrap_or(u32::MAX);
        let memory = &*active.memory;
        let result = memory
            .write_obj(value as u8, status)
            .map_err(virtio_queue::Error::GuestMemory)
            .and_then(|()| active.queue.queue.add_used(memory, head, used));
        match result {
            Ok(()) => active.answered = true,
            Err(error) => self.broken(active, &error),
        }
    }

    /// Interrupts the driver if it wants to know.
    fn notify(&mut self, active: &mut Active) {
        if !std::mem::take(&mut active.answered) {
            return;
        }
        let memory = &*active.memory;
        let queue = &mut active.queue.queue;
        let wanted = if queue.event_idx_enabled() {
            queue.needs_notification(memory)
        } else {
            wants_interrupts(queue, memory)
        };
        match wanted {
            Ok(true) => active.interrupt.signal_queue(self.index),
            Ok(false) => {}
            Err(error) => self.broken(active, &error),
        }
    }

    fn broken(&self, active: &mut Active, error: &dyn std::error::Error) {
        if active.taking != Taking::Broken {
            active.taking = Taking::Broken;
            tracing::warn!(
                device = self.shared.id,
                queue = self.index,
                "the driver's ring is broken, the device needs a reset: {error}"
            );
            active.interrupt.needs_reset();
        }
    }

    /// Whether a chain that comes would be taken.
    fn looks(&self, active: &Active) -> bool {
        active.taking == Taking::Yes && !self.free.is_empty() && active.held.is_none()
    }

    /// Waits a short while, without sleeping, for a chain or a completion. Returns whether one
    /// has come.
    fn spin(&mut self, active: &Active, now: Instant) -> bool {
        let memory = &*active.memory;
        let queue = &active.queue.queue;
        let looks = self.looks(active);
        let engine = &mut self.engine;
        self.spin.until(now, || {
            engine.is_ready()
                || (looks
                    && queue
                        .avail_idx(memory, Ordering::Acquire)
                        .is_ok_and(|index| index.0 != queue.next_avail()))
        })
    }

    /// Asks for notifications and events; false if something has come before they were on.
    fn may_sleep(&mut self, active: &mut Active) -> bool {
        if self.looks(active) {
            let memory = &*active.memory;
            match active.queue.queue.enable_notification(memory) {
                Ok(false) => {}
                Ok(true) => return false,
                Err(error) => self.broken(active, &error),
            }
        }
        self.engine.arm();
        if self.engine.is_ready() {
            self.engine.disarm();
            return false;
        }
        if let Some(wait) = active.held {
            let set = self.timer.reset(wait.max(SHORTEST_WAIT), None);
            set.expect("a timer takes any time but none");
        }
        true
    }

    /// Waits for what is in flight, at most until `deadline`, and answers it.
    fn finish(&mut self, active: &mut Active, deadline: Option<Instant>) {
        loop {
            self.engine.kick();
            self.complete(active);
            if self.in_flight() == 0 {
                break;
            }
            self.engine.arm();
            let waits = self.engine.is_ready() || wait(self.engine.event(), deadline);
            self.engine.disarm();
            self.engine.drain();
            if !waits {
                break;
            }
        }
        self.notify(active);
    }
}

/// Waits until `event` is readable; false if the deadline comes first.
fn wait(event: RawFd, deadline: Option<Instant>) -> bool {
    let mut poll = libc::pollfd {
        fd: event,
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        let timeout_ms = match deadline {
            None => -1,
            Some(deadline) => {
                let rest = deadline.saturating_duration_since(Instant::now());
                if rest.is_zero() {
                    return false;
                }
                rest.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32
            }
        };
        // SAFETY: one pollfd, which lives across the call.
        let result = unsafe { libc::poll(&raw mut poll, 1, timeout_ms) };
        if result > 0 {
            return true;
        }
    }
}

/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2, 2.7.7), which `virtio-queue` does not look at.
fn wants_interrupts(queue: &Queue, memory: &GuestMemory) -> Result<bool, virtio_queue::Error> {
    let flags: u16 = memory
        .load(GuestAddress(queue.avail_ring()), Ordering::Acquire)
        .map_err(virtio_queue::Error::GuestMemory)?;
    Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

/// Whether an operation has no effect.
fn is_nothing(operation: Operation, limits: Limits) -> bool {
    match operation.kind {
        Kind::Flush => limits.read_only,
        _ => operation.len == 0,
    }
}

impl Handler for QueueHandler {
    fn activate(&mut self, activation: Activation) -> Result<Vec<(RawFd, u32)>, ActivateError> {
        let mut queues = activation.queues;
        let Some(mut queue) = queues.pop() else {
            return Ok(Vec::new());
        };
        let event_idx = activation.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        queue.queue.set_event_idx(event_idx);
        let descriptors = vec![
            (queue.kick.as_raw_fd(), KICK),
            (self.engine.event(), COMPLETION),
            (self.timer.as_raw_fd(), TIMER),
        ];
        let mut active = Active {
            memory: activation.memory,
            queue,
            interrupt: activation.interrupt,
            cache: CacheMode::negotiated(activation.features),
            taking: Taking::Yes,
            held: None,
            answered: false,
        };
        self.retry_kept(&mut active);
        self.active = Some(active);
        self.turn();
        Ok(descriptors)
    }

    fn event(&mut self, token: u32) {
        self.spin.wakes();
        match token {
            COMPLETION => self.engine.drain(),
            // Not read, which would wait if it was set anew since it was due.
            TIMER => self.stop_timer(),
            _ => {
                if let Some(active) = &self.active {
                    let _ = active.queue.kick.read();
                }
            }
        }
        self.turn();
    }

    fn deactivate(&mut self) -> Vec<(u16, Queue)> {
        let Some(mut active) = self.active.take() else {
            return Vec::new();
        };
        self.finish(&mut active, None);
        self.stop_timer();
        vec![(active.queue.index, active.queue.queue)]
    }
}

impl QueueHandler {
    fn stop_timer(&mut self) {
        // Fails only for a timer that is not one.
        let _ = self.timer.clear();
    }

    /// Takes the kept chains first. After a reset of the queue there is nothing to take: then the
    /// ring's positions say that no chain is out.
    fn retry_kept(&mut self, active: &mut Active) {
        let kept = std::mem::take(&mut self.kept);
        let queue = &active.queue.queue;
        let outstanding = queue.next_avail().wrapping_sub(queue.next_used());
        if usize::from(outstanding) != kept.len() || kept.len() > self.free.len() {
            return;
        }
        let memory = Arc::clone(&active.memory);
        let now = Instant::now();
        for (position, &head) in kept.iter().enumerate() {
            if let Err(error) = self.serve(active, &memory, head, now) {
                self.kept = kept[position..].to_vec();
                self.broken(active, &error);
                break;
            }
        }
    }
}

impl Drop for QueueHandler {
    fn drop(&mut self) {
        // The kernel may still write into guest RAM, which is about to go.
        self.deactivate();
    }
}
