//! Image locks as QEMU's tools take and honour them (QEMU `block/file-posix.c`, image locking).
//!
//! For each thing that somebody does to an image there is a byte, and for each thing that they
//! do not let others do there is another. Both are locked shared, so any number of parties may
//! hold them; then each party looks whether somebody else holds a byte that contradicts its own.
//! The locks belong to the open file description: they are gone when its last descriptor is
//! closed, however the process ends, and they work over NFS.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::open::DiskResources;

/// Locked by who does something: first byte, by permission.
const PERMITTED_BASE: i64 = 100;
/// Locked by who does not let others do it.
const UNSHARED_BASE: i64 = 200;

/// Permissions, by their number. QEMU's "write unchanged" (2) we neither need nor forbid.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Why an image cannot be locked.
#[derive(Debug, Error)]
pub enum LockError {
    /// Somebody else uses it.
    #[error(
        "disk image {0} is in use: another process {conflict}; `fuser {0}` shows which",
        path.display()
    )]
    InUse {
        /// The image.
        path: PathBuf,
        /// What the other does.
        conflict: &'static str,
    },
    /// The file system does not do it.
    #[error("disk image {} cannot be locked", path.display())]
    Lock {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How an image is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Read, while nobody writes.
    Read,
    /// Read, written and resized, by nobody else.
    Write,
}

impl Use {
    fn permissions(self) -> &'static [i64] {
        match self {
            Self::Read => &[CONSISTENT_READ],
            Self::Write => &[CONSISTENT_READ, WRITE, RESIZE],
        }
    }
}

/// What we never let others do.
const UNSHARED: [i64; 2] = [WRITE, RESIZE];

/// The locks on all images of one disk. Holds descriptors of its own.
#[derive(Debug)]
pub(super) struct ImageLocks {
    images: Vec<(File, Use, PathBuf)>,
}

impl ImageLocks {
    /// For a disk's images; nothing is locked yet.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new(resources: &DiskResources) -> io::Result<Self> {
        let own = if resources.read_only {
            Use::Read
        } else {
            Use::Write
        };
        let mut images = Vec::new();
        let top = std::iter::once((&resources.image, own));
        let below = resources.backing.iter().map(|image| (image, Use::Read));
        for (image, used) in top.chain(below) {
            images.push((image.file.try_clone()?, used, image.path.clone()));
        }
        Ok(Self { images })
    }

    /// Locks all images, or none.
    ///
    /// # Errors
    /// [`LockError`] names the image.
    pub fn lock(&self) -> Result<(), LockError> {
        let mut result = Ok(());
        for (file, used, path) in &self.images {
            result = lock(file, *used, path);
            if result.is_err() {
                break;
            }
        }
        if result.is_err() {
            self.unlock();
        }
        result
    }

    /// Gives all locks up.
    pub fn unlock(&self) {
        for (file, ..) in &self.images {
            for permission in CONSISTENT_READ..=RESIZE {
                for base in [PERMITTED_BASE, UNSHARED_BASE] {
                    let mut range = byte(libc::F_UNLCK, base + permission);
                    // An unlock fails only where a lock would have failed too.
                    let _ = fcntl(file, libc::F_OFD_SETLK, &mut range);
                }
            }
        }
    }
}

impl Drop for ImageLocks {
    fn drop(&mut self) {
        // The kernel takes its time to let go of the descriptor that is registered with a ring.
        self.unlock();
    }
}

fn lock(file: &File, used: Use, path: &Path) -> Result<(), LockError> {
    let failed = |source| LockError::Lock {
        path: path.to_owned(),
        source,
    };
    let in_use = |conflict| LockError::InUse {
        path: path.to_owned(),
        conflict,
    };
    let permitted = used.permissions().iter().map(|bit| PERMITTED_BASE + bit);
    let unshared = UNSHARED.iter().map(|bit| UNSHARED_BASE + bit);
    for at in permitted.chain(unshared) {
        let mut range = byte(libc::F_RDLCK, at);
        match fcntl(file, libc::F_OFD_SETLK, &mut range) {
            Ok(()) => {}
            Err(error) if is_conflict(&error) => return Err(in_use("locks it exclusively")),
            Err(error) => return Err(failed(error)),
        }
    }
    for &bit in used.permissions() {
        if is_locked(file, UNSHARED_BASE + bit).map_err(failed)? {
            return Err(in_use(match bit {
                CONSISTENT_READ => "does not let others read it",
                WRITE => "does not let others write it",
                _ => "does not let others resize it",
            }));
        }
    }
    for bit in UNSHARED {
        if is_locked(file, PERMITTED_BASE + bit).map_err(failed)? {
            return Err(in_use(if bit == WRITE {
                "writes it"
            } else {
                "resizes it"
            }));
        }
    }
    Ok(())
}

/// Whether another open file description has a lock on this byte.
fn is_locked(file: &File, at: i64) -> io::Result<bool> {
    let mut range = byte(libc::F_WRLCK, at);
    fcntl(file, libc::F_OFD_GETLK, &mut range)?;
    Ok(i32::from(range.l_type) != libc::F_UNLCK)
}

fn is_conflict(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

fn byte(kind: i32, at: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    }
}

fn fcntl(file: &File, command: i32, range: &mut libc::flock) -> io::Result<()> {
    // SAFETY: these commands read and write one struct flock.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(range)) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
