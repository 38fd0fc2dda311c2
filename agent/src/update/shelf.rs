//! The bundle that a node keeps: one file, and what it is.

use std::fs;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use utoipa::ToSchema;

use super::UpdateError;
use crate::files;
use crate::security::hex;

/// What else the state partition is kept free for, in bytes.
const RESERVE_BYTES: u64 = 64 << 20;
/// How often the free space is looked at, in bytes.
const CHECK_BYTES: u64 = 32 << 20;

/// A bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bundle {
    /// The version of Pindah in it.
    pub version: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
}

/// Where the bundle of a node is kept.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    node: String,
    directory: PathBuf,
}

impl Shelf {
    pub(super) fn new(node: &str, directory: PathBuf) -> Self {
        Self {
            node: node.to_owned(),
            directory,
        }
    }

    /// The file.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.join("bundle.raucb")
    }

    fn description(&self) -> PathBuf {
        self.directory.join("bundle.json")
    }

    /// The one that is kept.
    ///
    /// # Errors
    /// [`UpdateError::NoBundle`].
    pub(super) fn bundle(&self) -> Result<Bundle, UpdateError> {
        let bytes = fs::read(self.description()).ok();
        let bundle = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let kept = bundle.filter(|_| self.path().exists());
        kept.ok_or_else(|| UpdateError::NoBundle(self.node.clone()))
    }

    /// Gives what came its place.
    pub(super) fn keep(&self, arrived: &Arrived, bundle: &Bundle) -> Result<(), UpdateError> {
        let path = self.path();
        fs::rename(&arrived.path, &path).map_err(UpdateError::io("write", &path))?;
        let description = self.description();
        let written = files::replace_by_json_durably(&description, bundle);
        written.map_err(UpdateError::io("write", &description))
    }

    /// Makes room. What is not there is no error.
    pub(super) fn clear(&self) {
        for path in [self.description(), self.path(), self.incoming()] {
            let _ = fs::remove_file(path);
        }
    }

    fn incoming(&self) -> PathBuf {
        self.directory.join("incoming.raucb")
    }

    /// Begins to receive one of so many bytes, 0 if that is not known. The one that is kept goes.
    ///
    /// # Errors
    /// [`UpdateError::NoSpace`], [`UpdateError::Io`].
    pub(super) async fn receive(&self, bytes: u64) -> Result<Incoming, UpdateError> {
        self.clear();
        self.require_space(bytes)?;
        let path = self.incoming();
        let file = File::create(&path).await;
        Ok(Incoming {
            file: file.map_err(UpdateError::io("create", &path))?,
            arrived: Some(path),
            shelf: self.clone(),
            digest: Context::new(&SHA256),
            bytes: 0,
            checked: 0,
        })
    }

    fn require_space(&self, bytes: u64) -> Result<(), UpdateError> {
        let path = &self.directory;
        let space = rustix::fs::statvfs(path)
            .map_err(|error| UpdateError::io("look at", path)(error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if bytes.saturating_add(RESERVE_BYTES) <= free {
            return Ok(());
        }
        Err(UpdateError::NoSpace {
            node: self.node.clone(),
            bytes,
            free: free.saturating_sub(RESERVE_BYTES),
            path: path.clone(),
        })
    }
}

/// A bundle that is being received. Dropped before [`Incoming::finish`], it leaves nothing behind.
pub struct Incoming {
    file: File,
    arrived: Option<PathBuf>,
    shelf: Shelf,
    digest: Context,
    bytes: u64,
    checked: u64,
}

/// A bundle that has come, and is not looked at yet.
pub(super) struct Arrived {
    path: PathBuf,
    pub bytes: u64,
    pub sha256: String,
}

impl Arrived {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Incoming {
    /// The next piece.
    ///
    /// # Errors
    /// [`UpdateError::NoSpace`], [`UpdateError::Io`].
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), UpdateError> {
        self.bytes += piece.len() as u64;
        if self.bytes - self.checked > CHECK_BYTES {
            self.checked = self.bytes;
            self.shelf.require_space(0)?;
        }
        self.digest.update(piece);
        let written = self.file.write_all(piece).await;
        written.map_err(UpdateError::io("write", &self.shelf.incoming()))
    }

    /// How much has come, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The whole.
    ///
    /// # Errors
    /// [`UpdateError::Io`].
    pub(super) async fn finish(mut self) -> Result<Arrived, UpdateError> {
        let path = self.shelf.incoming();
        let flushed = async {
            self.file.flush().await?;
            self.file.sync_all().await
        };
        flushed.await.map_err(UpdateError::io("write", &path))?;
        self.arrived = None;
        let digest = std::mem::replace(&mut self.digest, Context::new(&SHA256)).finish();
        Ok(Arrived {
            path,
            bytes: self.bytes,
            sha256: hex(digest.as_ref()),
        })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(path) = self.arrived.take() {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bundle_that_came_is_kept_and_one_that_broke_off_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let shelf = Shelf::new("node1", directory.path().to_owned());
        let error = shelf.bundle().unwrap_err().to_string();
        assert!(error.contains("node1 has no bundle"), "{error}");

        let mut incoming = shelf.receive(3).await.unwrap();
        incoming.write(b"abc").await.unwrap();
        let arrived = incoming.finish().await.unwrap();
        assert_eq!(
            (arrived.bytes, arrived.sha256.get(..8)),
            (3, Some("ba7816bf"))
        );
        let bundle = Bundle {
            version: "0.2.0".to_owned(),
            bytes: arrived.bytes,
            sha256: arrived.sha256.clone(),
        };
        shelf.keep(&arrived, &bundle).unwrap();
        assert_eq!(shelf.bundle().unwrap(), bundle);

        let mut incoming = shelf.receive(0).await.unwrap();
        incoming.write(b"ab").await.unwrap();
        drop(incoming);
        assert!(shelf.bundle().is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

        let error = shelf.receive(u64::MAX).await.err().unwrap().to_string();
        assert!(
            error.contains("node1 has no space for the bundle"),
            "{error}"
        );
    }
}
