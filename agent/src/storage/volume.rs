//! A guest's disk: how large it is, and how it is made.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pindah_vmm_api::DiskFormat;
use uuid::Uuid;

use super::directory::Directory;
use super::pool::{DEADLINE, GROUP_DEADLINE, Place};
use super::qemu_img::{Copying, Target};
use super::volume_group::VolumeGroup;
use super::{Image, ImageFormat, Pool, StorageError, qemu_img};
use crate::domain::{Disk, EXTENT_MIB, FileName, format_name};

/// How long it may take until a disk that was made is kept by the storage.
pub(super) const SYNC_DEADLINE: Duration = Duration::from_secs(600);

/// An image to copy from, and its pool.
#[derive(Clone)]
pub struct Source {
    /// The pool.
    pub pool: Pool,
    /// The image.
    pub image: Image,
}

impl Pool {
    /// Makes a guest's disk, whose size is known: empty, or a copy of `source`. What is half-made
    /// when this fails goes with [`Self::delete_volumes`].
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn create_volume(
        &self,
        guest: Uuid,
        disk: &Disk,
        source: Option<&Source>,
        progress: impl FnMut(u8) + Send,
    ) -> Result<(), StorageError> {
        let image = source.map(|source| &source.image);
        self.require_space(volume_need_mib(disk, image)).await?;
        self.require_vacant(guest, disk).await?;
        let Some(source) = source else {
            return match self.place() {
                Place::Files { .. } => self.create_empty_file(guest, disk).await,
                Place::Volumes(group) => self.fill_block(group, guest, disk, None, progress).await,
            };
        };
        // Whoever can write to a NAS may have put another one there since it was uploaded.
        let image = source.pool.image(&source.image.name).await?;
        let from = source.pool.image_path(&image.name)?;
        let virtual_bytes = image.require_whole(&from).await?;
        let bytes = disk.size_mib << 20;
        let from = (&*from, image.format);
        match self.place() {
            Place::Files { .. } => {
                self.copy_to_file(guest, disk, (from, Copying::Cached), progress)
                    .await?;
                if virtual_bytes < bytes {
                    let path = self.volume_path(guest, disk);
                    qemu_img::grow(&path, format_name(disk.format), bytes).await?;
                }
                self.sync_volume(guest, disk).await
            }
            Place::Volumes(group) => {
                let from = Some((from, Copying::Cached));
                self.fill_block(group, guest, disk, from, progress).await
            }
        }
    }

    /// Copies a guest's disk, which nobody writes to, to one in this pool. It is complete and kept
    /// when this returns; what is half-made when this fails goes with [`Self::remove_volume`].
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn copy_volume(
        &self,
        (guest, disk): (Uuid, &Disk),
        (from, from_guest, source): (&Self, Uuid, &Disk),
        progress: impl FnMut(u8) + Send,
    ) -> Result<(), StorageError> {
        let needed_mib = from.copy_need_mib(from_guest, source, disk.format).await?;
        self.require_space(needed_mib).await?;
        // Until it is copied.
        let _attached = from.attach_for_a_while(from_guest, source).await?;
        from.require_whole_volume(from_guest, source).await?;
        let path = from.volume_path(from_guest, source);
        let from = ((&*path, image_format(source.format)), Copying::Direct);
        match self.place() {
            Place::Files { .. } => {
                self.copy_to_file(guest, disk, from, progress).await?;
                self.sync_volume(guest, disk).await
            }
            Place::Volumes(group) => {
                self.fill_block(group, guest, disk, Some(from), progress)
                    .await
            }
        }
    }

    async fn create_empty_file(&self, guest: Uuid, disk: &Disk) -> Result<(), StorageError> {
        let make = move |directory: &Directory| directory.make_guest_directory(guest);
        self.on(DEADLINE, make).await?;
        let path = self.volume_path(guest, disk);
        qemu_img::create(&path, format_name(disk.format), disk.size_mib << 20).await?;
        self.sync_volume(guest, disk).await
    }

    async fn copy_to_file(
        &self,
        guest: Uuid,
        disk: &Disk,
        (from, copying): ((&Path, ImageFormat), Copying),
        progress: impl FnMut(u8) + Send,
    ) -> Result<(), StorageError> {
        let make = move |directory: &Directory| directory.make_guest_directory(guest);
        self.on(DEADLINE, make).await?;
        let path = self.volume_path(guest, disk);
        let to = Target::New(&path, format_name(disk.format));
        qemu_img::convert(from, to, copying, progress).await
    }

    /// Makes a guest's disk, which nobody uses, larger.
    ///
    /// # Errors
    /// [`StorageError`]; a file then has its old size.
    pub async fn grow_volume(
        &self,
        guest: Uuid,
        disk: &Disk,
        to_mib: u64,
    ) -> Result<(), StorageError> {
        self.require_volume(guest, disk).await?;
        if let Place::Volumes(group) = self.place() {
            return self.grow_block(group, (guest, disk), to_mib, false).await;
        }
        let path = self.volume_path(guest, disk);
        qemu_img::grow(&path, format_name(disk.format), to_mib << 20).await?;
        self.sync_volume(guest, disk).await
    }

    /// The same for the disk of a guest that runs, as far as its VMM cannot: it makes a file larger,
    /// and no block device.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn grow_under_guest(
        &self,
        guest: Uuid,
        disk: &Disk,
        to_mib: u64,
    ) -> Result<(), StorageError> {
        match self.place() {
            Place::Files { .. } => Ok(()),
            Place::Volumes(group) => self.grow_block(group, (guest, disk), to_mib, true).await,
        }
    }

    /// Size that a guest has of its disk, which nobody uses, in MiB: what its file says.
    ///
    /// # Errors
    /// [`StorageError::QemuImg`], and those of every look at a pool.
    pub async fn volume_size_mib(&self, guest: Uuid, disk: &Disk) -> Result<u64, StorageError> {
        let file = disk.volume.file.clone();
        let look = move |directory: &Directory| directory.volume(guest, &file);
        let volume = self.on(DEADLINE, look).await?;
        let path = self.volume_path(guest, disk);
        let bytes = match disk.format {
            DiskFormat::Raw => volume.bytes,
            DiskFormat::Qcow2 => {
                qemu_img::info(&path, ImageFormat::Qcow2)
                    .await?
                    .virtual_size
            }
        };
        Ok(bytes >> 20)
    }

    /// Sees that a guest's disk needs no other file.
    ///
    /// # Errors
    /// [`StorageError::BadImage`], and those of every look at a pool.
    pub(super) async fn require_whole_volume(
        &self,
        guest: Uuid,
        disk: &Disk,
    ) -> Result<(), StorageError> {
        self.require_volume(guest, disk).await?;
        let path = self.volume_path(guest, disk);
        let format = image_format(disk.format);
        require_whole(&path, &disk.volume.file, format).await?;
        Ok(())
    }

    /// Refuses if there is something where a guest's disk would be.
    ///
    /// # Errors
    /// [`StorageError::VolumeExists`], [`StorageError::Unfit`], and those of every look at a pool.
    pub async fn require_vacant(&self, guest: Uuid, disk: &Disk) -> Result<(), StorageError> {
        self.require_disks()?;
        let path = self.volume_path(guest, disk);
        if let Place::Volumes(group) = self.place() {
            return match self.block_volume(group, guest, disk).await? {
                Some(_) => Err(StorageError::VolumeExists(path)),
                None => Ok(()),
            };
        }
        let look = move |_: &Directory| match path.symlink_metadata() {
            Ok(_) => Err(StorageError::VolumeExists(path)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StorageError::io("look at", &path)(error)),
        };
        self.on(DEADLINE, look).await
    }

    /// Sees that a guest's disk can be opened.
    ///
    /// # Errors
    /// [`StorageError::BadImage`] for one that is no file, [`StorageError::NoVolume`]; those of
    /// every look at a pool.
    pub async fn require_volume(&self, guest: Uuid, disk: &Disk) -> Result<(), StorageError> {
        if let Place::Volumes(group) = self.place() {
            return match self.block_volume(group, guest, disk).await? {
                Some(_) => Ok(()),
                None => Err(StorageError::NoVolume(self.volume_path(guest, disk))),
            };
        }
        let file = disk.volume.file.clone();
        let check = move |directory: &Directory| directory.require_volume(guest, &file);
        self.on(DEADLINE, check).await
    }

    /// Space that a copy of a guest's disk in this pool takes in another one, where it is in the
    /// format `to`, in MiB.
    ///
    /// # Errors
    /// Those of every look at a pool.
    pub async fn copy_need_mib(
        &self,
        guest: Uuid,
        disk: &Disk,
        to: DiskFormat,
    ) -> Result<u64, StorageError> {
        self.require_volume(guest, disk).await?;
        if to == DiskFormat::Raw {
            return Ok(disk.size_mib.next_multiple_of(EXTENT_MIB));
        }
        let file = disk.volume.file.clone();
        let look = move |directory: &Directory| directory.volume(guest, &file);
        let volume = self.on(DEADLINE, look).await?;
        Ok(volume.allocated_bytes.div_ceil(1 << 20))
    }

    /// Removes one disk of a guest. Nothing happens if it is not there.
    ///
    /// # Errors
    /// Those of every look at a pool.
    pub async fn remove_volume(&self, guest: Uuid, disk: &Disk) -> Result<(), StorageError> {
        let file = disk.volume.file.clone();
        if let Place::Volumes(group) = self.place() {
            let wanted = file.to_string();
            let same = move |volume: &VolumeFile| volume.guest == guest && volume.file == wanted;
            return self.remove_blocks(group, same).await;
        }
        let remove = move |directory: &Directory| directory.remove_volume(guest, &file);
        self.on(DEADLINE, remove).await
    }

    /// Removes all disks of a guest. Nothing happens if there are none.
    ///
    /// # Errors
    /// Those of every look at a pool.
    pub async fn delete_volumes(&self, guest: Uuid) -> Result<(), StorageError> {
        if let Place::Volumes(group) = self.place() {
            let guest_s = move |volume: &VolumeFile| volume.guest == guest;
            return self.remove_blocks(group, guest_s).await;
        }
        let delete = move |directory: &Directory| directory.delete_volumes(guest);
        self.on(DEADLINE, delete).await
    }

    /// All disks in the pool, by guest.
    ///
    /// # Errors
    /// Those of every look at a pool.
    pub async fn list_volumes(&self) -> Result<Vec<VolumeFile>, StorageError> {
        match self.place() {
            Place::Volumes(group) => {
                let list = |group: Arc<VolumeGroup>| async move { group.volumes().await };
                self.on_group(group, GROUP_DEADLINE, list).await
            }
            Place::Files { directory, .. } if directory.is_media => Ok(Vec::new()),
            Place::Files { .. } => self.on(DEADLINE, Directory::list_volumes).await,
        }
    }

    async fn sync_volume(&self, guest: Uuid, disk: &Disk) -> Result<(), StorageError> {
        let file = disk.volume.file.clone();
        let sync = move |directory: &Directory| directory.sync_volume(guest, &file);
        self.on(SYNC_DEADLINE, sync).await
    }
}

/// A disk in a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFile {
    /// The guest that it was made for.
    pub guest: Uuid,
    /// Its name.
    pub file: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// What it takes of the pool, in bytes.
    pub allocated_bytes: u64,
}

impl Image {
    /// Sees that it needs no other file, and returns the size of the disk in it, in bytes.
    ///
    /// # Errors
    /// [`StorageError::BadImage`], [`StorageError::QemuImg`].
    pub(super) async fn require_whole(&self, path: &Path) -> Result<u64, StorageError> {
        let size = require_whole(path, &self.name, self.format).await?;
        Ok(size.unwrap_or(self.virtual_bytes))
    }
}

/// Sees that a file needs no other one, and returns the size of the disk in it, in bytes; `None`:
/// its own.
async fn require_whole(
    path: &Path,
    name: &FileName,
    format: ImageFormat,
) -> Result<Option<u64>, StorageError> {
    if format == ImageFormat::Raw {
        return Ok(None);
    }
    let refuse = |reason: String| StorageError::BadImage {
        name: name.to_string(),
        reason,
    };
    let info = match qemu_img::info(path, format).await {
        Err(StorageError::QemuImg { reason, .. }) => {
            let path = path.display().to_string();
            return Err(refuse(reason.replace(&path, name.as_str())));
        }
        info => info?,
    };
    if let Some(outside) = info.outside(path) {
        let outside: String = outside.chars().take(100).collect();
        return Err(refuse(format!(
            "it is not complete without {outside:?}; flatten it with qemu-img convert first"
        )));
    }
    if info.encrypted {
        return Err(refuse("it is encrypted".to_owned()));
    }
    Ok(Some(info.virtual_size))
}

/// Size that the disk will have, in MiB.
///
/// # Errors
/// [`StorageError::TooSmall`].
pub fn volume_size_mib(disk: &Disk, source: Option<&Image>) -> Result<u64, StorageError> {
    let Some(image) = source else {
        return Ok(disk.size_mib);
    };
    let image_mib = image.virtual_bytes.div_ceil(1 << 20);
    match disk.size_mib {
        0 => Ok(image_mib),
        wanted_mib if wanted_mib < image_mib => Err(StorageError::TooSmall {
            image: image.name.to_string(),
            image_mib,
            wanted_mib,
        }),
        wanted_mib => Ok(wanted_mib),
    }
}

/// Space that it takes at once, in MiB: a raw disk may be written at any moment and counts in
/// full, a qcow2 counts with what is copied into it.
pub fn volume_need_mib(disk: &Disk, source: Option<&Image>) -> u64 {
    match (disk.format, source) {
        (DiskFormat::Raw, _) => disk.size_mib,
        (DiskFormat::Qcow2, None) => 1,
        (DiskFormat::Qcow2, Some(image)) => match image.format {
            // Compressed, it may grow to its full size.
            ImageFormat::Qcow2 | ImageFormat::Vmdk => image.virtual_bytes,
            ImageFormat::Raw => image.file_bytes,
        }
        .div_ceil(1 << 20),
    }
}

/// Space that growing it to `to_mib` takes at once, in MiB: the rest of a raw disk may be written
/// at any moment.
pub fn growth_need_mib(disk: &Disk, to_mib: u64) -> u64 {
    match disk.format {
        DiskFormat::Raw => to_mib.saturating_sub(disk.size_mib),
        DiskFormat::Qcow2 => 1,
    }
}

fn image_format(format: DiskFormat) -> ImageFormat {
    match format {
        DiskFormat::Raw => ImageFormat::Raw,
        DiskFormat::Qcow2 => ImageFormat::Qcow2,
    }
}
