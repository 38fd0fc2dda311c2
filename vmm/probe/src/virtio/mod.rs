//! Virtio 1.x devices, polled: two transports, one kind of queue.

pub mod blk;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod queue;

use core::sync::atomic::{Ordering::SeqCst, fence};

use crate::machine::Registers;
use crate::memory::Memory;
use pindah_probe::options::Options;
use queue::Queue;

/// Device type of network cards.
pub const TYPE_NET: u32 = 1;
/// Device type of disks.
pub const TYPE_BLK: u32 = 2;

const VERSION_1: u64 = 1 << 32;
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// How a device is reached.
pub enum Transport {
    Mmio(mmio::Mmio),
    Pci(pci::Pci),
}

/// Runs the same method of either transport.
macro_rules! either {
    ($transport:expr, $inner:ident => $call:expr) => {
        match $transport {
            Transport::Mmio($inner) => $call,
            Transport::Pci($inner) => $call,
        }
    };
}

/// A device that has been found.
pub struct Device {
    transport: Transport,
    /// What kind of device it is.
    pub kind: u32,
}

/// Finds the `skip`-th device for which `wanted` says yes: first on the command line's MMIO
/// slots, then on PCI.
pub fn find(options: &Options, skip: u64, wanted: impl Fn(u32) -> bool) -> Option<Device> {
    let mmio = options.mmio_devices[..options.mmio_count]
        .iter()
        .filter_map(|&address| mmio::probe(address));
    let device = mmio.filter(|device| wanted(device.kind)).nth(skip as usize);
    device.or_else(|| pci::find(skip, &wanted))
}

impl Device {
    /// Resets the device and agrees on `features`, of which all are needed.
    ///
    /// # Errors
    /// What the device lacks.
    pub fn begin(&self, features: u64) -> Result<u64, &'static str> {
        self.set_status(0);
        while self.status() != 0 {
            core::hint::spin_loop();
        }
        self.set_status(ACKNOWLEDGE | DRIVER);
        let offered = either!(&self.transport, t => t.device_features());
        if offered & VERSION_1 == 0 {
            return Err("the device is not virtio 1.x");
        }
        let agreed = offered & (features | VERSION_1);
        either!(&self.transport, t => t.set_driver_features(agreed));
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if self.status() & FEATURES_OK == 0 {
            return Err("the device refuses the features");
        }
        Ok(agreed)
    }

    /// Sets up a queue of at most `size` descriptors.
    ///
    /// # Errors
    /// What is missing.
    pub fn queue(&self, index: u16, size: u16, memory: &mut Memory) -> Result<Queue, &'static str> {
        let max = either!(&self.transport, t => t.queue_max(index));
        if max == 0 {
            return Err("the device lacks a queue");
        }
        // The largest power of two that both know.
        let size = 1 << size.min(max).ilog2();
        let queue = Queue::new(index, size, memory).ok_or("no RAM for a queue")?;
        match &self.transport {
            Transport::Mmio(mmio) => mmio.set_queue(&queue),
            Transport::Pci(pci) => pci.set_queue(&queue)?,
        }
        Ok(queue)
    }

    /// From here on the device works.
    pub fn ready(&self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Tells the device that a queue has new buffers.
    pub fn notify(&self, queue: &Queue) {
        either!(&self.transport, t => t.notify(queue.index));
    }

    /// The same, if the device wants to be told.
    pub fn kick(&self, queue: &Queue) {
        fence(SeqCst);
        if queue.wants_notification() {
            self.notify(queue);
        }
    }

    /// A byte of the device's own configuration.
    pub fn config8(&self, offset: usize) -> u8 {
        either!(&self.transport, t => t.config.read8(offset))
    }

    /// 32 bits of the device's own configuration.
    pub fn config32(&self, offset: usize) -> u32 {
        either!(&self.transport, t => t.config.read32(offset))
    }

    /// A register that can be read at any time, for the exit benchmark.
    pub fn idle_register(&self) -> Registers {
        either!(&self.transport, t => t.idle_register())
    }

    fn status(&self) -> u8 {
        either!(&self.transport, t => t.status())
    }

    fn set_status(&self, status: u8) {
        either!(&self.transport, t => t.set_status(status));
    }
}
