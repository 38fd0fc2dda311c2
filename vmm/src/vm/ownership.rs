//! Who may run the guest.
//!
//! A guest that moves exists twice for a while, and may run only once. What decides is a record
//! outside of both processes: the locks on its disks' images where the VMM runs alone.

use std::time::{Duration, Instant};

use pindah_vmm_api::VmConfig;
use thiserror::Error;

use crate::devices::virtio::block::{BlockHandle, LockError};

/// How often to look whether a lock has become free.
const RETRY: Duration = Duration::from_millis(10);

/// Why a guest must not run here.
#[derive(Debug, Error)]
pub enum OwnershipError {
    /// A disk image is somebody else's.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It was given up for a migration.
    #[error("the right to run the guest was given up, and was not won back")]
    GivenUp,
    /// Nothing tells whether it runs elsewhere.
    #[error("the guest has no disk of its own whose lock would tell whether it runs elsewhere")]
    NoRecord,
}

/// The record of who may run the guest.
pub trait Ownership: Send + Sync {
    /// Takes it, on the word of whoever had it, or as the first; waits no longer than `patience`
    /// for what is still held. What is had already stays.
    ///
    /// # Errors
    /// [`OwnershipError`]; nothing is held then.
    fn take(&self, patience: Duration) -> Result<(), OwnershipError>;

    /// Takes it without anybody's word: only if the record itself says that nobody else has it.
    ///
    /// # Errors
    /// [`OwnershipError`]; nothing is held then.
    fn win_back(&self, patience: Duration) -> Result<(), OwnershipError>;

    /// Takes it anew where the record may have forgotten who had it; waits no longer than `patience`
    /// for what is held by others.
    ///
    /// # Errors
    /// [`OwnershipError`]; nothing is held then.
    fn renew(&self, patience: Duration) -> Result<(), OwnershipError>;

    /// Gives it up.
    fn give_up(&self);
}

/// The locks on the disks' images.
pub(super) struct DiskLocks {
    disks: Vec<BlockHandle>,
    /// Some disk is written: its lock is exclusive.
    decide: bool,
}

impl DiskLocks {
    /// The locks on `disks`, which are those of `config`.
    pub fn new(config: &VmConfig, disks: &[BlockHandle]) -> Self {
        Self {
            disks: disks.to_vec(),
            decide: config.disks.iter().any(|disk| !disk.read_only),
        }
    }

    fn try_lock(&self, deadline: Instant) -> Result<(), LockError> {
        for disk in &self.disks {
            while let Err(error) = disk.lock() {
                if !matches!(error, LockError::InUse { .. }) || Instant::now() >= deadline {
                    return Err(error);
                }
                std::thread::sleep(RETRY);
            }
        }
        Ok(())
    }
}

impl Ownership for DiskLocks {
    fn take(&self, patience: Duration) -> Result<(), OwnershipError> {
        let taken = self.try_lock(Instant::now() + patience);
        if taken.is_err() {
            self.give_up();
        }
        Ok(taken?)
    }

    fn win_back(&self, patience: Duration) -> Result<(), OwnershipError> {
        if self.decide {
            self.take(patience)
        } else {
            Err(OwnershipError::NoRecord)
        }
    }

    fn renew(&self, patience: Duration) -> Result<(), OwnershipError> {
        // The NFS client fails every read and write of an open file whose locks were lost with the
        // client's lease (`NFS_LOCK_LOST`), until that file has no locks at all any more.
        self.give_up();
        self.take(patience)
    }

    fn give_up(&self) {
        for disk in &self.disks {
            disk.unlock();
        }
    }
}
