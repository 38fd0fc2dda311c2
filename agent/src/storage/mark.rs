//! What tells a pool's directory from any other: a file with the pool's id.
//!
//! Without it a mount that is missing would make an empty directory the pool, and two clusters
//! could take the same one.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::StorageError;
use super::directory::{read_plain, write_new};
use crate::domain::PoolName;

const FILE: &str = ".pindah-pool";
/// Largest one, in bytes.
const MAX: u64 = 4096;

/// A pool's mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The pool.
    pub pool: PoolName,
    /// Its id.
    pub id: Uuid,
}

impl Mark {
    fn path(root: &Path) -> PathBuf {
        root.join(FILE)
    }

    /// `None`: there is none. An error is one line.
    fn read(root: &Path) -> Result<Option<Self>, String> {
        let path = Self::path(root);
        let bytes = match read_plain(&path, MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| format!("cannot read {}: {error}", path.display()))?,
        };
        let mark = serde_json::from_slice(&bytes);
        mark.map(Some)
            .map_err(|error| format!("{} is damaged: {error}", path.display()))
    }

    /// Marks the directory `root`.
    ///
    /// # Errors
    /// [`StorageError::BadPath`] if another pool has it; [`StorageError::Io`].
    pub(super) fn write(&self, root: &Path) -> Result<(), StorageError> {
        let refuse = |reason| StorageError::BadPath {
            path: root.to_owned(),
            reason,
        };
        let path = Self::path(root);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| StorageError::io("write", &path)(error.into()))?;
        // Of two nodes that do this at once one finds the other's.
        let before = match write_new(&path, &text) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Self::read(root),
            written => return written.map_err(StorageError::io("write", &path)),
        };
        match before.map_err(refuse)? {
            Some(other) if other == *self => Ok(()),
            other => Err(refuse(format!(
                "it is pool {} of this or another cluster; if nobody uses it any more, remove the \
                 file {FILE} in it",
                other.map_or_else(|| "?".to_owned(), |other| other.pool.to_string())
            ))),
        }
    }

    /// Sees that `root` has this mark. An error is one line.
    pub(super) fn verify(&self, root: &Path, node: &str) -> Result<(), String> {
        let root_shown = root.display();
        match Self::read(root)? {
            Some(mark) if mark == *self => Ok(()),
            Some(other) => Err(format!("{root_shown} is another pool, {}", other.pool)),
            None if root.is_dir() => Err(format!(
                "{root_shown} on {node} is not the pool's directory, for it has no {FILE}; is it \
                 mounted?"
            )),
            None => Err(format!("there is no directory {root_shown} on {node}")),
        }
    }

    /// Removes it, if it is this one.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub(super) fn remove(&self, root: &Path) -> Result<(), StorageError> {
        if Self::read(root) != Ok(Some(self.clone())) {
            return Ok(());
        }
        let path = Self::path(root);
        fs::remove_file(&path).map_err(StorageError::io("remove", &path))
    }
}
