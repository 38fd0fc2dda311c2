//! What device tests share: guest RAM, the driver's side of a split virtqueue (virtio 1.2,
//! section 2.7), and an interrupt that tests can wait for.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::virtio::{Activation, ActiveQueue, Interrupt};
use crate::memory::GuestMemory;

/// Longer than any slow host needs. Reached only by a test that fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// `mib` MiB of RAM from address 0.
pub(crate) fn memory(mib: usize) -> Arc<GuestMemory> {
    let ranges = [(GuestAddress(0), mib << 20)];
    Arc::new(GuestMemory::from_ranges(&ranges).unwrap())
}

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a device has told its driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signalled {
    /// Signals by queue index.
    pub queues: Vec<u32>,
    /// Configuration changes.
    pub config: u32,
    /// DEVICE_NEEDS_RESET.
    pub needs_reset: bool,
}

/// An [`Interrupt`] that remembers.
pub(crate) struct FakeInterrupt {
    signalled: Mutex<Signalled>,
    changed: Condvar,
    events: Vec<Arc<EventFd>>,
}

impl FakeInterrupt {
    /// For a device with so many queues.
    pub(crate) fn new(queues: usize) -> Arc<Self> {
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Arc::new(Self {
            signalled: Mutex::new(Signalled {
                queues: vec![0; queues],
                ..Signalled::default()
            }),
            changed: Condvar::new(),
            events: (0..queues).map(|_| event()).collect(),
        })
    }

    /// What was signalled so far.
    pub(crate) fn signalled(&self) -> Signalled {
        self.signalled.lock().unwrap().clone()
    }

    /// Waits until what was signalled fulfils `condition`.
    pub(crate) fn wait(&self, condition: impl Fn(&Signalled) -> bool) -> Signalled {
        let signalled = self.signalled.lock().unwrap();
        let (signalled, timeout) = self
            .changed
            .wait_timeout_while(signalled, DEADLINE, |signalled| !condition(signalled))
            .unwrap();
        assert!(!timeout.timed_out(), "waited in vain: {signalled:?}");
        signalled.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Signalled)) {
        change(&mut self.signalled.lock().unwrap());
        self.changed.notify_all();
    }
}

impl Interrupt for FakeInterrupt {
    fn signal_queue(&self, queue: u16) {
        self.change(|signalled| signalled.queues[usize::from(queue)] += 1);
    }

    fn signal_config(&self) {
        self.change(|signalled| signalled.config += 1);
    }

    fn needs_reset(&self) {
        self.change(|signalled| signalled.needs_reset = true);
    }

    fn queue_event(&self, queue: u16) -> Arc<EventFd> {
        Arc::clone(&self.events[usize::from(queue)])
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// A buffer that the device reads.
pub(crate) fn readable(address: u64, len: u32) -> Buffer {
    Buffer {
        address,
        len,
        writable: false,
    }
}

/// A buffer that the device writes.
pub(crate) fn writable(address: u64, len: u32) -> Buffer {
    Buffer {
        address,
        len,
        writable: true,
    }
}

/// The driver's side of one queue. Descriptors are used round robin and never checked for being
/// free: a test keeps at most `size` of them in flight.
pub(crate) struct DriverQueue {
    memory: Arc<GuestMemory>,
    base: GuestAddress,
    size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
    /// Written to kick; the device's worker watches it.
    pub kick: Arc<EventFd>,
}

impl DriverQueue {
    /// An empty queue whose rings are at `base`, a multiple of 4096.
    pub(crate) fn new(memory: &Arc<GuestMemory>, base: u64, size: u16) -> Self {
        Self {
            memory: Arc::clone(memory),
            base: GuestAddress(base),
            size,
            next_descriptor: 0,
            available: 0,
            used: 0,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        }
    }

    /// Address of the descriptor table.
    pub(crate) fn descriptor_table(&self) -> u64 {
        self.base.0
    }

    /// Address of the available ring.
    pub(crate) fn available_ring(&self) -> u64 {
        self.base.0 + 16 * u64::from(self.size)
    }

    /// Address of the used ring.
    pub(crate) fn used_ring(&self) -> u64 {
        (self.available_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4096)
    }

    /// The first address behind the rings.
    pub(crate) fn end(&self) -> u64 {
        (self.used_ring() + 6 + 8 * u64::from(self.size)).next_multiple_of(4096)
    }

    /// The device's side, at its beginning.
    pub(crate) fn queue(&self) -> Queue {
        let state = QueueState {
            max_size: self.size,
            size: self.size,
            ready: true,
            desc_table: self.descriptor_table(),
            avail_ring: self.available_ring(),
            used_ring: self.used_ring(),
            ..QueueState::default()
        };
        let queue = Queue::try_from(state).unwrap();
        assert!(queue.is_valid(&*self.memory));
        queue
    }

    /// Writes a descriptor as it is.
    pub(crate) fn write_descriptor(&self, index: u16, buffer: Buffer, flags: u16, next: u16) {
        let at = self.base.unchecked_add(16 * u64::from(index));
        self.memory.write_obj(buffer.address, at).unwrap();
        let words = [buffer.len, u32::from(flags) | u32::from(next) << 16];
        for (word, offset) in words.into_iter().zip([8, 12]) {
            let at = at.unchecked_add(offset);
            self.memory.write_obj(word, at).unwrap();
        }
    }

    /// Makes the chain that starts at descriptor `head` available.
    pub(crate) fn publish(&mut self, head: u16) {
        let ring = GuestAddress(self.available_ring());
        let slot = ring.unchecked_add(4 + 2 * u64::from(self.available % self.size));
        self.memory.write_obj(head, slot).unwrap();
        self.available = self.available.wrapping_add(1);
        let index = ring.unchecked_add(2);
        let order = Ordering::Release;
        self.memory.store(self.available, index, order).unwrap();
    }

    /// Makes a chain of these buffers available, without a kick; returns its head.
    pub(crate) fn push(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (position, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let mut flags = if buffer.writable {
                VRING_DESC_F_WRITE
            } else {
                0
            };
            if position + 1 < buffers.len() {
                flags |= VRING_DESC_F_NEXT;
            }
            self.write_descriptor(index, *buffer, flags as u16, self.next_descriptor);
        }
        self.publish(head);
        head
    }

    /// Notifies the device.
    pub(crate) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Takes the next used chain: head and length.
    pub(crate) fn pop_used(&mut self) -> Option<(u16, u32)> {
        let ring = GuestAddress(self.used_ring());
        let index: u16 = self
            .memory
            .load(ring.unchecked_add(2), Ordering::Acquire)
            .unwrap();
        if index == self.used {
            return None;
        }
        let element = ring.unchecked_add(4 + 8 * u64::from(self.used % self.size));
        let head: u32 = self.memory.read_obj(element).unwrap();
        let len = self.memory.read_obj(element.unchecked_add(4)).unwrap();
        self.used = self.used.wrapping_add(1);
        Some((head as u16, len))
    }

    /// Waits for the next used chain.
    pub(crate) fn wait_used(&mut self) -> (u16, u32) {
        let mut used = None;
        wait_until("a used chain", || {
            used = self.pop_used();
            used.is_some()
        });
        used.unwrap()
    }
}

/// An activation with these queues (by index), and its interrupt.
pub(crate) fn activation(
    memory: &Arc<GuestMemory>,
    features: u64,
    queues: &[(u16, &DriverQueue)],
) -> (Activation, Arc<FakeInterrupt>) {
    let count = queues.iter().map(|(index, _)| index + 1).max().unwrap_or(0);
    let interrupt = FakeInterrupt::new(count.into());
    let active = queues.iter().map(|(index, driver)| ActiveQueue {
        index: *index,
        queue: driver.queue(),
        kick: Arc::clone(&driver.kick),
    });
    let activation = Activation {
        memory: Arc::clone(memory),
        features,
        queues: active.collect(),
        interrupt: Arc::clone(&interrupt) as _,
    };
    (activation, interrupt)
}
