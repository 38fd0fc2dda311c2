//! An image on its way in: piece by piece into a file that has no name yet among the images.

use std::fs;
use std::path::PathBuf;

use ring::digest::{Context, SHA256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use super::{DirPool, Image, ImageFormat, StorageError, qemu_img};
use crate::domain::FileName;

/// How often the free space is looked at, in bytes.
const SPACE_CHECK_BYTES: u64 = 64 << 20;

/// An image that is being received. Dropped before [`Upload::finish`], it leaves nothing behind.
pub struct Upload {
    pool: DirPool,
    name: FileName,
    path: PathBuf,
    file: File,
    digest: Context,
    bytes: u64,
    checked: u64,
}

impl Upload {
    /// Begins to receive the image `name`.
    ///
    /// # Errors
    /// [`StorageError::ImageExists`], [`StorageError::NoSpace`], [`StorageError::Io`].
    pub async fn begin(pool: &DirPool, name: FileName, bytes: u64) -> Result<Self, StorageError> {
        if pool.image_path(&name).exists() {
            return Err(StorageError::ImageExists(name.to_string()));
        }
        pool.require_space(bytes.div_ceil(1 << 20))?;
        let path = pool.incoming().join(Uuid::new_v4().to_string());
        let created = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .await;
        Ok(Self {
            pool: pool.clone(),
            name,
            file: created.map_err(StorageError::io("create", &path))?,
            path,
            digest: Context::new(&SHA256),
            bytes: 0,
            checked: 0,
        })
    }

    /// The next piece.
    ///
    /// # Errors
    /// [`StorageError::NoSpace`], [`StorageError::Io`].
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), StorageError> {
        self.bytes += piece.len() as u64;
        if self.bytes - self.checked > SPACE_CHECK_BYTES {
            self.checked = self.bytes;
            self.pool.require_space(0)?;
        }
        self.digest.update(piece);
        let written = self.file.write_all(piece).await;
        written.map_err(StorageError::io("write", &self.path))
    }

    /// Looks at what has come, and gives it its name.
    ///
    /// # Errors
    /// [`StorageError::BadImage`] for what refers to other files or cannot be read;
    /// [`StorageError::ImageExists`], [`StorageError::Io`], [`StorageError::QemuImg`].
    pub async fn finish(mut self) -> Result<Image, StorageError> {
        let flushed = self.file.flush().await;
        flushed.map_err(StorageError::io("write", &self.path))?;
        let synced = self.file.sync_all().await;
        synced.map_err(StorageError::io("write", &self.path))?;
        let format = ImageFormat::of(&self.path, &self.name)?;
        let virtual_bytes = match format {
            ImageFormat::Raw => self.bytes,
            format => self.check(format).await?,
        };
        let digest = std::mem::replace(&mut self.digest, Context::new(&SHA256)).finish();
        let image = Image {
            name: self.name.clone(),
            format,
            virtual_bytes,
            file_bytes: self.bytes,
            sha256: crate::security::hex(digest.as_ref()),
        };
        self.publish(&image)?;
        Ok(image)
    }

    async fn check(&self, format: ImageFormat) -> Result<u64, StorageError> {
        let refuse = |reason: String| StorageError::BadImage {
            name: self.name.to_string(),
            reason,
        };
        let info = match qemu_img::info(&self.path, format).await {
            Err(StorageError::QemuImg { reason, .. }) => {
                let path = self.path.display().to_string();
                return Err(refuse(reason.replace(&path, self.name.as_str())));
            }
            info => info?,
        };
        if let Some(outside) = info.outside(&self.path) {
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

    /// The file first: an image is there when its description is.
    fn publish(&self, image: &Image) -> Result<(), StorageError> {
        let path = self.pool.image_path(&self.name);
        match fs::hard_link(&self.path, &path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(StorageError::ImageExists(self.name.to_string()));
            }
            linked => linked.map_err(StorageError::io("create", &path))?,
        }
        let description = self.pool.description_path(&self.name);
        let bytes = serde_json::to_vec_pretty(image)
            .map_err(|error| StorageError::io("write", &description)(error.into()))?;
        let written = fs::write(&description, bytes);
        written.map_err(StorageError::io("write", &description))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn upload(pool: &DirPool, name: &str, bytes: &[u8]) -> Result<Image, StorageError> {
        let name = FileName::try_from(name.to_owned()).unwrap();
        let mut upload = Upload::begin(pool, name, bytes.len() as u64).await?;
        for piece in bytes.chunks(1000) {
            upload.write(piece).await?;
        }
        upload.finish().await
    }

    fn qcow2(directory: &std::path::Path, extra: &[&str]) -> Vec<u8> {
        let path = directory.join("made.qcow2");
        let made = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .args(extra)
            .arg(&path)
            .arg("8M")
            .status();
        assert!(made.unwrap().success());
        fs::read(path).unwrap()
    }

    #[tokio::test]
    async fn image_is_there_when_complete_and_its_name_taken_once() {
        let directory = tempfile::tempdir().unwrap();
        let pool = DirPool::open(&directory.path().join("pool")).unwrap();
        let bytes = qcow2(directory.path(), &[]);
        let image = upload(&pool, "a.qcow2", &bytes).await.unwrap();
        assert_eq!(image.virtual_bytes, 8 << 20);
        assert_eq!(image.format, ImageFormat::Qcow2);
        assert_eq!(pool.list_images().unwrap(), [image]);
        let again = upload(&pool, "a.qcow2", &bytes).await.unwrap_err();
        assert!(matches!(again, StorageError::ImageExists(_)));
        assert_eq!(fs::read_dir(pool.incoming()).unwrap().count(), 0);
        let name = FileName::try_from("a.qcow2".to_owned()).unwrap();
        pool.delete_image(&name).unwrap();
        assert!(matches!(
            pool.delete_image(&name),
            Err(StorageError::NoImage(_))
        ));
    }

    #[tokio::test]
    async fn image_that_needs_other_files_is_refused_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let pool = DirPool::open(&directory.path().join("pool")).unwrap();
        let backed = qcow2(directory.path(), &["-u", "-b", "/etc/shadow", "-F", "raw"]);
        let error = upload(&pool, "a", &backed).await.unwrap_err().to_string();
        assert!(
            error.contains("not complete without \"/etc/shadow\""),
            "{error}"
        );
        let data = directory.path().join("data");
        let option = format!("data_file={}", data.display());
        let apart = qcow2(directory.path(), &["-o", &option]);
        let error = upload(&pool, "a", &apart).await.unwrap_err().to_string();
        assert!(error.contains("a cannot be taken"), "{error}");
        let mut broken = qcow2(directory.path(), &[]);
        broken.truncate(80);
        let error = upload(&pool, "a", &broken).await.unwrap_err().to_string();
        assert!(error.contains("a cannot be taken"), "{error}");
        assert!(upload(&pool, "a", b"# Disk DescriptorFile").await.is_err());
        assert!(pool.list_images().unwrap().is_empty());
        assert_eq!(fs::read_dir(pool.incoming()).unwrap().count(), 0);
        assert_eq!(
            fs::read_dir(directory.path().join("pool/images"))
                .unwrap()
                .count(),
            0
        );
    }

    #[tokio::test]
    async fn vmdk_is_taken_when_it_is_whole_and_becomes_a_disk() {
        let directory = tempfile::tempdir().unwrap();
        let pool = DirPool::open(&directory.path().join("pool")).unwrap();
        let path = |name: &str| directory.path().join(name);
        let create = |arguments: &[&str], name: &str| {
            let made = std::process::Command::new("qemu-img")
                .args(["create", "-q", "-f", "vmdk"])
                .args(arguments)
                .arg(path(name))
                .args(if arguments.is_empty() {
                    &["8M"][..]
                } else {
                    &[]
                })
                .status();
            assert!(made.unwrap().success());
            fs::read(path(name)).unwrap()
        };
        let whole = create(&[], "whole.vmdk");
        let image = upload(&pool, "whole.vmdk", &whole).await.unwrap();
        assert_eq!(image.format, ImageFormat::Vmdk);
        assert_eq!(image.virtual_bytes, 8 << 20);
        let base = path("whole.vmdk");
        let child = create(&["-F", "vmdk", "-b", base.to_str().unwrap()], "child.vmdk");
        let error = upload(&pool, "child.vmdk", &child).await.unwrap_err();
        assert!(
            error.to_string().contains("not complete without"),
            "{error}"
        );
        let disk: crate::domain::Disk = serde_json::from_str(
            r#"{"id": "disk0", "volume": {"pool": "local", "file": "disk0.qcow2"},
                "format": "qcow2", "size_mib": 16}"#,
        )
        .unwrap();
        let guest = Uuid::nil();
        let made = pool.create_volume(guest, &disk, Some(&image.name), |_| {});
        assert_eq!(made.await.unwrap(), 16);
        let info = qemu_img::info(&pool.volume_path(guest, &disk), ImageFormat::Qcow2).await;
        assert_eq!(info.unwrap().virtual_size, 16 << 20);
        pool.delete_volumes(guest).unwrap();
        assert!(!pool.volume_path(guest, &disk).exists());
    }
}
