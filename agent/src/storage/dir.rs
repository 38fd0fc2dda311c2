//! A pool in a directory of the node's own.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use pindah_vmm_api::DiskFormat;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Image, ImageFormat, StorageError, qemu_img};
use crate::domain::{Disk, FileName};

/// Space that is not given to new disks and images, in MiB: guests' disks grow.
const RESERVE_MIB: u64 = 256;

/// A pool.
#[derive(Clone, Debug)]
pub struct DirPool {
    directory: PathBuf,
}

/// How full a pool is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Size of the file system that it is on, in MiB.
    pub total_mib: u64,
    /// What is free of it, in MiB.
    pub free_mib: u64,
}

impl DirPool {
    /// Opens or creates the pool in `directory`, and removes what was half-made when an agent
    /// before us ended.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn open(directory: &Path) -> Result<Self, StorageError> {
        let pool = Self {
            directory: directory.to_owned(),
        };
        let incoming = pool.incoming();
        if incoming.exists() {
            fs::remove_dir_all(&incoming).map_err(StorageError::io("clear", &incoming))?;
        }
        for part in [incoming, pool.images(), pool.volumes()] {
            let mut builder = fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(&part);
            made.map_err(StorageError::io("create", &part))?;
        }
        Ok(pool)
    }

    fn images(&self) -> PathBuf {
        self.directory.join("images")
    }

    fn volumes(&self) -> PathBuf {
        self.directory.join("volumes")
    }

    /// Where images are until they are complete.
    pub(super) fn incoming(&self) -> PathBuf {
        self.directory.join("incoming")
    }

    /// Where the image's file is, or would be.
    pub fn image_path(&self, name: &FileName) -> PathBuf {
        self.images().join(name.as_str())
    }

    /// Beside the images, so that no image can have its name.
    pub(super) fn description_path(&self, name: &FileName) -> PathBuf {
        self.images().join(format!(".{name}.json"))
    }

    /// Where the guest's disk is, or would be.
    pub fn volume_path(&self, guest: Uuid, disk: &Disk) -> PathBuf {
        self.guest_directory(guest).join(disk.volume.file.as_str())
    }

    fn guest_directory(&self, guest: Uuid) -> PathBuf {
        self.volumes().join(guest.to_string())
    }

    /// How full it is.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn status(&self) -> Result<PoolStatus, StorageError> {
        let space = rustix::fs::statvfs(&self.directory)
            .map_err(|error| StorageError::io("look at", &self.directory)(error.into()))?;
        let mib = |blocks: u64| blocks.saturating_mul(space.f_frsize) >> 20;
        Ok(PoolStatus {
            name: "local".to_owned(),
            kind: "dir".to_owned(),
            total_mib: mib(space.f_blocks),
            free_mib: mib(space.f_bavail),
        })
    }

    /// Refuses what does not fit.
    ///
    /// # Errors
    /// [`StorageError::NoSpace`], [`StorageError::Io`].
    pub fn require_space(&self, needed_mib: u64) -> Result<(), StorageError> {
        let free_mib = self.status()?.free_mib;
        if needed_mib.saturating_add(RESERVE_MIB) <= free_mib {
            return Ok(());
        }
        Err(StorageError::NoSpace {
            needed_mib,
            free_mib,
            reserve_mib: RESERVE_MIB,
        })
    }

    /// An image.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], [`StorageError::Io`].
    pub fn image(&self, name: &FileName) -> Result<Image, StorageError> {
        let path = self.description_path(name);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StorageError::NoImage(name.to_string()));
            }
            read => read.map_err(StorageError::io("read", &path))?,
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| StorageError::io("read", &path)(error.into()))
    }

    /// All images, by name.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn list_images(&self) -> Result<Vec<Image>, StorageError> {
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

    /// Removes an image. Disks that were made from it are copies and stay.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], [`StorageError::Io`].
    pub fn delete_image(&self, name: &FileName) -> Result<(), StorageError> {
        self.image(name)?;
        for path in [self.image_path(name), self.description_path(name)] {
            fs::remove_file(&path).map_err(StorageError::io("remove", &path))?;
        }
        Ok(())
    }

    /// Makes a guest's disk: empty, or a copy of `source`. Returns its size in MiB. What is
    /// half-made when this fails goes with [`Self::delete_volumes`].
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn create_volume(
        &self,
        guest: Uuid,
        disk: &Disk,
        source: Option<&FileName>,
        progress: impl FnMut(u8) + Send,
    ) -> Result<u64, StorageError> {
        let size_mib = self.volume_size(disk, source)?;
        self.require_space(self.volume_need(disk, source, size_mib)?)?;
        let directory = self.guest_directory(guest);
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&directory);
        made.map_err(StorageError::io("create", &directory))?;
        let path = self.volume_path(guest, disk);
        let format = format_name(disk.format);
        let bytes = size_mib << 20;
        let Some(source) = source else {
            qemu_img::create(&path, format, bytes).await?;
            return Ok(size_mib);
        };
        let image = self.image(source)?;
        let from = (&*self.image_path(source), image.format);
        qemu_img::convert(from, (&path, format), progress).await?;
        if image.virtual_bytes < bytes {
            qemu_img::grow(&path, format, bytes).await?;
        }
        Ok(size_mib)
    }

    /// Size that the disk will have, in MiB.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], [`StorageError::TooSmall`].
    pub fn volume_size(&self, disk: &Disk, source: Option<&FileName>) -> Result<u64, StorageError> {
        let Some(source) = source else {
            return Ok(disk.size_mib);
        };
        let image_mib = self.image(source)?.virtual_bytes.div_ceil(1 << 20);
        match disk.size_mib {
            0 => Ok(image_mib),
            wanted_mib if wanted_mib < image_mib => Err(StorageError::TooSmall {
                image: source.to_string(),
                image_mib,
                wanted_mib,
            }),
            wanted_mib => Ok(wanted_mib),
        }
    }

    /// Space that it takes at once, in MiB: a raw disk may be written at any moment and counts in
    /// full, a qcow2 counts with what is copied into it.
    fn volume_need(
        &self,
        disk: &Disk,
        source: Option<&FileName>,
        size_mib: u64,
    ) -> Result<u64, StorageError> {
        match (disk.format, source) {
            (DiskFormat::Raw, _) => Ok(size_mib),
            (DiskFormat::Qcow2, None) => Ok(1),
            (DiskFormat::Qcow2, Some(source)) => {
                let image = self.image(source)?;
                Ok(match image.format {
                    // Compressed, it may grow to its full size.
                    ImageFormat::Qcow2 | ImageFormat::Vmdk => image.virtual_bytes,
                    ImageFormat::Raw => image.file_bytes,
                }
                .div_ceil(1 << 20))
            }
        }
    }

    /// Removes all disks of a guest. Nothing happens if there are none.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn delete_volumes(&self, guest: Uuid) -> Result<(), StorageError> {
        let directory = self.guest_directory(guest);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(StorageError::io("remove", &directory)),
        }
    }
}

fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}
