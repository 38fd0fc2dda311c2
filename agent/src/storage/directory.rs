//! A pool's directory: its layout, and what is done with plain calls to the file system. All of it
//! may take for ever on a NAS: see [`super::gate`].

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use uuid::Uuid;

use super::mark::Mark;
use super::{Image, StorageError};
use crate::domain::{FileName, PoolName};
use crate::files;

/// Largest description of an image, in bytes.
const DESCRIPTION_MAX: u64 = 64 << 10;

/// Space of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    pub total: u64,
    pub used: u64,
    pub free: u64,
}

/// Where a pool's files are on this node.
#[derive(Debug)]
pub(super) struct Directory {
    /// The pool.
    pub pool: PoolName,
    /// Its path.
    pub root: PathBuf,
    /// The node: what it has half-made is its own.
    pub node: String,
    /// What tells the pool's directory from any other; the node's own needs nothing.
    pub mark: Option<Mark>,
    /// All in it are images, and nothing is written there.
    pub is_media: bool,
    /// A file that is there once this node has made its part of a pool that each node has a part
    /// of.
    pub known: Option<PathBuf>,
    /// Whether what an agent before us left half-made has been removed.
    cleared: Mutex<bool>,
}

impl Directory {
    pub(super) fn new(pool: PoolName, root: PathBuf, node: String, mark: Option<Mark>) -> Self {
        Self {
            pool,
            root,
            node,
            mark,
            is_media: false,
            known: None,
            cleared: Mutex::default(),
        }
    }

    fn images(&self) -> PathBuf {
        if self.is_media {
            return self.root.clone();
        }
        self.root.join("images")
    }

    pub(super) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// Where an image is until it is complete.
    pub(super) fn incoming_path(&self) -> PathBuf {
        let name = format!("{}.{}", self.node, Uuid::new_v4());
        self.incoming().join(name)
    }

    /// Where the image's file is, or would be.
    pub(super) fn image_path(&self, name: &FileName) -> PathBuf {
        self.images().join(name.as_str())
    }

    /// Beside the images, so that no image can have its name.
    pub(super) fn description_path(&self, name: &FileName) -> PathBuf {
        self.images().join(format!(".{name}.json"))
    }

    /// Where the guest's disks are.
    pub(super) fn guest_directory(&self, guest: Uuid) -> PathBuf {
        self.volumes().join(guest.to_string())
    }

    /// Makes it the pool's. It must be there: see [`Self::require_plain`].
    ///
    /// # Errors
    /// [`StorageError::BadPath`], [`StorageError::Io`].
    pub(super) fn found(&self) -> Result<(), StorageError> {
        if let Some(mark) = &self.mark {
            mark.write(&self.root)?;
        }
        self.make_parts()?;
        if let Some(known) = &self.known {
            let parent = known.parent().unwrap_or(known);
            fs::create_dir_all(parent).map_err(StorageError::io("create", parent))?;
            files::replace(known, b"").map_err(StorageError::io("write", known))?;
        }
        Ok(())
    }

    /// Gives it up; what is in it stays.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub(super) fn give_up(&self) -> Result<(), StorageError> {
        if let Some(known) = &self.known {
            // It may never have been there.
            let _ = fs::remove_file(known);
        }
        match &self.mark {
            Some(mark) => mark.remove(&self.root),
            None => Ok(()),
        }
    }

    /// Sees that the directory is there, and nothing else by another name.
    ///
    /// # Errors
    /// [`StorageError::BadPath`].
    pub(super) fn require_plain(&self) -> Result<(), StorageError> {
        self.plain().map_err(|reason| StorageError::BadPath {
            path: self.root.clone(),
            reason,
        })
    }

    fn plain(&self) -> Result<(), String> {
        let real = match self.root.canonicalize() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(format!(
                    "there is no such directory on {}; make it, or mount it, first",
                    self.node
                ));
            }
            Err(error) => return Err(error.to_string()),
            Ok(real) => real,
        };
        if real != self.root {
            return Err(format!(
                "symbolic links lead from it to {}; name that",
                real.display()
            ));
        }
        if real.is_dir() {
            Ok(())
        } else {
            Err("it is no directory".to_owned())
        }
    }

    pub(super) fn make_parts(&self) -> Result<(), StorageError> {
        for part in [self.incoming(), self.images(), self.volumes()] {
            let mut builder = fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(&part);
            made.map_err(StorageError::io("create", &part))?;
        }
        Ok(())
    }

    /// Sees that it is the pool's, and no other that took its place: an empty mount point, a link.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`], [`StorageError::Io`].
    pub(super) fn verify(&self) -> Result<(), StorageError> {
        let unavailable = |reason| StorageError::Unavailable {
            pool: self.pool.clone(),
            reason,
        };
        if self.is_media {
            let found = fs::metadata(&self.root);
            return found
                .map(drop)
                .map_err(StorageError::io("look at", &self.root));
        }
        if self.known.as_ref().is_some_and(|known| !known.exists()) {
            self.require_plain()?;
            self.found()?;
        }
        if let Some(mark) = &self.mark {
            mark.verify(&self.root, &self.node).map_err(unavailable)?;
        }
        for part in [self.incoming(), self.images(), self.volumes()] {
            let found = fs::symlink_metadata(&part);
            let found = found.map_err(StorageError::io("look at", &part))?;
            if !found.is_dir() {
                let reason = format!("{} is no directory", part.display());
                return Err(unavailable(reason));
            }
        }
        let mut cleared = self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        if !*cleared {
            self.clear_incoming()?;
            *cleared = true;
        }
        Ok(())
    }

    /// Removes what this node had half-made when an agent before us ended.
    fn clear_incoming(&self) -> Result<(), StorageError> {
        let incoming = self.incoming();
        let entries = fs::read_dir(&incoming).map_err(StorageError::io("list", &incoming))?;
        let ours = format!("{}.", self.node);
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&ours) {
                let path = entry.path();
                fs::remove_file(&path).map_err(StorageError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// How full it is.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub(super) fn space(&self) -> Result<Space, StorageError> {
        let space = rustix::fs::statvfs(&self.root)
            .map_err(|error| StorageError::io("look at", &self.root)(error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        Ok(Space {
            total: bytes(space.f_blocks),
            used: bytes(space.f_blocks.saturating_sub(space.f_bfree)),
            free: bytes(space.f_bavail),
        })
    }

    /// An image.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], [`StorageError::BadImage`], [`StorageError::Io`].
    pub(super) fn image(&self, name: &FileName) -> Result<Image, StorageError> {
        if self.is_media {
            return self.medium(name);
        }
        let path = self.description_path(name);
        let bytes = match read_plain(&path, DESCRIPTION_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(self.no_image(name));
            }
            read => read.map_err(StorageError::io("read", &path))?,
        };
        let mut image: Image = serde_json::from_slice(&bytes)
            .map_err(|error| StorageError::io("read", &path)(error.into()))?;
        image.name = name.clone();
        image.pool = self.pool.clone();
        require_plain_file(&self.image_path(name), name.as_str())?;
        Ok(image)
    }

    /// All images, by name.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub(super) fn list_images(&self) -> Result<Vec<Image>, StorageError> {
        if self.is_media {
            return self.media();
        }
        let images = self.images();
        let entries = fs::read_dir(&images).map_err(StorageError::io("list", &images))?;
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Ok(name) = FileName::try_from(name)
                && let Ok(image) = self.image(&name)
            {
                found.push(image);
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Removes an image.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], [`StorageError::Io`].
    pub(super) fn delete_image(&self, name: &FileName) -> Result<(), StorageError> {
        // Whatever is there: half of one, or what somebody has put in its place.
        let mut found = false;
        for path in [self.image_path(name), self.description_path(name)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => {
                    removed.map_err(StorageError::io("remove", &path))?;
                    found = true;
                }
            }
        }
        if found {
            return Ok(());
        }
        Err(self.no_image(name))
    }

    pub(super) fn no_image(&self, name: &FileName) -> StorageError {
        StorageError::NoImage {
            image: name.to_string(),
            pool: self.pool.to_string(),
        }
    }
}

/// Whoever can write to a NAS could put a link there, to a file of ours.
pub(super) fn require_plain_file(path: &Path, name: &str) -> Result<(), StorageError> {
    let found = fs::symlink_metadata(path).map_err(StorageError::io("look at", path))?;
    if found.is_file() {
        return Ok(());
    }
    Err(StorageError::BadImage {
        name: name.to_owned(),
        reason: format!("{} is a link or no file", path.display()),
    })
}

/// At most `max` bytes of a file that is no link.
pub(super) fn read_plain(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_plain(path)?.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file that is no link, for reading. One that is a pipe does not hold us up.
pub(super) fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = File::options();
    let options = options.read(true).custom_flags(flags.bits().cast_signed());
    options.open(path)
}

/// A file that was not there before.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// Writes a file that was not there before, and has the disk keep it.
pub(super) fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = create_new(path)?;
    file.write_all(content)?;
    file.sync_all()
}
