//! Why something cannot be kept, or fetched.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

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
    /// There is no such image.
    #[error("there is no image {0} in pool local; `pindah image list` shows what there is")]
    NoImage(String),
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
        "pool local has {free_mib} MiB free of which {reserve_mib} MiB stay so, and {needed_mib} \
         MiB are needed; delete something, or add space"
    )]
    NoSpace {
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
