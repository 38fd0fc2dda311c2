//! One queue, on an engine that does what the test says.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pindah_vmm_api::{DiskLimits, ErrorPolicy};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::rig::*;
use crate::devices::virtio::block::chain::Segment;
use crate::devices::virtio::block::engine::{Completion, Engine};
use crate::devices::virtio::block::metrics::QueueMetrics;
use crate::devices::virtio::block::queue::QueueHandler;
use crate::devices::virtio::block::request::{Kind, Operation};
use crate::devices::virtio::block::shared::{Driver, Shared};
use crate::devices::virtio::block::throttle::Throttle;
use crate::devices::virtio::testing::{
    DEADLINE, DriverQueue, FakeInterrupt, activation, memory, readable, writable,
};
use crate::devices::virtio::worker::Handler;
use crate::memory::GuestMemory;

pub const FLUSH_FEATURE: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;
pub const KICK: u32 = 0;
pub const COMPLETION: u32 = 1;
pub const TIMER: u32 = 2;

/// What the engine was given, and what it is to give back.
pub struct Store {
    submitted: Mutex<Vec<(u16, Kind, Vec<Segment>)>>,
    done: Mutex<VecDeque<Completion>>,
    event: EventFd,
    /// Called when the queue looks for completions.
    look: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl Store {
    pub fn kinds(&self) -> Vec<Kind> {
        let submitted = self.submitted.lock().unwrap();
        submitted.iter().map(|&(_, kind, _)| kind).collect()
    }

    /// Ends the operation that was submitted first.
    fn end(&self, result: io::Result<()>) {
        let (slot, _, data) = self.submitted.lock().unwrap().remove(0);
        let completion = Completion { slot, data, result };
        self.done.lock().unwrap().push_back(completion);
        self.event.write(1).unwrap();
    }
}

struct FakeEngine(Arc<Store>);

impl Engine for FakeEngine {
    fn submit(
        &mut self,
        slot: u16,
        operation: Operation,
        data: Vec<Segment>,
        _memory: &Arc<GuestMemory>,
    ) {
        let mut submitted = self.0.submitted.lock().unwrap();
        submitted.push((slot, operation.kind, data));
    }

    fn kick(&mut self) {}

    fn complete(&mut self, _memory: &GuestMemory) -> Option<Completion> {
        if let Some(look) = &mut *self.0.look.lock().unwrap() {
            look();
        }
        self.0.done.lock().unwrap().pop_front()
    }

    fn is_ready(&mut self) -> bool {
        !self.0.done.lock().unwrap().is_empty()
    }

    fn event(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn drain(&mut self) {
        let _ = self.0.event.read();
    }
}

pub struct Bench {
    memory: Arc<GuestMemory>,
    pub driver: DriverQueue,
    pub handler: QueueHandler,
    pub store: Arc<Store>,
    pub shared: Arc<Shared>,
    /// Readable when the wait for the disk's limits is over.
    pub timer: RawFd,
    interrupt: Arc<FakeInterrupt>,
}

/// A queue of 64 with `slots` slots, activated.
pub fn bench(features: u64, slots: u16) -> Bench {
    let memory = memory(8);
    let driver = DriverQueue::new(&memory, 0x1000, 64);
    let store = Arc::new(Store {
        submitted: Mutex::default(),
        done: Mutex::default(),
        event: EventFd::new(EFD_NONBLOCK).unwrap(),
        look: Mutex::default(),
    });
    let shared = Arc::new(Shared {
        id: "disk0".to_owned(),
        read_only: false,
        on_error: ErrorPolicy::Report,
        serial: [0; 20],
        capacity_sectors: AtomicU64::new(1000),
        writeback: AtomicBool::new(true),
        pause_requested: AtomicBool::new(false),
        throttle: Throttle::new(DiskLimits::default(), Instant::now()),
        metrics: [QueueMetrics::default()].into(),
        control: Arc::new(Machine::default()),
        driver: Mutex::new(Driver::default()),
    });
    let engine = Box::new(FakeEngine(Arc::clone(&store)));
    let mut handler = QueueHandler::new(Arc::clone(&shared), 0, engine, slots).unwrap();
    let (activation, interrupt) = activation(&memory, features, &[(0, &driver)]);
    let watched = handler.activate(activation).unwrap();
    let timer = watched.iter().find(|(_, token)| *token == TIMER).unwrap();
    Bench {
        timer: timer.0,
        memory,
        driver,
        handler,
        store,
        shared,
        interrupt,
    }
}

impl Bench {
    /// Puts a request of one sector into the ring; its header and status are at `at`.
    pub fn push(&mut self, kind: u32, at: u64) {
        let header = [u64::from(kind), 0];
        self.memory.write_obj(header, GuestAddress(at)).unwrap();
        let data = match kind {
            IN => writable(at + 4096, 512),
            _ => readable(at + 4096, 512),
        };
        let status = writable(at + 16, 1);
        self.driver.push(&[readable(at, 16), data, status]);
    }

    fn status(&self, at: u64) -> u8 {
        self.memory.read_obj(GuestAddress(at + 16)).unwrap()
    }

    /// Ends the first operation, and lets the queue see it.
    pub fn end(&mut self, result: io::Result<()>) {
        self.store.end(result);
        self.handler.event(COMPLETION);
    }
}

#[test]
fn write_without_a_cache_is_answered_after_its_flush() {
    for (features, writeback) in [(0, true), (CONFIG_WCE | FLUSH_FEATURE, false)] {
        let mut bench = bench(features, 8);
        bench.shared.writeback.store(writeback, Ordering::Release);
        bench.push(OUT, 0x10_0000);
        bench.handler.event(KICK);
        assert_eq!(bench.store.kinds(), [Kind::Write]);
        bench.end(Ok(()));
        assert_eq!(bench.store.kinds(), [Kind::Flush]);
        assert!(bench.driver.pop_used().is_none());
        bench.end(Ok(()));
        assert_eq!(bench.driver.pop_used(), Some((0, 1)));
        assert_eq!(bench.status(0x10_0000), OK);

        bench.push(OUT, 0x10_0000);
        bench.handler.event(KICK);
        bench.end(Ok(()));
        bench.end(Err(io::Error::from_raw_os_error(libc::EIO)));
        assert!(bench.driver.pop_used().is_some());
        assert_eq!(bench.status(0x10_0000), IOERR);
    }
}

#[test]
fn write_with_a_cache_is_answered_at_once() {
    for features in [FLUSH_FEATURE, CONFIG_WCE | FLUSH_FEATURE] {
        let mut bench = bench(features, 8);
        bench.push(OUT, 0x10_0000);
        bench.handler.event(KICK);
        bench.end(Ok(()));
        assert!(bench.driver.pop_used().is_some());
        assert!(bench.store.kinds().is_empty());
        assert_eq!(bench.interrupt.signalled().queues, [1]);
    }
}

#[test]
fn requests_beyond_the_slots_wait_their_turn() {
    let mut bench = bench(FLUSH_FEATURE, 4);
    for index in 0..10 {
        bench.push(IN, 0x10_0000 + index * 0x2000);
    }
    bench.handler.event(KICK);
    assert_eq!(bench.store.kinds().len(), 4);
    for left in [4, 4, 4, 4, 4, 4, 3, 2, 1, 0] {
        bench.end(Ok(()));
        assert_eq!(bench.store.kinds().len(), left);
    }
    for _ in 0..10 {
        assert_eq!(bench.driver.pop_used().unwrap().1, 513);
    }
}

#[test]
fn quiesce_gives_up_at_its_deadline_and_what_is_late_is_still_answered() {
    let mut bench = bench(FLUSH_FEATURE, 4);
    bench.push(IN, 0x10_0000);
    bench.handler.event(KICK);
    let left = bench
        .handler
        .quiesce(Instant::now() + Duration::from_millis(5));
    assert_eq!(left, 1);
    bench.push(IN, 0x10_2000);
    bench.handler.event(KICK);
    assert_eq!(bench.store.kinds().len(), 1, "takes nothing new");
    bench.end(Ok(()));
    assert!(bench.driver.pop_used().is_some());
    assert_eq!(bench.handler.quiesce(Instant::now()), 0);
    bench.handler.unquiesce();
    assert_eq!(bench.store.kinds().len(), 1);
    bench.end(Ok(()));
    assert!(bench.driver.pop_used().is_some());
}

#[test]
fn deactivate_waits_for_slow_storage() {
    let mut bench = bench(FLUSH_FEATURE, 4);
    bench.push(IN, 0x10_0000);
    bench.push(IN, 0x10_2000);
    bench.handler.event(KICK);
    let store = Arc::clone(&bench.store);
    let storage = std::thread::spawn(move || {
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(20));
            store.end(Ok(()));
        }
    });
    let queues = bench.handler.deactivate();
    assert_eq!((queues.len(), queues[0].1.state().next_used), (1, 2));
    storage.join().unwrap();
}

#[test]
fn turn_ends_although_the_driver_never_stops() {
    let mut bench = bench(FLUSH_FEATURE, 8);
    let (memory, store) = (Arc::clone(&bench.memory), Arc::clone(&bench.store));
    let ring = GuestAddress(bench.driver.available_ring() + 2);
    bench.push(IN, 0x10_0000);
    // Each look of the queue ends a request and brings the same chain again.
    let looks = Box::new(move || {
        let submitted = store.submitted.lock().unwrap().pop();
        if let Some((slot, _, data)) = submitted {
            let result = Ok(());
            let completion = Completion { slot, data, result };
            store.done.lock().unwrap().push_back(completion);
            let index: u16 = memory.load(ring, Ordering::Acquire).unwrap();
            memory
                .store(index.wrapping_add(1), ring, Ordering::Release)
                .unwrap();
        }
    });
    *bench.store.look.lock().unwrap() = Some(looks);
    let start = Instant::now();
    bench.handler.event(KICK);
    assert!(start.elapsed() < DEADLINE);
    // It has left itself a note to go on.
    assert!(bench.driver.kick.read().is_ok());
    *bench.store.look.lock().unwrap() = None;
    while let Some(()) = (!bench.store.kinds().is_empty()).then_some(()) {
        bench.end(Ok(()));
    }
}
