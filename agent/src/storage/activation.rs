//! Which logical volumes are active on this node.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::StorageError;
use super::volume_group::{LOCK_PATIENCE, VolumeGroup};

/// How long udev may take to show a volume that is active.
const DEVICE_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

impl VolumeGroup {
    fn attached(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a volume is in use here already.
    pub(super) fn note_attached(&self, name: &str) {
        self.attached().insert(name.to_owned());
    }

    /// Says that a volume is not in use here any more: one look later it is not active.
    pub(super) fn note_detached(&self, name: &str) {
        self.attached().remove(name);
    }

    /// Activates a volume here.
    ///
    /// # Errors
    /// [`StorageError::Lvm`], [`StorageError::Locked`], [`StorageError::Unavailable`].
    pub(super) async fn attach(self: Arc<Self>, name: String) -> Result<Attached, StorageError> {
        self.note_attached(&name);
        let attached = Attached {
            group: Arc::clone(&self),
            name,
            kept: false,
        };
        let _held = self.lock.take(LOCK_PATIENCE).await?;
        let _turn = self.turn.lock().await;
        let path = format!("{}/{}", self.name, attached.name);
        self.run("activate a volume", &["lvchange", "-ay", &path])
            .await?;
        let end = Instant::now() + DEVICE_PATIENCE;
        let device = self.path(&attached.name);
        // In devtmpfs, which stalls with no storage.
        while !device.exists() {
            if Instant::now() > end {
                let reason = format!("{} does not appear", device.display());
                return Err(self.unavailable(reason));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(attached)
    }

    /// Deactivates a volume here, or has the next look do that.
    pub(super) async fn detach(&self, name: &str) {
        let _turn = self.turn.lock().await;
        self.attached().remove(name);
        self.deactivate(name).await;
    }

    /// Deactivates what is not to be active. Whether all of that went.
    pub(super) async fn settle(&self) -> bool {
        let _turn = self.turn.lock().await;
        let entries = std::fs::read_dir(self.path("")).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.file_name());
        let names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
        let mut all = true;
        for name in names {
            let needed = self.attached().contains(&name);
            all &= !needed && self.deactivate(&name).await;
        }
        all
    }

    async fn deactivate(&self, name: &str) -> bool {
        if self.path(name).symlink_metadata().is_err() {
            return true;
        }
        let path = format!("{}/{name}", self.name);
        let done = self
            .run("deactivate a volume", &["lvchange", "-an", &path])
            .await;
        if let Err(error) = &done {
            tracing::warn!("pool {}: {}", self.pool, crate::causes::chain(error));
        }
        done.is_ok()
    }

    /// Lets go of it: nothing is active here, and nobody logged in.
    pub(super) async fn close(&self) {
        self.attached().clear();
        if self.settle().await {
            self.target.log_out().await;
        }
    }
}

/// A volume that is active here until this is dropped, a little longer at most.
pub(super) struct Attached {
    group: Arc<VolumeGroup>,
    name: String,
    kept: bool,
}

impl Attached {
    /// It stays so when this is dropped.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if !self.kept {
            self.group.note_detached(&self.name);
        }
    }
}
