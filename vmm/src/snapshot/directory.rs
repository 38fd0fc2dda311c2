//! A snapshot's directory, which is there as a whole or not at all.
//!
//! It is written as `NAME.partial` beside its place and renamed when both files are on disk. A
//! directory that a crash left behind is recognised by nobody holding its lock and is used again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use thiserror::Error;

use super::file::{self, FileError};
use super::memory::{self, LoadError};
use super::{MEMORY_FILE, Manifest, STATE_FILE};
use crate::memory::GuestMemory;

/// Why a directory cannot be made.
#[derive(Debug, Error)]
pub enum CreateError {
    /// Something is there that a snapshot must not replace.
    #[error("{path} exists already; a snapshot replaces nothing")]
    Exists {
        /// What.
        path: PathBuf,
    },
    /// Another snapshot to the same place is being written.
    #[error("another snapshot is being written to {path}")]
    Busy {
        /// Where.
        path: PathBuf,
    },
    /// The path names no directory that could be made.
    #[error("{path} is not the name of a new directory")]
    Name {
        /// What was given.
        path: PathBuf,
    },
    /// The host fails.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CreateError {
    let path = path.to_owned();
    move |source| CreateError::Io {
        action,
        path,
        source,
    }
}

/// A snapshot that is being written. Dropped before [`Self::commit`], it leaves nothing behind.
pub struct PartialSnapshot {
    place: PathBuf,
    partial: PathBuf,
    /// Holds the lock.
    directory: File,
    /// Empty, for the VMM to write.
    pub state: File,
    /// Empty, for the VMM to write.
    pub memory: File,
    committed: bool,
}

impl PartialSnapshot {
    /// Makes the directory under its temporary name and both files in it, readable by the owner
    /// only: they hold all that the guest knows.
    ///
    /// # Errors
    /// [`CreateError`]; nothing has changed.
    pub fn create(place: &Path) -> Result<Self, CreateError> {
        let name = place.file_name().ok_or_else(|| CreateError::Name {
            path: place.to_owned(),
        })?;
        let mut partial_name = name.to_owned();
        partial_name.push(".partial");
        let partial = place.with_file_name(partial_name);
        refuse_existing(place)?;
        match DirBuilder::new().mode(0o700).create(&partial) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("create", &partial)(error));
            }
            _ => {}
        }
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32)
            .open(&partial)
            .map_err(failed("open", &partial))?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(
            |errno| match errno {
                rustix::io::Errno::WOULDBLOCK => CreateError::Busy {
                    path: place.to_owned(),
                },
                errno => failed("lock", &partial)(errno.into()),
            },
        )?;
        let state = create_empty(&partial.join(STATE_FILE))?;
        let memory = create_empty(&partial.join(MEMORY_FILE))?;
        Ok(Self {
            place: place.to_owned(),
            partial,
            directory,
            state,
            memory,
            committed: false,
        })
    }

    /// Puts the directory in its place. The VMM has written the files and synced them.
    ///
    /// # Errors
    /// [`CreateError`]; there is no snapshot.
    pub fn commit(mut self) -> Result<(), CreateError> {
        self.directory
            .sync_all()
            .map_err(failed("sync", &self.partial))?;
        refuse_existing(&self.place)?;
        fs::rename(&self.partial, &self.place).map_err(failed("rename", &self.partial))?;
        self.committed = true;
        let parent = match self.place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(failed("sync", parent))
    }
}

impl Drop for PartialSnapshot {
    fn drop(&mut self) {
        if !self.committed {
            // The next snapshot to this place clears what cannot be removed now.
            let _ = fs::remove_file(self.partial.join(STATE_FILE));
            let _ = fs::remove_file(self.partial.join(MEMORY_FILE));
            let _ = fs::remove_dir(&self.partial);
        }
    }
}

/// An empty directory may be there: rename(2) replaces it.
fn refuse_existing(place: &Path) -> Result<(), CreateError> {
    match fs::read_dir(place).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(false) => Err(CreateError::Exists {
            path: place.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(CreateError::Exists {
            path: place.to_owned(),
        }),
        Err(error) => Err(failed("read", place)(error)),
    }
}

/// Takes away what a crash left, and follows no link that somebody else put there.
fn create_empty(path: &Path) -> Result<File, CreateError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", path)(error));
        }
        _ => {}
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("create", path))
}

/// Why a snapshot cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A file cannot be opened.
    #[error("snapshot file {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state file is refused.
    #[error("snapshot {path}")]
    State {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: FileError,
    },
}

/// A snapshot to start from.
#[derive(Debug)]
pub struct Snapshot {
    /// The machine's state and what the memory file must hold.
    pub manifest: Manifest,
    memory: File,
}

impl Snapshot {
    /// Opens both files and reads the state.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let open = |name: &str| {
            let path = directory.join(name);
            File::open(&path).map_err(|source| OpenError::Open { path, source })
        };
        let manifest = file::read(&open(STATE_FILE)?).map_err(|source| OpenError::State {
            path: directory.to_owned(),
            source,
        })?;
        Ok(Self {
            manifest,
            memory: open(MEMORY_FILE)?,
        })
    }

    /// Fills guest RAM, which must be fresh: all zeroes. Pages that are zero stay untouched.
    ///
    /// # Errors
    /// [`LoadError`]; the memory's content is then worth nothing.
    pub fn load_memory(&self, memory: &GuestMemory) -> Result<(), LoadError> {
        memory::load(&self.memory, &self.manifest.memory, memory)
    }
}
