//! A virtio driver in a few lines: rings in guest RAM, and an interrupt that counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::virtio::{Activation, ActiveQueue, Interrupt};
use crate::memory::GuestMemory;

/// Size of each queue.
pub const SIZE: u16 = 64;
pub const RAM_BYTES: usize = 16 << 20;

/// A buffer may be written by the device.
pub const WRITE: u16 = 2;
const NEXT: u16 = 1;

pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[derive(Default)]
pub struct Signals {
    pub queues: [AtomicUsize; 8],
    pub config: AtomicUsize,
    pub needs_reset: AtomicBool,
}

impl Interrupt for Signals {
    fn signal_queue(&self, queue: u16) {
        self.queues[usize::from(queue)].fetch_add(1, Ordering::SeqCst);
    }

    fn signal_config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }

    fn queue_event(&self, _queue: u16) -> Arc<EventFd> {
        Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
    }
}

/// One queue as its driver sees it.
pub struct Ring {
    memory: Arc<GuestMemory>,
    base: u64,
    kick: Arc<EventFd>,
    next_descriptor: u16,
    next_avail: u16,
    seen_used: u16,
}

impl Ring {
    pub fn new(memory: &Arc<GuestMemory>, index: u16) -> Self {
        Self {
            memory: Arc::clone(memory),
            base: 0x10_000 * (u64::from(index) + 1),
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            next_descriptor: 0,
            next_avail: 0,
            seen_used: 0,
        }
    }

    pub fn queue(&self, event_idx: bool) -> Queue {
        Queue::try_from(QueueState {
            max_size: SIZE,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: event_idx,
            size: SIZE,
            ready: true,
            desc_table: self.base,
            avail_ring: self.base + 0x4000,
            used_ring: self.base + 0x8000,
        })
        .unwrap()
    }

    pub fn descriptor(&self, slot: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.base + 16 * u64::from(slot));
        self.memory.write_obj(address, at).unwrap();
        let tail = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory.write_obj(tail, GuestAddress(at.0 + 8)).unwrap();
    }

    /// Makes a chain of `(address, length, flags)` available. Returns its head.
    pub fn add(&mut self, buffers: &[(u64, u32, u16)]) -> u16 {
        let head = self.next_descriptor % SIZE;
        for (at, &(address, length, flags)) in buffers.iter().enumerate() {
            let slot = self.next_descriptor % SIZE;
            self.next_descriptor += 1;
            let next = if at + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(
                slot,
                address,
                length,
                flags | next,
                self.next_descriptor % SIZE,
            );
        }
        self.publish(head);
        head
    }

    pub fn publish(&mut self, head: u16) {
        let slot = GuestAddress(self.base + 0x4004 + 2 * u64::from(self.next_avail % SIZE));
        self.memory.write_obj(head, slot).unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail(self.next_avail);
    }

    pub fn set_avail(&self, index: u16) {
        let at = GuestAddress(self.base + 0x4002);
        self.memory.store(index, at, Ordering::Release).unwrap();
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Entries of the used ring since the last call, as `(head, length)`.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        let at = GuestAddress(self.base + 0x8002);
        let end: u16 = self.memory.load(at, Ordering::Acquire).unwrap();
        let mut entries = Vec::new();
        while self.seen_used != end {
            let slot = u64::from(self.seen_used % SIZE);
            let at = GuestAddress(self.base + 0x8004 + 8 * slot);
            let entry: u64 = self.memory.read_obj(at).unwrap();
            entries.push((entry as u16, (entry >> 32) as u32));
            self.seen_used = self.seen_used.wrapping_add(1);
        }
        entries
    }

    pub fn active(&self, index: u16, queue: Queue) -> ActiveQueue {
        ActiveQueue {
            index,
            queue,
            kick: Arc::clone(&self.kick),
        }
    }
}

/// A driver of a whole device.
pub struct Driver {
    pub memory: Arc<GuestMemory>,
    pub signals: Arc<Signals>,
    pub features: u64,
    pub rings: Vec<Ring>,
}

impl Driver {
    pub fn new(features: u64, queues: u16) -> Self {
        let ranges = [(GuestAddress(0), RAM_BYTES)];
        let memory = Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
        Self {
            rings: (0..queues).map(|index| Ring::new(&memory, index)).collect(),
            memory,
            signals: Arc::default(),
            features,
        }
    }

    pub fn queues(&self) -> Vec<(u16, Queue)> {
        let event_idx = self.features & (1 << 29) != 0;
        let queues = self.rings.iter().map(|ring| ring.queue(event_idx));
        (0..).zip(queues).collect()
    }

    pub fn activation(&self, queues: Vec<(u16, Queue)>) -> Activation {
        let active =
            |(index, queue): (u16, Queue)| self.rings[usize::from(index)].active(index, queue);
        Activation {
            memory: Arc::clone(&self.memory),
            features: self.features,
            queues: queues.into_iter().map(active).collect(),
            interrupt: Arc::clone(&self.signals) as _,
        }
    }

    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let at = GuestAddress(address);
        self.memory.read_slice(&mut bytes, at).unwrap();
        bytes
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }
}
