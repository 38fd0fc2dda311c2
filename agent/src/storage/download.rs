//! An image on its way out.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use super::directory::{Directory, open_plain};
use super::pool::DEADLINE;
use super::pool_file::PoolFile;
use super::{Image, Pool, StorageError};
use crate::domain::FileName;

/// How much is read at once, in bytes.
const PIECE_BYTES: usize = 1 << 20;
/// How long that may take.
const READ_DEADLINE: Duration = Duration::from_secs(60);

/// An image that is being sent.
pub struct Download {
    image: Image,
    path: PathBuf,
    file: PoolFile,
    sent: u64,
}

impl Download {
    /// Begins to send the image `name`.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], and those of every look at a pool.
    pub async fn begin(pool: &Pool, name: &FileName) -> Result<Self, StorageError> {
        let path = pool.image_path(name)?;
        let (name, opened) = (name.clone(), path.clone());
        let open = move |directory: &Directory| {
            let image = directory.image(&name)?;
            let file = open_plain(&opened).map_err(StorageError::io("read", &opened))?;
            Ok((image, file))
        };
        let (image, file) = pool.on(DEADLINE, open).await?;
        Ok(Self {
            image,
            path,
            file: PoolFile::new(pool, file),
            sent: 0,
        })
    }

    /// What is sent.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The next piece; `None`: that was all.
    ///
    /// # Errors
    /// Those of every look at a pool.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, StorageError> {
        let left = self.image.file_bytes.saturating_sub(self.sent);
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
