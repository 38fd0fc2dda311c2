//! An image, or a disk, on its way out.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use super::activation::Attached;
use super::directory::{Directory, open_plain};
use super::pool::{DEADLINE, Place};
use super::pool_file::PoolFile;
use super::{Pool, StorageError};
use crate::domain::{Disk, FileName};

/// How much is read at once, in bytes.
const PIECE_BYTES: usize = 1 << 20;
/// How long that may take.
const READ_DEADLINE: Duration = Duration::from_secs(60);

/// A file that is being sent.
pub struct Download {
    path: PathBuf,
    file: PoolFile,
    bytes: u64,
    sent: u64,
    /// What keeps it there until it is sent.
    _attached: Option<Attached>,
}

impl Download {
    /// Begins to send the image `name`.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], and those of every look at a pool.
    pub async fn of_image(pool: &Pool, name: &FileName) -> Result<Self, StorageError> {
        let image = name.clone();
        let describe = move |directory: &Directory| Ok(directory.image(&image)?.file_bytes);
        Self::begin(pool, pool.image_path(name)?, describe).await
    }

    /// Begins to send a guest's disk, which nobody writes to, as it is kept.
    ///
    /// # Errors
    /// [`StorageError::BadImage`] if it needs other files; [`StorageError::Unfit`]; those of every
    /// look at a pool.
    pub async fn of_volume(pool: &Pool, guest: Uuid, disk: &Disk) -> Result<Self, StorageError> {
        pool.require_whole_volume(guest, disk).await?;
        if let Place::Volumes(_) = pool.place() {
            return Self::of_block(pool, guest, disk).await;
        }
        let file = disk.volume.file.clone();
        let describe = move |directory: &Directory| Ok(directory.volume(guest, &file)?.bytes);
        Self::begin(pool, pool.volume_path(guest, disk), describe).await
    }

    async fn begin(
        pool: &Pool,
        path: PathBuf,
        describe: impl FnOnce(&Directory) -> Result<u64, StorageError> + Send + 'static,
    ) -> Result<Self, StorageError> {
        let opened = path.clone();
        let open = move |directory: &Directory| {
            let bytes = describe(directory)?;
            let file = open_plain(&opened).map_err(StorageError::io("read", &opened))?;
            Ok((bytes, file))
        };
        let (bytes, file) = pool.on(DEADLINE, open).await?;
        Ok(Self {
            path,
            file: PoolFile::new(pool, file),
            bytes,
            sent: 0,
            _attached: None,
        })
    }

    async fn of_block(pool: &Pool, guest: Uuid, disk: &Disk) -> Result<Self, StorageError> {
        let attached = pool.attach_for_a_while(guest, disk).await?;
        let path = pool.volume_path(guest, disk);
        let opened = path.clone();
        let open = move || {
            let opened = File::open(&opened).and_then(|mut file| {
                let bytes = file.seek(SeekFrom::End(0))?;
                Ok((bytes, file))
            });
            opened.map_err(StorageError::io("read", &path))
        };
        let (bytes, file) = pool.on_open(DEADLINE, open).await?;
        Ok(Self {
            path: pool.volume_path(guest, disk),
            file: PoolFile::new(pool, file),
            bytes,
            sent: 0,
            _attached: attached,
        })
    }

    /// How much is sent in all, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How much of it was sent, in per cent.
    pub fn percent(&self) -> u8 {
        let percent = u128::from(self.sent) * 100 / u128::from(self.bytes.max(1));
        percent.min(100) as u8
    }

    /// The next piece; `None`: that was all.
    ///
    /// # Errors
    /// Those of every look at a pool.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, StorageError> {
        let left = self.bytes.saturating_sub(self.sent);
        if left == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
        let (offset, path) = (self.sent, self.path.clone());
        let read = move |file: &File| {
            let read = file.read_exact_at(&mut piece, offset);
            read.map_err(StorageError::io("read", &path))?;
            Ok(piece)
        };
        let piece = self.file.on(READ_DEADLINE, read).await?;
        self.sent += piece.len() as u64;
        Ok(Some(piece))
    }
}
