//! An image on its way in: piece by piece into a file that has no name yet among the images.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use ring::digest::{Context, SHA256};

use super::directory::{Directory, create_new, write_new};
use super::pool::DEADLINE;
use super::pool_file::PoolFile;
use super::{Image, ImageFormat, Pool, StorageError};
use crate::domain::FileName;

/// How often the free space is looked at, and what has come is written to the disk, in bytes.
const CHECK_BYTES: u64 = 64 << 20;
/// How much is written at once, in bytes.
const PIECE_BYTES: usize = 1 << 20;
/// How long that may take.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// An image that is being received. Dropped before [`Upload::finish`], it leaves nothing behind.
pub struct Upload {
    pool: Pool,
    name: FileName,
    path: PathBuf,
    file: PoolFile,
    pending: Vec<u8>,
    digest: Context,
    bytes: u64,
    checked: u64,
    removed: bool,
}

impl Upload {
    /// Begins to receive the image `name`.
    ///
    /// # Errors
    /// [`StorageError::ImageExists`], [`StorageError::NoSpace`], [`StorageError::Unfit`], and those of
    /// every look at a pool.
    pub async fn begin(pool: &Pool, name: FileName, bytes: u64) -> Result<Self, StorageError> {
        let path = pool.incoming_path()?;
        pool.require_space(bytes.div_ceil(1 << 20)).await?;
        let (image, incoming) = (name.clone(), path.clone());
        let create = move |directory: &Directory| {
            if directory.image_path(&image).symlink_metadata().is_ok() {
                return Err(StorageError::ImageExists(image.to_string()));
            }
            create_new(&incoming).map_err(StorageError::io("create", &incoming))
        };
        Ok(Self {
            pool: pool.clone(),
            name,
            file: PoolFile::new(pool, pool.on(DEADLINE, create).await?),
            path,
            pending: Vec::new(),
            digest: Context::new(&SHA256),
            bytes: 0,
            checked: 0,
            removed: false,
        })
    }

    /// The next piece.
    ///
    /// # Errors
    /// [`StorageError::NoSpace`], and those of every look at a pool.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), StorageError> {
        self.bytes += piece.len() as u64;
        self.digest.update(piece);
        self.pending.extend_from_slice(piece);
        if self.pending.len() < PIECE_BYTES {
            return Ok(());
        }
        let sync = self.bytes - self.checked > CHECK_BYTES;
        self.write_pending(sync).await?;
        if sync {
            self.checked = self.bytes;
            self.pool.require_space(0).await?;
        }
        Ok(())
    }

    async fn write_pending(&mut self, sync: bool) -> Result<(), StorageError> {
        let (path, pending) = (self.path.clone(), std::mem::take(&mut self.pending));
        let write = move |mut file: &File| {
            let written = file.write_all(&pending);
            let kept = written.and_then(|()| if sync { file.sync_data() } else { Ok(()) });
            kept.map_err(StorageError::io("write", &path))
        };
        self.file.on(WRITE_DEADLINE, write).await
    }

    /// Looks at what has come, and gives it its name.
    ///
    /// # Errors
    /// [`StorageError::BadImage`] for what refers to other files or cannot be read;
    /// [`StorageError::ImageExists`], [`StorageError::QemuImg`], and those of every look at a pool.
    pub async fn finish(mut self) -> Result<Image, StorageError> {
        let taken = self.take_in().await;
        let path = self.path.clone();
        let removed = self.pool.on_any(DEADLINE, move |_| remove(&path)).await;
        self.removed = removed.is_ok();
        taken
    }

    async fn take_in(&mut self) -> Result<Image, StorageError> {
        self.write_pending(true).await?;
        let (path, name) = (self.path.clone(), self.name.clone());
        let format = self
            .pool
            .on(DEADLINE, move |_| ImageFormat::of(&path, &name))
            .await?;
        let digest = std::mem::replace(&mut self.digest, Context::new(&SHA256)).finish();
        let mut image = Image {
            name: self.name.clone(),
            pool: self.pool.name().clone(),
            format,
            virtual_bytes: self.bytes,
            file_bytes: self.bytes,
            sha256: Some(crate::security::hex(digest.as_ref())),
        };
        image.virtual_bytes = image.require_whole(&self.path).await?;
        let (path, published) = (self.path.clone(), image.clone());
        let publish = move |directory: &Directory| publish(directory, &path, &published);
        self.pool.on(DEADLINE, publish).await?;
        Ok(image)
    }
}

/// The file first: an image is there when its description is.
fn publish(directory: &Directory, from: &PathBuf, image: &Image) -> Result<(), StorageError> {
    let path = directory.image_path(&image.name);
    match fs::hard_link(from, &path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(StorageError::ImageExists(image.name.to_string()));
        }
        linked => linked.map_err(StorageError::io("create", &path))?,
    }
    let description = directory.description_path(&image.name);
    let bytes = serde_json::to_vec_pretty(image)
        .map_err(|error| StorageError::io("write", &description)(error.into()))?;
    // One without its image is nothing.
    let _ = fs::remove_file(&description);
    write_new(&description, &bytes).map_err(StorageError::io("write", &description))
}

fn remove(path: &PathBuf) -> Result<(), StorageError> {
    fs::remove_file(path).map_err(StorageError::io("remove", path))
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        // What is still there when the agent ends, the next one removes.
        let path = self.path.clone();
        self.pool.later(move || {
            if let Err(error) = remove(&path) {
                tracing::warn!("{}", crate::causes::chain(&error));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use uuid::Uuid;

    use super::super::{Pools, PoolsConfig, Source, qemu_img};
    use super::*;
    use crate::domain::PoolName;
    use crate::store::SqliteStore;

    async fn pool(directory: &Path) -> Pool {
        let store = SqliteStore::open(&directory.join("store.db")).unwrap();
        let config = PoolsConfig {
            node: "node1".to_owned(),
            state_dir: directory.to_owned(),
            default_pool: PoolName::local(),
            store: Arc::new(store),
        };
        Pools::open(config).await.unwrap().local().clone()
    }

    fn incoming(directory: &Path) -> usize {
        fs::read_dir(directory.join("pool/incoming"))
            .unwrap()
            .count()
    }

    async fn upload(pool: &Pool, name: &str, bytes: &[u8]) -> Result<Image, StorageError> {
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
        let pool = pool(directory.path()).await;
        let bytes = qcow2(directory.path(), &[]);
        let image = upload(&pool, "a.qcow2", &bytes).await.unwrap();
        assert_eq!(image.virtual_bytes, 8 << 20);
        assert_eq!(image.format, ImageFormat::Qcow2);
        assert_eq!(pool.list_images().await.unwrap(), [image]);
        let again = upload(&pool, "a.qcow2", &bytes).await.unwrap_err();
        assert!(matches!(again, StorageError::ImageExists(_)));
        assert_eq!(incoming(directory.path()), 0);
        let name = FileName::try_from("a.qcow2".to_owned()).unwrap();
        pool.delete_image(&name).await.unwrap();
        assert!(matches!(
            pool.delete_image(&name).await,
            Err(StorageError::NoImage { .. })
        ));
    }

    #[tokio::test]
    async fn image_that_needs_other_files_is_refused_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let pool = pool(directory.path()).await;
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
        assert!(pool.list_images().await.unwrap().is_empty());
        assert_eq!(incoming(directory.path()), 0);
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
        let pool = pool(directory.path()).await;
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
        let source = Source {
            pool: pool.clone(),
            image,
        };
        let made = pool.create_volume(guest, &disk, Some(&source), |_| {});
        made.await.unwrap();
        let info = qemu_img::info(&pool.volume_path(guest, &disk), ImageFormat::Qcow2).await;
        assert_eq!(info.unwrap().virtual_size, 16 << 20);
        pool.delete_volumes(guest).await.unwrap();
        assert!(!pool.volume_path(guest, &disk).exists());
    }
}
