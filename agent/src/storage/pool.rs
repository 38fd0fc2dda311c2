//! A pool as this node has it.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use uuid::Uuid;

use super::directory::{Directory, Space};
use super::gate::Gate;
use super::nfs::NfsMount;
use super::{Image, PoolState, PoolStatus, StorageError};
use crate::causes::chain;
use crate::domain::{Disk, FileName, PoolName, PoolRecord};

/// How long a pool may take for what a request wants to know.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// How often it is looked at, and how long that may take before it is taken for stalled.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
const LOOK_DEADLINE: Duration = Duration::from_secs(4);
const WAITS: &str = "what uses it waits, and goes on when it is back";
/// Space that is not given to new disks and images, in MiB: guests' disks grow.
const RESERVE_MIB: u64 = 256;

/// A pool.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    record: PoolRecord,
    directory: Arc<Directory>,
    /// What its directory is there by, if that is ours to do.
    mount: Option<NfsMount>,
    gate: Gate,
    status: watch::Sender<PoolStatus>,
    looked: watch::Sender<bool>,
}

impl Pool {
    /// Touches nothing yet: see [`Self::keep_looking`].
    pub(super) fn new(record: PoolRecord, directory: Directory, mount: Option<NfsMount>) -> Self {
        let status = PoolStatus {
            name: record.name.clone(),
            kind: record.source.kind(),
            shared: record.source.is_shared(),
            state: PoolState::Unavailable,
            reason: Some("it has not been looked at yet".to_owned()),
            total_mib: 0,
            used_mib: 0,
            free_mib: 0,
        };
        Self {
            inner: Arc::new(Inner {
                gate: Gate::new(record.name.clone()),
                record,
                directory: Arc::new(directory),
                mount,
                status: watch::Sender::new(status),
                looked: watch::Sender::new(false),
            }),
        }
    }

    /// Its record.
    pub fn record(&self) -> &PoolRecord {
        &self.inner.record
    }

    /// Its name.
    pub fn name(&self) -> &PoolName {
        &self.inner.record.name
    }

    /// How it was doing when it was looked at last.
    pub fn status(&self) -> PoolStatus {
        self.inner.status.borrow().clone()
    }

    /// Where the guest's disk is, or would be.
    pub fn volume_path(&self, guest: Uuid, disk: &Disk) -> PathBuf {
        let directory = self.inner.directory.guest_directory(guest);
        directory.join(disk.volume.file.as_str())
    }

    /// Where the image's file is, or would be.
    pub fn image_path(&self, name: &FileName) -> PathBuf {
        self.inner.directory.image_path(name)
    }

    /// Looks at it from now on, until it is dropped.
    pub(super) fn keep_looking(&self) {
        let pool = Arc::downgrade(&self.inner);
        tokio::spawn(keep_looking(pool));
    }

    /// Mounts it, if it is ours to mount.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub(super) async fn ensure_mounted(&self) -> Result<(), StorageError> {
        self.inner.ensure_mounted().await
    }

    /// Lets go of it: nothing is mounted any more.
    pub(super) async fn close(&self) {
        if let Some(mount) = &self.inner.mount {
            mount.close().await;
        }
    }

    /// Waits until it was looked at, or for `patience`.
    pub(super) async fn looked_at(&self, patience: Duration) {
        let mut looked = self.inner.looked.subscribe();
        let _ = tokio::time::timeout(patience, looked.wait_for(|looked| *looked)).await;
    }

    /// Works on its directory, whatever that is.
    pub(super) async fn on_any<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce(&Directory) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let directory = Arc::clone(&self.inner.directory);
        self.inner
            .gate
            .run(deadline, move || work(&directory))
            .await
    }

    /// Works on its directory, once that is seen to be the pool's.
    pub(super) async fn on<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce(&Directory) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        // Why it is not mounted says more than that it is not.
        let status = self.status();
        if self.inner.mount.is_some() && status.state == PoolState::Unavailable {
            return Err(StorageError::Unavailable {
                pool: self.name().clone(),
                reason: status.reason.unwrap_or_default(),
            });
        }
        let verified = move |directory: &Directory| {
            directory.verify()?;
            work(directory)
        };
        self.on_any(deadline, verified).await
    }

    /// Does something with its files when it can be done, and waits for nothing.
    pub(super) fn later(&self, work: impl FnOnce() + Send + 'static) {
        self.inner.gate.later(work);
    }

    /// Where an image is until it is complete.
    pub(super) fn incoming_path(&self) -> PathBuf {
        self.inner.directory.incoming_path()
    }

    /// Refuses what does not fit.
    ///
    /// # Errors
    /// [`StorageError::NoSpace`], and those of every look at a pool.
    pub async fn require_space(&self, needed_mib: u64) -> Result<(), StorageError> {
        let free_mib = self.on(DEADLINE, Directory::space).await?.free >> 20;
        if needed_mib.saturating_add(RESERVE_MIB) <= free_mib {
            return Ok(());
        }
        Err(StorageError::NoSpace {
            pool: self.name().clone(),
            needed_mib,
            free_mib,
            reserve_mib: RESERVE_MIB,
        })
    }

    /// An image.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], and those of every look at a pool.
    pub async fn image(&self, name: &FileName) -> Result<Image, StorageError> {
        let name = name.clone();
        self.on(DEADLINE, move |directory| directory.image(&name))
            .await
    }

    /// All images, by name.
    ///
    /// # Errors
    /// Those of every look at a pool.
    pub async fn list_images(&self) -> Result<Vec<Image>, StorageError> {
        self.on(DEADLINE, Directory::list_images).await
    }

    /// Removes an image. Disks that were made from it are copies and stay.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], and those of every look at a pool.
    pub async fn delete_image(&self, name: &FileName) -> Result<(), StorageError> {
        let name = name.clone();
        self.on(DEADLINE, move |directory| directory.delete_image(&name))
            .await
    }

    /// Sees that a guest's disk can be opened.
    ///
    /// # Errors
    /// [`StorageError::BadImage`] for one that is no file; those of every look at a pool.
    pub async fn require_volume(&self, guest: Uuid, disk: &Disk) -> Result<(), StorageError> {
        let file = disk.volume.file.clone();
        let check = move |directory: &Directory| directory.require_volume(guest, &file);
        self.on(DEADLINE, check).await
    }

    /// Removes all disks of a guest. Nothing happens if there are none.
    ///
    /// # Errors
    /// Those of every look at a pool.
    pub async fn delete_volumes(&self, guest: Uuid) -> Result<(), StorageError> {
        let delete = move |directory: &Directory| directory.delete_volumes(guest);
        self.on(DEADLINE, delete).await
    }
}

async fn keep_looking(pool: Weak<Inner>) {
    while let Some(inner) = pool.upgrade() {
        inner.look().await;
        inner.looked.send_replace(true);
        drop(inner);
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

impl Inner {
    /// Returns when the pool has answered, however long that takes.
    async fn look(&self) {
        if let Err(error) = self.ensure_mounted().await {
            self.set(&Err(error));
            return;
        }
        let began = Instant::now();
        let directory = Arc::clone(&self.directory);
        let mut look = Gate::begin(move || {
            directory.verify()?;
            directory.space()
        });
        let looked = tokio::time::timeout(LOOK_DEADLINE, &mut look).await;
        let looked = if let Ok(looked) = looked {
            looked
        } else {
            self.stall(began);
            self.until_it_answers(&mut look).await
        };
        self.gate.set_stalled(None);
        self.set(&looked.unwrap_or(Err(StorageError::Cancelled)));
    }

    async fn ensure_mounted(&self) -> Result<(), StorageError> {
        let Some(mount) = &self.mount else {
            return Ok(());
        };
        let mounted = mount.ensure().await;
        mounted.map_err(|reason| StorageError::Unavailable {
            pool: self.record.name.clone(),
            reason,
        })
    }

    /// Says from time to time what is wrong.
    async fn until_it_answers<T>(&self, look: &mut JoinHandle<T>) -> Result<T, JoinError> {
        let Some(mount) = &self.mount else {
            return look.await;
        };
        loop {
            let reason = mount.diagnose().await;
            self.status.send_modify(|status| {
                status.reason = Some(format!("{reason}; {WAITS}"));
            });
            if let Ok(looked) = tokio::time::timeout(LOOK_PERIOD, &mut *look).await {
                return looked;
            }
        }
    }

    fn stall(&self, since: Instant) {
        let name = &self.record.name;
        tracing::error!("pool {name} does not answer; what uses it waits until it is back");
        self.gate.set_stalled(Some(since));
        self.looked.send_replace(true);
        self.status.send_modify(|status| {
            status.state = PoolState::Stalled;
            status.reason = Some(format!("it does not answer; {WAITS}"));
        });
    }

    fn set(&self, looked: &Result<Space, StorageError>) {
        let name = &self.record.name;
        let before = self.status.borrow().clone();
        let (state, reason) = match looked {
            Ok(_) => (PoolState::Ready, None),
            Err(StorageError::Unavailable { reason, .. }) => {
                (PoolState::Unavailable, Some(reason.clone()))
            }
            Err(error) => (PoolState::Unavailable, Some(chain(error))),
        };
        if before.state != state || before.reason != reason {
            match &reason {
                None => tracing::info!("pool {name} is ready"),
                Some(reason) => tracing::error!("pool {name}: {reason}"),
            }
        }
        self.status.send_modify(|status| {
            status.state = state;
            status.reason = reason;
            if let Ok(space) = looked {
                status.total_mib = space.total >> 20;
                status.used_mib = space.used >> 20;
                status.free_mib = space.free >> 20;
            }
        });
    }
}
