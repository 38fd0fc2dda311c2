//! What a block device's queues, its configuration space and its handle have in common.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pindah_vmm_api::ErrorPolicy;
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

use super::metrics::QueueMetrics;
use super::request::Operation;
use super::throttle::Throttle;
use crate::devices::MachineControl;
use crate::devices::virtio::Interrupt;

/// Shared by all threads that know one block device.
pub(super) struct Shared {
    pub id: String,
    pub read_only: bool,
    pub on_error: ErrorPolicy,
    /// Filled up with zeroes.
    pub serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    /// Grows when the disk is resized.
    pub capacity_sectors: AtomicU64,
    /// The configuration space's field of that name.
    pub writeback: AtomicBool,
    /// The machine was asked to pause since the last activation.
    pub pause_requested: AtomicBool,
    /// How much of its storage it may take.
    pub throttle: Throttle,
    /// One set a queue.
    pub metrics: Box<[QueueMetrics]>,
    pub control: Arc<dyn MachineControl>,
    pub driver: Mutex<Driver>,
}

/// The way to the driver, as far as the device is active.
#[derive(Default)]
pub(super) struct Driver {
    pub interrupt: Option<Arc<dyn Interrupt>>,
    /// The configuration space has changed while the device was not active.
    pub config_changed: bool,
}

impl Shared {
    /// The configuration space has changed: tells the driver, now or at the next activation.
    pub fn config_changed(&self) {
        let mut driver = self.driver.lock().expect("no thread panics under it");
        driver.config_changed = driver.interrupt.is_none();
        let interrupt = driver.interrupt.clone();
        drop(driver);
        if let Some(interrupt) = interrupt {
            interrupt.signal_config();
        }
    }

    /// Logs a failure of the host. True if the request is to be kept; then the machine has been
    /// asked to pause, once.
    pub fn pauses_on(&self, operation: Operation, error: &io::Error) -> bool {
        let Operation { kind, offset, len } = operation;
        let pauses = self.on_error == ErrorPolicy::Pause;
        let first = !self.pause_requested.swap(true, Ordering::AcqRel);
        if first {
            tracing::error!(
                device = self.id,
                "{kind:?} of {len} bytes at {offset} failed: {error}; the guest {}",
                if pauses {
                    "is paused"
                } else {
                    "gets the error"
                },
            );
            if pauses {
                let reason = format!("{kind:?} of {len} bytes at {offset} failed: {error}");
                let no_space = matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                );
                self.control.request_pause(&self.id, &reason, no_space);
            }
        }
        pauses
    }
}
