//! What the machine may do with a block device while it runs, from any thread.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use pindah_vmm_api::DiskLimits;
use thiserror::Error;

use super::disk::{Disk, ResizeError};
use super::lock::{ImageLocks, LockError};
use super::metrics::BlockMetrics;
use super::queue::QueueHandler;
use super::request::SECTOR_SIZE;
use super::shared::Shared;
use super::{Workers, on_worker};

/// The way to a block device that the transport has taken.
#[derive(Clone)]
pub struct BlockHandle {
    shared: Arc<Shared>,
    workers: Workers,
    disk: Disk,
    locks: Arc<ImageLocks>,
    resizing: Arc<Mutex<()>>,
}

/// Requests were still in flight at the deadline.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("disk {id}: {in_flight} requests did not end in time")]
pub struct QuiesceError {
    /// The device.
    pub id: String,
    /// How many requests the storage still works on.
    pub in_flight: usize,
}

impl BlockHandle {
    pub(super) fn new(
        shared: Arc<Shared>,
        workers: Workers,
        disk: Disk,
        locks: ImageLocks,
    ) -> Self {
        Self {
            shared,
            workers,
            disk,
            locks: Arc::new(locks),
            resizing: Arc::default(),
        }
    }

    /// The device's id.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.shared.capacity_sectors.load(Ordering::Acquire) * SECTOR_SIZE
    }

    /// Takes the locks on the disk's images, so that nobody else writes them, and nobody else
    /// reads one that the guest may write; `qemu-img` and its like honour them. They go with
    /// [`Self::unlock`] or with the process.
    ///
    /// # Errors
    /// [`LockError`]; no lock is held then.
    pub fn lock(&self) -> Result<(), LockError> {
        let locks = Arc::clone(&self.locks);
        on_worker(&self.workers, &self.disk, move |_| locks.lock())
    }

    /// Gives the locks up, for who is to run the guest next.
    pub fn unlock(&self) {
        let locks = Arc::clone(&self.locks);
        on_worker(&self.workers, &self.disk, move |_| locks.unlock());
    }

    /// What the device has done so far, all queues together.
    pub fn metrics(&self) -> BlockMetrics {
        let mut sum = BlockMetrics::default();
        for queue in &self.shared.metrics {
            queue.add_to(&mut sum);
        }
        sum
    }

    /// How much of its storage the disk may take.
    pub fn limits(&self) -> DiskLimits {
        self.shared.throttle.limits()
    }

    /// Lets the disk take so much of its storage from now on. Requests that wait because of the
    /// limits before wait no longer than the new ones say. Waits for nobody: storage that stalls
    /// does not keep a disk's limits.
    pub fn set_limits(&self, limits: DiskLimits) {
        self.shared.throttle.set(limits, Instant::now());
        for worker in self.workers.iter() {
            worker.post(QueueHandler::turn);
        }
    }

    /// Makes the disk `size` bytes large and tells the guest. A block device must have that size
    /// already.
    ///
    /// # Errors
    /// [`ResizeError`]; the disk keeps its size.
    pub fn resize(&self, size: u64) -> Result<(), ResizeError> {
        if self.shared.read_only {
            return Err(ResizeError::ReadOnly {
                id: self.shared.id.clone(),
            });
        }
        let _one_at_a_time = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, from) = (self.shared.id.clone(), self.size());
        on_worker(&self.workers, &self.disk, move |disk| {
            disk.resize(&id, from, size)
        })?;
        self.shared
            .capacity_sectors
            .store(size / SECTOR_SIZE, Ordering::Release);
        self.shared.config_changed();
        Ok(())
    }

    /// Forgets what is cached of the image, its size included: on a migration's destination,
    /// before the device's state is restored, as the source wrote until just now. Only while the
    /// device is not active.
    ///
    /// # Errors
    /// The image cannot be read, or is not what it was.
    pub fn reload(&self) -> io::Result<()> {
        let size = on_worker(&self.workers, &self.disk, Disk::reload)?;
        self.shared
            .capacity_sectors
            .store(size / SECTOR_SIZE, Ordering::Release);
        Ok(())
    }

    /// Takes no new requests, while the guest goes on, and waits for those in flight: what comes
    /// then stays in the rings for whoever activates the device next. Ends with
    /// [`Self::unquiesce`] or with the next activation.
    ///
    /// # Errors
    /// [`QuiesceError`] if the storage is not done by the deadline. The device is quiesced all
    /// the same, and may be asked again.
    pub fn quiesce(&self, deadline: Instant) -> Result<(), QuiesceError> {
        let left = self
            .workers
            .iter()
            .map(|worker| worker.call(move |handler| handler.quiesce(deadline)));
        match left.sum() {
            0 => {
                // Now rather than when all vCPUs wait for it; should it fail, the deactivation
                // finds out.
                let _ = on_worker(&self.workers, &self.disk, Disk::settle);
                Ok(())
            }
            in_flight => Err(QuiesceError {
                id: self.shared.id.clone(),
                in_flight,
            }),
        }
    }

    /// Goes on after [`Self::quiesce`].
    pub fn unquiesce(&self) {
        for worker in self.workers.iter() {
            worker.call(QueueHandler::unquiesce);
        }
    }
}
