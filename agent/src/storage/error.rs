//! Why something cannot be kept, or fetched.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::domain::{Invalid, PoolName};
use crate::store::StoreError;

/// Why a pool does not do what it was asked for.
#[derive(Debug, Error)]
pub enum StorageError {
    /// A file of the pool's.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such pool.
    #[error("there is no pool {0}; `pindah pool list` shows what there is")]
    NoPool(PoolName),
    /// Nothing new goes to the pool.
    #[error(
        "pool {0} is being deleted; if that was cut short, `pindah pool delete {0}` brings it to its \
         end"
    )]
    Deleting(PoolName),
    /// There is a pool of that name.
    #[error("there is a pool {0} already; choose another name")]
    PoolExists(PoolName),
    /// The node's own pool.
    #[error("pool local belongs to the node and cannot be deleted")]
    BuiltIn,
    /// What would be lost with the pool.
    #[error("{0}")]
    InUse(String),
    /// A directory that cannot be a pool's.
    #[error("{path} cannot be a pool: {reason}")]
    BadPath {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A value.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A pool that this node cannot use now.
    #[error("pool {pool} cannot be used: {reason}")]
    Unavailable {
        /// The pool.
        pool: PoolName,
        /// What is wrong.
        reason: String,
    },
    /// A pool that does not answer.
    #[error("pool {pool} has not answered for {seconds} s; look at its storage, and try again")]
    Stalled {
        /// The pool.
        pool: PoolName,
        /// How long.
        seconds: u64,
    },
    /// A pool that does not hold what it is asked to.
    #[error("pool {pool} {reason}")]
    Unfit {
        /// The pool.
        pool: PoolName,
        /// What it holds, and what to do.
        reason: &'static str,
    },
    /// Another node changes the pool's volumes.
    #[error("the volumes of pool {pool} are being changed by node {node}; try again")]
    Locked {
        /// The pool.
        pool: PoolName,
        /// The node.
        node: String,
    },
    /// LVM fails.
    #[error("lvm cannot {action}: {reason}")]
    Lvm {
        /// What it was to do.
        action: &'static str,
        /// What it says.
        reason: String,
    },
    /// A block device cannot be zeroed.
    #[error("{path} cannot be filled with zeroes: {reason}")]
    Zero {
        /// The device.
        path: PathBuf,
        /// What `blkdiscard` says.
        reason: String,
    },
    /// There is no such image.
    #[error("there is no image {image} in pool {pool}; `pindah image list` shows what there is")]
    NoImage {
        /// The image.
        image: String,
        /// The pools that were looked into.
        pool: String,
    },
    /// The disk's place is taken.
    #[error("there is a disk {0} already; if it is not needed, remove it")]
    VolumeExists(PathBuf),
    /// The disk is gone.
    #[error("there is no disk {0}; somebody beside the agent has removed it")]
    NoVolume(PathBuf),
    /// The image is there already.
    #[error("there is an image {0} already; delete it first, or choose another name")]
    ImageExists(String),
    /// The file is no image that can be taken.
    #[error("{name} cannot be taken: {reason}")]
    BadImage {
        /// The image.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The disk would be smaller than what is copied into it.
    #[error(
        "a disk of {wanted_mib} MiB cannot hold image {image}, which has {image_mib} MiB; \
         make it larger"
    )]
    TooSmall {
        /// The image.
        image: String,
        /// Size of the image.
        image_mib: u64,
        /// Size that the disk should have.
        wanted_mib: u64,
    },
    /// Not enough space.
    #[error(
        "pool {pool} has {free_mib} MiB free of which {reserve_mib} MiB stay so, and {needed_mib} \
         MiB are needed; delete something, or add space"
    )]
    NoSpace {
        /// The pool.
        pool: PoolName,
        /// What is needed.
        needed_mib: u64,
        /// What is free.
        free_mib: u64,
        /// What is not given away.
        reserve_mib: u64,
    },
    /// `qemu-img` fails.
    #[error("qemu-img cannot {action}: {reason}")]
    QemuImg {
        /// What it was to do.
        action: &'static str,
        /// What it says.
        reason: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller gave up.
    #[error("it was cancelled")]
    Cancelled,
}

impl StorageError {
    /// For `map_err` on what a file's operation says.
    pub(super) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
