//! One queue pair and its thread. Pair 0 also serves the control queue.
//!
//! The tap hangs in an epoll set of its own, the gate, which hangs in the worker's: so the pair
//! can stop listening to it while the guest has no buffers, without the worker knowing.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::control;
use super::ring::BrokenRing;
use super::rx::{RxQueue, RxStop};
use super::shared::Shared;
use super::tx::{TxQueue, TxStop};
use super::vhost::Vhost;
use crate::devices::virtio::worker::Handler;
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, Interrupt};
use crate::memory::GuestMemory;

const TAP: u32 = 0;
const RX_KICK: u32 = 1;
const TX_KICK: u32 = 2;
const CONTROL_KICK: u32 = 3;
const CHANGED: u32 = 4;
const VHOST_ERROR: u32 = 5;

/// What the driver has given us.
struct Active {
    memory: Arc<GuestMemory>,
    interrupt: Arc<dyn Interrupt>,
    /// Both are `None` with vhost.
    rx: Option<RxQueue>,
    tx: Option<TxQueue>,
    control: Option<ActiveQueue>,
    /// A ring is broken; nothing is touched until the driver resets the device.
    broken: bool,
}

/// The handler of one queue pair's thread.
pub struct QueuePair {
    shared: Arc<Shared>,
    index: usize,
    gate: Epoll,
    /// What the gate watches the tap for; `None`: it does not.
    armed: Option<EventSet>,
    silent: bool,
    /// Packets are wanted: the guest has buffers, as far as is known.
    rx_open: bool,
    /// The tap had no room.
    tx_blocked: bool,
    active: Option<Active>,
    vhost: Option<Vhost>,
}

impl QueuePair {
    pub(super) fn new(shared: Arc<Shared>, index: usize, vhost: Option<File>) -> io::Result<Self> {
        Ok(Self {
            shared,
            index,
            gate: Epoll::new()?,
            armed: None,
            silent: false,
            rx_open: true,
            tx_blocked: false,
            active: None,
            vhost: vhost.map(Vhost::new).transpose()?,
        })
    }

    fn receive(&mut self) {
        let Some(active) = self.active.as_mut().filter(|active| !active.broken) else {
            return;
        };
        let Some(rx) = &mut active.rx else {
            return;
        };
        let tap = &self.shared.taps[self.index];
        if self.silent || self.shared.is_gone() || !self.shared.is_attached(self.index) {
            return;
        }
        let counter = &self.shared.counters.rx;
        let stop = if self.shared.is_link_up() {
            rx.process(tap, &active.memory, &*active.interrupt, counter)
        } else {
            Ok(rx.discard(tap, counter))
        };
        match stop {
            Ok(RxStop::Drained | RxStop::Budget) => self.rx_open = true,
            Ok(RxStop::NoBuffers) => self.rx_open = false,
            Ok(RxStop::Tap(error)) => self.tap_failed(&error),
            Err(broken) => self.broken(broken),
        }
    }

    fn tap_failed(&mut self, error: &io::Error) {
        self.check_tap();
        if self.shared.is_gone() || !self.shared.is_attached(self.index) {
            return;
        }
        // Not again before the guest gives more buffers, lest we turn in circles.
        self.rx_open = false;
        self.shared.complain(error);
    }

    /// Finds out whether the tap's interface was removed.
    fn check_tap(&self) {
        let attached = self.shared.is_attached(self.index);
        // Detached in between is not gone: hence a second look.
        if attached
            && !self.shared.taps[self.index].is_alive()
            && self.shared.is_attached(self.index)
        {
            self.shared.tap_gone();
        }
    }

    fn transmit(&mut self) {
        let Some(active) = self.active.as_mut().filter(|active| !active.broken) else {
            return;
        };
        let Some(tx) = &mut active.tx else {
            return;
        };
        if self.silent {
            return;
        }
        let up = self.shared.is_link_up();
        let tap = up.then(|| &self.shared.taps[self.index]);
        let counter = &self.shared.counters.tx;
        let stop = tx.process(tap, &active.memory, &*active.interrupt, counter);
        let suspicious = std::mem::take(&mut tx.suspicious);
        match stop {
            Ok(TxStop::Budget) => {
                // The other direction has its turn, and then the kick brings us back.
                let _ = tx.kick.write(1);
            }
            Ok(stop) => self.tx_blocked = stop == TxStop::Blocked,
            Err(broken) => self.broken(broken),
        }
        if suspicious {
            self.check_tap();
        }
    }

    fn control(&mut self) {
        let Some(active) = self.active.as_mut().filter(|active| !active.broken) else {
            return;
        };
        let Some(control) = &mut active.control else {
            return;
        };
        match control::process(&self.shared, &mut control.queue, &active.memory) {
            Ok(true) => active.interrupt.signal_queue(control.index),
            Ok(false) => {}
            Err(broken) => self.broken(broken),
        }
    }

    fn broken(&mut self, reason: BrokenRing) {
        tracing::warn!("{}: device needs a reset: {reason}", self.shared.id);
        if let Some(active) = &mut self.active {
            active.broken = true;
            active.interrupt.needs_reset();
        }
    }

    /// Listens to the tap for what can be done with it now.
    fn update_gate(&mut self) {
        let serving = self
            .active
            .as_ref()
            .is_some_and(|active| !active.broken && (active.rx.is_some() || active.tx.is_some()));
        let reachable = !self.shared.is_gone() && self.shared.is_attached(self.index);
        let wanted = (serving && reachable && !self.silent).then(|| {
            let mut events = EventSet::empty();
            let receives = self
                .active
                .as_ref()
                .is_some_and(|active| active.rx.is_some());
            events.set(EventSet::IN, self.rx_open && receives);
            events.set(EventSet::OUT, self.tx_blocked);
            events
        });
        if wanted == self.armed {
            return;
        }
        let operation = match (self.armed, wanted) {
            (None, _) => ControlOperation::Add,
            (_, Some(_)) => ControlOperation::Modify,
            (_, None) => ControlOperation::Delete,
        };
        let event = EpollEvent::new(wanted.unwrap_or(EventSet::empty()), u64::from(TAP));
        self.gate
            .ctl(operation, self.shared.tap_fd(self.index), event)
            .expect("the tap is open, and the gate holds it as `armed` says");
        self.armed = wanted;
    }

    fn tap_event(&mut self) {
        if self.armed == Some(EventSet::empty()) {
            // Only an error can have woken us.
            self.check_tap();
        }
        if self.rx_open {
            self.receive();
        }
        if std::mem::take(&mut self.tx_blocked) {
            self.transmit();
        }
    }

    /// Looks at everything once.
    fn look(&mut self) {
        self.receive();
        self.transmit();
        self.control();
        self.update_gate();
    }

    pub(super) fn set_silent(&mut self, silent: bool) -> io::Result<()> {
        self.silent = silent;
        self.switch_vhost()?;
        self.look();
        Ok(())
    }

    pub(super) fn link_changed(&mut self) -> io::Result<()> {
        self.rx_open = true;
        self.switch_vhost()?;
        self.look();
        Ok(())
    }

    /// vhost moves packets only while they may move. It does not take a detached queue.
    fn switch_vhost(&mut self) -> io::Result<()> {
        let open = self.shared.is_link_up() && self.shared.is_attached(self.index);
        let moving = open && !self.silent;
        match &mut self.vhost {
            Some(vhost) => vhost.set_moving(moving, self.shared.taps[self.index].file()),
            None => Ok(()),
        }
    }

    pub(super) fn start_log(&mut self, memory: &Arc<GuestMemory>) -> io::Result<()> {
        match &mut self.vhost {
            Some(vhost) => vhost.start_log(memory),
            None => Ok(()),
        }
    }

    pub(super) fn take_log(&mut self) {
        if let Some(vhost) = &self.vhost {
            vhost.take_log();
        }
    }

    pub(super) fn stop_log(&mut self) -> io::Result<()> {
        match &mut self.vhost {
            Some(vhost) => vhost.stop_log(),
            None => Ok(()),
        }
    }

    fn refuse(&self, action: &'static str) -> impl Fn(io::Error) -> ActivateError + use<> {
        let id = self.shared.id.clone();
        move |source| ActivateError::Backend {
            id: id.clone(),
            action,
            source,
        }
    }
}

impl Handler for QueuePair {
    fn activate(&mut self, activation: Activation) -> Result<Vec<(RawFd, u32)>, ActivateError> {
        let Activation {
            memory,
            features,
            queues,
            interrupt,
        } = activation;
        let (mut receive, mut transmit, mut control) = (None, None, None);
        for queue in queues {
            if !queue.queue.is_valid(&*memory) {
                return Err(ActivateError::Queues {
                    id: self.shared.id.clone(),
                    reason: format!("queue {} is not in RAM", queue.index),
                });
            }
            match usize::from(queue.index).checked_sub(2 * self.index) {
                Some(0) => receive = Some(queue),
                Some(1) => transmit = Some(queue),
                _ => control = Some(queue),
            }
        }
        let mut watched = vec![(self.gate.as_raw_fd(), TAP)];
        watched.extend(
            self.shared
                .changed(self.index)
                .map(|changed| (changed.as_raw_fd(), CHANGED)),
        );
        watched.extend(
            control
                .as_ref()
                .map(|queue| (queue.kick.as_raw_fd(), CONTROL_KICK)),
        );
        let (mut rx, mut tx) = (None, None);
        let refuse = self.refuse("cannot start vhost-net");
        if let Some(vhost) = &mut self.vhost {
            let error = vhost
                .start(
                    Arc::clone(&memory),
                    features,
                    [receive, transmit],
                    &*interrupt,
                )
                .map_err(refuse)?;
            watched.push((error, VHOST_ERROR));
        } else {
            rx = receive.map(|queue| RxQueue::new(queue, features));
            tx = transmit.map(TxQueue::new);
            watched.extend(rx.as_ref().map(|rx| (rx.kick.as_raw_fd(), RX_KICK)));
            watched.extend(tx.as_ref().map(|tx| (tx.kick.as_raw_fd(), TX_KICK)));
        }
        self.active = Some(Active {
            memory,
            interrupt,
            rx,
            tx,
            control,
            broken: false,
        });
        self.rx_open = true;
        self.switch_vhost()
            .map_err(self.refuse("cannot hand the tap to vhost-net"))?;
        self.look();
        Ok(watched)
    }

    fn event(&mut self, token: u32) {
        match token {
            TAP => self.tap_event(),
            RX_KICK => {
                drain(
                    self.active
                        .as_ref()
                        .and_then(|active| Some(&active.rx.as_ref()?.kick)),
                );
                self.receive();
            }
            TX_KICK => {
                drain(
                    self.active
                        .as_ref()
                        .and_then(|active| Some(&active.tx.as_ref()?.kick)),
                );
                self.transmit();
            }
            CONTROL_KICK => {
                let control = self
                    .active
                    .as_ref()
                    .and_then(|active| active.control.as_ref());
                drain(control.map(|control| &control.kick));
                self.control();
            }
            CHANGED => {
                if let Some(changed) = self.shared.changed(self.index) {
                    let _ = changed.read();
                }
                self.rx_open = true;
                if let Err(error) = self.switch_vhost() {
                    tracing::warn!("{}: cannot switch vhost-net: {error}", self.shared.id);
                }
                self.receive();
            }
            VHOST_ERROR => {
                if let Some(vhost) = &self.vhost {
                    vhost.drain_error();
                }
                self.broken(BrokenRing::Ring);
            }
            _ => {}
        }
        self.update_gate();
    }

    fn deactivate(&mut self) -> Vec<(u16, Queue)> {
        let mut queues = match &mut self.vhost {
            Some(vhost) => vhost.stop(),
            None => Vec::new(),
        };
        if let Some(active) = self.active.take() {
            let counter = &self.shared.counters.rx;
            queues.extend(active.rx.map(|rx| rx.into_queue(counter)));
            queues.extend(active.tx.map(TxQueue::into_queue));
            queues.extend(active.control.map(|control| (control.index, control.queue)));
        }
        self.tx_blocked = false;
        self.update_gate();
        queues
    }
}

fn drain(kick: Option<&Arc<EventFd>>) {
    if let Some(kick) = kick {
        let _ = kick.read();
    }
}
