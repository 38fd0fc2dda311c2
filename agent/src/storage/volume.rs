//! A guest's disk: how large it is, and how it is made.

use std::path::Path;

use pindah_vmm_api::DiskFormat;
use uuid::Uuid;

use super::pool::DEADLINE;
use super::{Image, ImageFormat, Pool, StorageError, qemu_img};
use crate::domain::Disk;

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
        let make =
            move |directory: &super::directory::Directory| directory.make_guest_directory(guest);
        self.on(DEADLINE, make).await?;
        let path = self.volume_path(guest, disk);
        let format = format_name(disk.format);
        let bytes = disk.size_mib << 20;
        let Some(source) = source else {
            return qemu_img::create(&path, format, bytes).await;
        };
        // Whoever can write to a NAS may have put another one there since it was uploaded.
        let image = source.pool.image(&source.image.name).await?;
        let from = source.pool.image_path(&image.name);
        let virtual_bytes = image.require_whole(&from).await?;
        qemu_img::convert((&from, image.format), (&path, format), progress).await?;
        if virtual_bytes < bytes {
            qemu_img::grow(&path, format, bytes).await?;
        }
        Ok(())
    }
}

impl Image {
    /// Sees that it needs no other file, and returns the size of the disk in it, in bytes.
    ///
    /// # Errors
    /// [`StorageError::BadImage`], [`StorageError::QemuImg`].
    pub(super) async fn require_whole(&self, path: &Path) -> Result<u64, StorageError> {
        if self.format == ImageFormat::Raw {
            return Ok(self.virtual_bytes);
        }
        let refuse = |reason: String| StorageError::BadImage {
            name: self.name.to_string(),
            reason,
        };
        let info = match qemu_img::info(path, self.format).await {
            Err(StorageError::QemuImg { reason, .. }) => {
                let path = path.display().to_string();
                return Err(refuse(reason.replace(&path, self.name.as_str())));
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
        Ok(info.virtual_size)
    }
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

fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}
