//! The disk behind a device, whatever its image's format.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use pindah_vmm_api::DiskFormat;
use thiserror::Error;

use super::engine::{Blocking, Engine};
use super::open::DiskResources;
use super::pool::Pool;
use super::qcow2::Qcow2Image;
use super::raw::RawImage;
use super::request::SECTOR_SIZE;
use super::uring::Uring;

/// One image, shared by all queues.
#[derive(Clone)]
pub(super) enum Disk {
    Raw(Arc<RawImage>),
    Qcow2(Arc<Qcow2Image>),
}

/// Why a disk keeps its size.
#[derive(Debug, Error)]
pub enum ResizeError {
    /// Guests do not expect a disk to lose its end.
    #[error("disk {id} has {from} bytes and cannot shrink to {to} while the guest runs")]
    Shrink {
        /// The device.
        id: String,
        /// Its size.
        from: u64,
        /// The size that was asked for.
        to: u64,
    },
    /// A disk has whole sectors.
    #[error("disk {id} cannot have {to} bytes: not a multiple of {multiple}")]
    Multiple {
        /// The device.
        id: String,
        /// The size that was asked for.
        to: u64,
        /// What it must be a multiple of.
        multiple: u64,
    },
    /// We may not write the image.
    #[error("disk {id} is read-only and keeps its size")]
    ReadOnly {
        /// The device.
        id: String,
    },
    /// A block device is resized by who made it.
    #[error("disk {id} is a block device of {actual} bytes; resize that first, then say {actual}")]
    BlockDevice {
        /// The device.
        id: String,
        /// The block device's size in bytes.
        actual: u64,
    },
    /// The host refused.
    #[error("disk {id} cannot grow to {to} bytes")]
    Host {
        /// The device.
        id: String,
        /// The size that was asked for.
        to: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Disk {
    /// # Errors
    /// The descriptors are not of an image that we can use.
    pub fn new(resources: DiskResources) -> io::Result<Self> {
        Ok(match resources.image.format {
            DiskFormat::Raw => Self::Raw(Arc::new(RawImage::new(resources.image.file)?)),
            DiskFormat::Qcow2 => Self::Qcow2(Arc::new(Qcow2Image::new(resources)?)),
        })
    }

    /// One engine a queue, each for `slots` operations at a time; without a ring if not `ring`.
    ///
    /// # Errors
    /// The host has no threads or eventfds left.
    pub fn engines(
        &self,
        id: &str,
        queues: u8,
        slots: u16,
        ring: bool,
    ) -> io::Result<Vec<Box<dyn Engine>>> {
        match self {
            Self::Raw(image) => (0..queues)
                .map(|_| raw_engine(image, id, slots, ring))
                .collect(),
            Self::Qcow2(image) => {
                let pool = Pool::new(id, image)?;
                (0..queues)
                    .map(|_| Ok(Box::new(pool.engine()?) as _))
                    .collect()
            }
        }
    }

    /// Before the first request: nobody else writes the image from here on.
    ///
    /// # Errors
    /// The image cannot be read, or is not what it was.
    pub fn open(&self) -> io::Result<()> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Qcow2(image) => image.open(),
        }
    }

    /// Forgets what is cached of the image, which somebody else has written; returns the disk's
    /// size in bytes.
    ///
    /// # Errors
    /// The image cannot be read, or is not what it was.
    pub fn reload(&self) -> io::Result<u64> {
        match self {
            Self::Raw(image) => (&mut image.file()).seek(SeekFrom::End(0)),
            Self::Qcow2(image) => image.reload(),
        }
    }

    /// After the last request: the file holds all that a reader on this host must see.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn settle(&self) -> io::Result<()> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Qcow2(image) => image.settle(),
        }
    }

    /// Makes the disk `to` bytes large; it has `from`.
    ///
    /// # Errors
    /// [`ResizeError`]; the disk then has its old size.
    pub fn resize(&self, id: &str, from: u64, to: u64) -> Result<(), ResizeError> {
        let id = || id.to_owned();
        let multiple = match self {
            Self::Raw(image) => image.alignment().offset.max(SECTOR_SIZE),
            Self::Qcow2(_) => SECTOR_SIZE,
        };
        if !to.is_multiple_of(multiple) {
            let id = id();
            return Err(ResizeError::Multiple { id, to, multiple });
        }
        if to < from {
            return Err(ResizeError::Shrink { id: id(), from, to });
        }
        let failed = |source| ResizeError::Host {
            id: id(),
            to,
            source,
        };
        match self {
            Self::Qcow2(image) => image.grow(to).map_err(failed),
            Self::Raw(image) => match block_device_size(image.file()).map_err(failed)? {
                Some(actual) if actual != to => Err(ResizeError::BlockDevice { id: id(), actual }),
                Some(_) => Ok(()),
                None => image.file().set_len(to).map_err(failed),
            },
        }
    }
}

fn block_device_size(mut file: &File) -> io::Result<Option<u64>> {
    if file.metadata()?.file_type().is_block_device() {
        file.seek(SeekFrom::End(0)).map(Some)
    } else {
        Ok(None)
    }
}

fn raw_engine(
    image: &Arc<RawImage>,
    id: &str,
    slots: u16,
    ring: bool,
) -> io::Result<Box<dyn Engine>> {
    if ring && !is_in_memory(image.file()) {
        match Uring::new(Arc::clone(image), slots) {
            Ok(uring) => return Ok(Box::new(uring)),
            Err(error) => tracing::warn!(
                device = id,
                "io_uring is not to be had ({error}); requests run one at a time"
            ),
        }
    }
    Ok(Box::new(Blocking::new(Arc::clone(image))?))
}

/// Whether the file lies on a file system that is nothing but memory. There a transfer is a copy,
/// and io_uring, which cannot do it without blocking, would hand each one to another thread.
fn is_in_memory(file: &File) -> bool {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the buffer is a struct statfs.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) };
    // SAFETY: all bits zero is a valid struct statfs, and the kernel only fills it in.
    let kind = unsafe { stat.assume_init() }.f_type;
    result == 0 && kind == libc::TMPFS_MAGIC
}
