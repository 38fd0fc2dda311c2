//! Guests' disks in a pool's directory, with plain calls to the file system.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};

use uuid::Uuid;

use super::directory::{Directory, require_plain_file};
use super::{StorageError, VolumeFile};
use crate::domain::FileName;

impl Directory {
    /// Makes the directory for a guest's disks.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub(super) fn make_guest_directory(&self, guest: Uuid) -> Result<(), StorageError> {
        let directory = self.guest_directory(guest);
        let made = fs::DirBuilder::new().mode(0o700).create(&directory);
        match made {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                self.require_guest_directory(guest)
            }
            made => made.map_err(StorageError::io("create", &directory)),
        }
    }

    /// Sees that a guest's disk is there, and a file.
    ///
    /// # Errors
    /// [`StorageError::BadImage`], [`StorageError::Io`].
    pub(super) fn require_volume(&self, guest: Uuid, file: &FileName) -> Result<(), StorageError> {
        self.require_guest_directory(guest)?;
        let directory = self.guest_directory(guest);
        require_plain_file(&directory.join(file.as_str()), file.as_str())
    }

    /// Whoever can write to a NAS could put a link in its place.
    fn require_guest_directory(&self, guest: Uuid) -> Result<(), StorageError> {
        let directory = self.guest_directory(guest);
        let found = fs::symlink_metadata(&directory);
        if found.is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        Err(StorageError::Unavailable {
            pool: self.pool.clone(),
            reason: format!("there is no directory {}", directory.display()),
        })
    }

    /// Removes all disks of a guest. Nothing happens if there are none.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub(super) fn delete_volumes(&self, guest: Uuid) -> Result<(), StorageError> {
        let directory = self.guest_directory(guest);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(StorageError::io("remove", &directory)),
        }
    }

    /// A guest's disk.
    ///
    /// # Errors
    /// As [`Self::require_volume`].
    pub(super) fn volume(&self, guest: Uuid, file: &FileName) -> Result<VolumeFile, StorageError> {
        self.require_volume(guest, file)?;
        let path = self.guest_directory(guest).join(file.as_str());
        let found = fs::symlink_metadata(&path).map_err(StorageError::io("look at", &path))?;
        Ok(volume_file(guest, file.to_string(), &found))
    }

    /// All disks. What is none is left out.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub(super) fn list_volumes(&self) -> Result<Vec<VolumeFile>, StorageError> {
        let volumes = self.volumes();
        let entries = fs::read_dir(&volumes).map_err(StorageError::io("list", &volumes))?;
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(guest) = name.to_str().and_then(|name| Uuid::parse_str(name).ok()) else {
                continue;
            };
            if self.require_guest_directory(guest).is_err() {
                continue;
            }
            for disk in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                if let Ok(metadata) = disk.metadata()
                    && metadata.is_file()
                {
                    let file = disk.file_name().to_string_lossy().into_owned();
                    found.push(volume_file(guest, file, &metadata));
                }
            }
        }
        found.sort_by(|a, b| (a.guest, &a.file).cmp(&(b.guest, &b.file)));
        Ok(found)
    }

    /// Returns when the storage keeps the disk, and its name.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub(super) fn sync_volume(&self, guest: Uuid, file: &FileName) -> Result<(), StorageError> {
        let directory = self.guest_directory(guest);
        let path = directory.join(file.as_str());
        self.require_volume(guest, file)?;
        for path in [&path, &directory, &self.volumes()] {
            let synced = File::open(path).and_then(|file| file.sync_all());
            synced.map_err(StorageError::io("write", path))?;
        }
        Ok(())
    }

    /// Removes one disk, and the guest's directory with the last one.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub(super) fn remove_volume(&self, guest: Uuid, file: &FileName) -> Result<(), StorageError> {
        let directory = self.guest_directory(guest);
        let path = directory.join(file.as_str());
        if directory.symlink_metadata().is_ok() {
            self.require_guest_directory(guest)?;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed.map_err(StorageError::io("remove", &path))?,
        }
        // There may be others in it.
        let _ = fs::remove_dir(&directory);
        Ok(())
    }
}

fn volume_file(guest: Uuid, file: String, metadata: &fs::Metadata) -> VolumeFile {
    VolumeFile {
        guest,
        file,
        bytes: metadata.len(),
        allocated_bytes: metadata.blocks() * 512,
    }
}
