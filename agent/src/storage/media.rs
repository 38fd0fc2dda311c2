//! A directory whose files are images: what a server exports for reading.
//!
//! There is no description beside them that an upload has made, so that what an image is follows
//! from its first bytes each time.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::directory::{Directory, open_plain};
use super::{Image, ImageFormat, StorageError};
use crate::domain::FileName;

/// As much as formats are told by.
const START: u64 = 64;

impl Directory {
    /// The file `name` as an image.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], [`StorageError::BadImage`], [`StorageError::Io`].
    pub(super) fn medium(&self, name: &FileName) -> Result<Image, StorageError> {
        let path = self.image_path(name);
        let found = fs::symlink_metadata(&path);
        if !found.is_ok_and(|found| found.is_file()) {
            return Err(self.no_image(name));
        }
        let file = open_plain(&path).map_err(StorageError::io("read", &path))?;
        let (start, bytes) = start(&file, &path)?;
        let refuse = |reason: &str| StorageError::BadImage {
            name: name.to_string(),
            reason: reason.to_owned(),
        };
        let format = ImageFormat::of_start(&start).map_err(refuse)?;
        Ok(Image {
            name: name.clone(),
            pool: self.pool.clone(),
            format,
            virtual_bytes: format.virtual_bytes(&start).unwrap_or(bytes),
            file_bytes: bytes,
            sha256: None,
        })
    }

    /// All files that are images, by name.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub(super) fn media(&self) -> Result<Vec<Image>, StorageError> {
        let entries = fs::read_dir(&self.root).map_err(StorageError::io("list", &self.root))?;
        let names = entries
            .flatten()
            .filter_map(|entry| FileName::try_from(entry.file_name().into_string().ok()?).ok());
        let mut found: Vec<Image> = names.filter_map(|name| self.medium(&name).ok()).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

fn start(mut file: &File, path: &Path) -> Result<(Vec<u8>, u64), StorageError> {
    let mut start = Vec::new();
    let read = (&mut file).take(START).read_to_end(&mut start);
    read.map_err(StorageError::io("read", path))?;
    let metadata = file.metadata().map_err(StorageError::io("read", path))?;
    Ok((start, metadata.len()))
}
