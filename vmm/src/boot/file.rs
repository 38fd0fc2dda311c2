//! A file that holds a kernel, an initial RAM disk or firmware: open, with its name and length.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::OpenBootError;
use crate::memory::GuestMemory;

/// An open image file. It stays open, so that a reset can load it again.
#[derive(Debug)]
pub struct ImageFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl ImageFile {
    /// Opens `path`, which must be a regular file that is not empty.
    ///
    /// # Errors
    /// [`OpenBootError::Open`], [`OpenBootError::NotAFile`] or [`OpenBootError::Empty`].
    pub fn open(path: &Path) -> Result<Self, OpenBootError> {
        // O_NONBLOCK: a FIFO would wait for a writer before anyone could say that it is one.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|source| OpenBootError::Open {
                path: path.to_owned(),
                source,
            })?;
        Self::new(path, file)
    }

    /// Takes a file that is open already; `path` names it in messages.
    ///
    /// # Errors
    /// [`OpenBootError::Open`], [`OpenBootError::NotAFile`] or [`OpenBootError::Empty`].
    pub fn new(path: &Path, file: File) -> Result<Self, OpenBootError> {
        let path = path.to_owned();
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(OpenBootError::Open { path, source }),
        };
        if !metadata.is_file() {
            return Err(OpenBootError::NotAFile { path });
        }
        match metadata.len() {
            0 => Err(OpenBootError::Empty { path }),
            len => Ok(Self { path, file, len }),
        }
    }

    /// The name for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes when it was opened; never 0.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes. Never so: opening refuses that.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Up to `max` bytes at `offset`, fewer where the file ends.
    ///
    /// # Errors
    /// [`OpenBootError::Read`].
    pub fn read_at(&self, offset: u64, max: usize) -> Result<Vec<u8>, OpenBootError> {
        let available = self.len.saturating_sub(offset).min(max as u64) as usize;
        let mut data = vec![0; available];
        match self.file.read_exact_at(&mut data, offset) {
            Ok(()) => Ok(data),
            Err(source) => Err(OpenBootError::Read {
                path: self.path.clone(),
                source,
            }),
        }
    }

    /// Copies `len` bytes at `offset` to `address` in guest RAM, without a buffer between.
    ///
    /// # Errors
    /// The file cannot be read or is shorter than it was, or the range is not RAM.
    pub fn copy_to(
        &self,
        offset: u64,
        len: u64,
        memory: &GuestMemory,
        address: u64,
    ) -> Result<(), GuestMemoryError> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))
            .map_err(GuestMemoryError::IOError)?;
        let len = usize::try_from(len)
            .map_err(|_| GuestMemoryError::IOError(io::ErrorKind::FileTooLarge.into()))?;
        memory.read_exact_volatile_from(GuestAddress(address), &mut file, len)
    }
}
