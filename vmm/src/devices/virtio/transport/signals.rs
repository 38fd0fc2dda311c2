//! The way from the device to its driver: status, ISR and vectors. Atomic, as any thread may
//! call while a vCPU holds the transport's locks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::pci::msix::Msix;
use crate::devices::virtio::Interrupt;

/// No vector is assigned (`VIRTIO_MSI_NO_VECTOR`, virtio 1.2, section 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

// ISR status (section 4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

pub struct Signals {
    msix: Arc<Msix>,
    status: AtomicU8,
    isr: AtomicU8,
    generation: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    /// Stands for a queue's vector while it has none.
    nobody: Arc<EventFd>,
}

impl Signals {
    pub fn new(queues: usize, msix: Arc<Msix>) -> io::Result<Self> {
        Ok(Self {
            msix,
            status: AtomicU8::new(0),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            nobody: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        })
    }

    /// Device status.
    pub fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    /// Sets these bits of device status.
    pub fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    /// ISR status, which a read clears.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// ISR status as it is.
    pub fn isr(&self) -> u8 {
        self.isr.load(Ordering::Acquire)
    }

    /// Counts changes of device configuration.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// Sets the vector for configuration changes; one that does not exist becomes [`NO_VECTOR`].
    pub fn set_config_vector(&self, vector: u16) {
        let vector = self.existing(vector);
        self.config_vector.store(vector, Ordering::Release);
    }

    pub fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors
            .get(usize::from(queue))
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Sets a queue's vector; one that does not exist becomes [`NO_VECTOR`].
    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(place) = self.queue_vectors.get(usize::from(queue)) {
            place.store(self.existing(vector), Ordering::Release);
        }
    }

    /// What a device reset leaves (section 2.4). The generation goes on counting.
    pub fn reset(&self) {
        self.set_config_vector(NO_VECTOR);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.msix.clear_pending();
        self.isr.store(0, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }

    /// Takes saved values; vectors are set by their own setters.
    pub fn restore(&self, status: u8, isr: u8, generation: u8) {
        self.status.store(status, Ordering::Release);
        self.isr.store(isr, Ordering::Release);
        self.generation.store(generation, Ordering::Release);
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }
}

impl Interrupt for Signals {
    fn signal_queue(&self, queue: u16) {
        // Without MSI-X the driver polls ISR status: there is no interrupt pin.
        if !self.msix.enabled() {
            self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        }
        self.msix.trigger(self.queue_vector(queue));
    }

    fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.msix.trigger(self.config_vector());
    }

    fn needs_reset(&self) {
        let bit = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
        let before = self.status.fetch_or(bit, Ordering::AcqRel);
        if before & bit == 0 && before & VIRTIO_CONFIG_S_DRIVER_OK as u8 != 0 {
            self.signal_config();
        }
    }

    fn queue_event(&self, queue: u16) -> Arc<EventFd> {
        let event = self.msix.event(self.queue_vector(queue));
        Arc::clone(event.unwrap_or(&self.nobody))
    }
}
