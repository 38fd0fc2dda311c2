//! From a path to open descriptors, and the facts about them that the device needs.
//!
//! This runs before the sandbox, in whoever may open paths: the thin command line, or an agent
//! that passes the descriptors on. A device never sees a path but in messages.

use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pindah_vmm_api::{DiskCache, DiskFormat};
use thiserror::Error;

use super::alignment::{AlignedBuffer, Alignment};
use super::qcow2_header::{Qcow2Header, Qcow2HeaderError, looks_like_qcow2};
use super::raw::read_some;

/// Most images in a backing chain, the top one included.
pub const MAX_CHAIN: usize = 64;

/// Which image, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageOptions {
    /// Image file or block device.
    pub path: PathBuf,
    /// Never guessed, as a raw disk's content belongs to the guest.
    pub format: DiskFormat,
    /// The guest may not write.
    pub read_only: bool,
    /// How the host caches.
    pub cache: DiskCache,
}

/// One open image of a chain.
#[derive(Debug)]
pub struct Image {
    /// Open for reading, and for writing where the guest may write; with `O_DIRECT` where the
    /// host's cache is not to be used.
    pub file: File,
    /// What is in it.
    pub format: DiskFormat,
    /// For messages only.
    pub path: PathBuf,
}

/// Everything that a block device needs from outside.
#[derive(Debug)]
pub struct DiskResources {
    /// The image itself.
    pub image: Image,
    /// What stands behind a qcow2 image, nearest first.
    pub backing: Vec<Image>,
    /// The guest may not write.
    pub read_only: bool,
    /// Size of the disk in bytes, a multiple of 512.
    pub(super) size: u64,
}

/// Why a disk cannot be opened.
#[derive(Debug, Error)]
pub enum OpenDiskError {
    /// The file is not there, or not for us.
    #[error("cannot open disk image {}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be written, which the guest would want.
    #[error("cannot open disk image {} for writing; read_only = true would do without", path.display())]
    Write {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file system lacks `O_DIRECT`.
    #[error(
        "disk image {} is on a file system without direct I/O; use cache = \"buffered\"",
        path.display()
    )]
    Direct {
        /// The image.
        path: PathBuf,
    },
    /// A directory, a socket, …
    #[error("disk image {} is {what}, neither a regular file nor a block device", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// There is no disk in it.
    #[error(
        "disk image {0} is empty; `truncate -s 10G {0}` makes an empty disk of 10 GiB of it",
        path.display()
    )]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// A disk has whole sectors.
    #[error(
        "disk image {0} has {size} bytes, which is not a multiple of {multiple}; \
         `truncate -s %{multiple} {0}` fills it up{advice}",
        path.display()
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What it must be a multiple of.
        multiple: u64,
        /// Another way out, or nothing.
        advice: &'static str,
    },
    /// The image's header is not one that we take.
    #[error("qcow2 image {} cannot be used", path.display())]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: Qcow2HeaderError,
    },
    /// The format of the backing file is not recorded, and guessing it would let a guest choose.
    #[error(
        "qcow2 image {0} does not say the format of its backing file {backing:?}; \
         `qemu-img rebase -u -b {backing:?} -F raw {0}` (or -F qcow2) records it",
        path.display()
    )]
    BackingFormatAbsent {
        /// The image above.
        path: PathBuf,
        /// The backing file, as the header names it.
        backing: String,
    },
    /// Neither raw nor qcow2.
    #[error(
        "qcow2 image {} has the backing file {backing:?} of format {format:?}; \
         only \"raw\" and \"qcow2\" can be used",
        path.display()
    )]
    BackingFormat {
        /// The image above.
        path: PathBuf,
        /// The backing file, as the header names it.
        backing: String,
        /// Its format, as the header names it.
        format: String,
    },
    /// Not a file of this host.
    #[error("qcow2 image {} has the backing file {backing:?}, which is not a path", path.display())]
    BackingName {
        /// The image above.
        path: PathBuf,
        /// The backing file, as the header names it.
        backing: String,
    },
    /// The image below cannot be opened.
    #[error("qcow2 image {} needs its backing file", path.display())]
    Backing {
        /// The image above.
        path: PathBuf,
        /// What is wrong below.
        #[source]
        source: Box<OpenDiskError>,
    },
    /// An image stands behind itself.
    #[error("the backing files of {} form a loop: {} comes twice", top.display(), path.display())]
    BackingLoop {
        /// The disk's image.
        top: PathBuf,
        /// The one that comes twice.
        path: PathBuf,
    },
    /// More than [`MAX_CHAIN`].
    #[error(
        "disk image {} has more than {MAX_CHAIN} images in its backing chain; \
         `qemu-img commit` or `qemu-img rebase` shortens it",
        top.display()
    )]
    BackingDepth {
        /// The disk's image.
        top: PathBuf,
    },
}

/// Opens an image and what stands behind it.
///
/// # Errors
/// [`OpenDiskError`], which names the path and what to do.
pub fn open(options: &ImageOptions) -> Result<DiskResources, OpenDiskError> {
    let direct = options.cache == DiskCache::Direct;
    let file = open_file(&options.path, !options.read_only, direct)?;
    let image = Image {
        file,
        format: options.format,
        path: options.path.clone(),
    };
    let backing = open_backing(&image, direct)?;
    DiskResources::new(image, backing, options.read_only)
}

impl DiskResources {
    /// Takes descriptors that are open already. `backing` is nearest first, and must be as the
    /// headers say.
    ///
    /// # Errors
    /// [`OpenDiskError`] if the image is not one that a disk can be made of.
    pub fn new(image: Image, backing: Vec<Image>, read_only: bool) -> Result<Self, OpenDiskError> {
        let size = disk_size(&image)?;
        Ok(Self {
            image,
            backing,
            read_only,
            size,
        })
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

fn open_file(path: &Path, write: bool, direct: bool) -> Result<File, OpenDiskError> {
    let path_buf = || path.to_owned();
    // Before the open, which would wait for a writer if this were a FIFO.
    let metadata = std::fs::metadata(path).map_err(|source| OpenDiskError::Open {
        path: path_buf(),
        source,
    })?;
    if let Some(what) = not_a_disk(&metadata) {
        let path = path_buf();
        return Err(OpenDiskError::Kind { path, what });
    }
    let open = |write: bool, flags: i32| {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(flags | libc::O_CLOEXEC)
            .open(path)
    };
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let source = match open(write, flags) {
        Ok(file) => return Ok(file),
        Err(error) => error,
    };
    let path = path_buf();
    if direct && source.raw_os_error() == Some(libc::EINVAL) {
        return Err(OpenDiskError::Direct { path });
    }
    if write && open(false, 0).is_ok() {
        return Err(OpenDiskError::Write { path, source });
    }
    Err(OpenDiskError::Open { path, source })
}

fn not_a_disk(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_char_device() {
        Some("a character device")
    } else if kind.is_fifo() {
        Some("a FIFO")
    } else {
        Some("a socket")
    }
}

/// Follows the backing files that the headers name, from the image's own directory.
fn open_backing(top: &Image, direct: bool) -> Result<Vec<Image>, OpenDiskError> {
    let mut chain: Vec<Image> = Vec::new();
    let mut seen = BTreeSet::from([identity(top)?]);
    loop {
        let above = chain.last().unwrap_or(top);
        let Some((path, format)) = backing_of(above)? else {
            return Ok(chain);
        };
        if chain.len() + 1 == MAX_CHAIN {
            return Err(OpenDiskError::BackingDepth {
                top: top.path.clone(),
            });
        }
        let file = open_file(&path, false, direct).map_err(|source| OpenDiskError::Backing {
            path: above.path.clone(),
            source: Box::new(source),
        })?;
        let image = Image { file, format, path };
        if !seen.insert(identity(&image)?) {
            return Err(OpenDiskError::BackingLoop {
                top: top.path.clone(),
                path: image.path,
            });
        }
        chain.push(image);
    }
}

fn identity(image: &Image) -> Result<(u64, u64), OpenDiskError> {
    let metadata = image.file.metadata().map_err(failed(image))?;
    Ok((metadata.dev(), metadata.ino()))
}

fn backing_of(image: &Image) -> Result<Option<(PathBuf, DiskFormat)>, OpenDiskError> {
    if image.format == DiskFormat::Raw {
        return Ok(None);
    }
    let Some(backing) = header(image)?.backing else {
        return Ok(None);
    };
    let (path, name) = (image.path.clone(), backing.name);
    let format = match backing.format.as_deref() {
        Some("raw") => DiskFormat::Raw,
        Some("qcow2") => DiskFormat::Qcow2,
        None => {
            return Err(OpenDiskError::BackingFormatAbsent {
                path,
                backing: name,
            });
        }
        Some(format) => {
            return Err(OpenDiskError::BackingFormat {
                format: format.to_owned(),
                path,
                backing: name,
            });
        }
    };
    let plain = name.strip_prefix("file:").unwrap_or(&name);
    // QEMU takes `protocol:…` before the first slash for something other than a file.
    let is_protocol = plain
        .split('/')
        .next()
        .is_some_and(|first| first.contains(':'));
    if is_protocol {
        return Err(OpenDiskError::BackingName {
            path,
            backing: name,
        });
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    Ok(Some((directory.join(plain), format)))
}

fn header(image: &Image) -> Result<Qcow2Header, OpenDiskError> {
    let len = file_size(image)?;
    Qcow2Header::read(&image.file, len).map_err(|source| OpenDiskError::Qcow2 {
        path: image.path.clone(),
        source,
    })
}

fn disk_size(image: &Image) -> Result<u64, OpenDiskError> {
    if image.format == DiskFormat::Qcow2 {
        return Ok(header(image)?.size);
    }
    let size = file_size(image)?;
    let path = || image.path.clone();
    if size == 0 {
        return Err(OpenDiskError::Empty { path: path() });
    }
    let block = Alignment::of(&image.file).map_err(failed(image))?.offset;
    let multiple = block.max(512);
    if !size.is_multiple_of(multiple) {
        return Err(OpenDiskError::Size {
            path: path(),
            size,
            multiple,
            advice: if size.is_multiple_of(512) {
                ", cache = \"buffered\" takes it as it is"
            } else {
                ""
            },
        });
    }
    let mut start = AlignedBuffer::new(4096);
    read_some(&image.file, &mut start, 0).map_err(failed(image))?;
    if looks_like_qcow2(&start) {
        tracing::warn!(
            "disk image {} is used as raw, but starts as a qcow2 image: the guest sees its header",
            image.path.display()
        );
    }
    Ok(size)
}

/// Size of a file or a block device in bytes.
fn file_size(image: &Image) -> Result<u64, OpenDiskError> {
    (&image.file).seek(SeekFrom::End(0)).map_err(failed(image))
}

fn failed(image: &Image) -> impl Fn(io::Error) -> OpenDiskError {
    let path = image.path.clone();
    move |source| OpenDiskError::Open {
        path: path.clone(),
        source,
    }
}
