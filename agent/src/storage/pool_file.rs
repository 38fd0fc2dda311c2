//! An open file of a pool. To close it may take as long as to write it: NFS writes then.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::{Pool, StorageError};

/// A file that is closed by one of the pool's threads.
pub(super) struct PoolFile {
    pool: Pool,
    /// Taken when it is dropped only.
    file: Option<Arc<File>>,
}

impl PoolFile {
    pub(super) fn new(pool: &Pool, file: File) -> Self {
        Self {
            pool: pool.clone(),
            file: Some(Arc::new(file)),
        }
    }

    /// Works on it, by one of the pool's threads.
    ///
    /// # Errors
    /// [`StorageError::Stalled`], and those of `work`.
    pub(super) async fn on<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce(&File) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let Some(file) = self.file.clone() else {
            return Err(StorageError::Cancelled);
        };
        self.pool.on_open(deadline, move || work(&file)).await
    }
}

impl Drop for PoolFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.pool.later(move || drop(file));
        }
    }
}
