//! A pool as this node has it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use super::directory::{Directory, Space};
use super::gate::Gate;
use super::nfs::NfsMount;
use super::pool_look::keep_looking;
use super::volume_group::{VolumeGroup, volume_name};
use super::{Image, PoolState, PoolStatus, StorageError};
use crate::domain::{Disk, FileName, PoolName, PoolRecord};

/// How long a pool may take for what a request wants to know.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// As [`DEADLINE`], where that is a program's.
pub(super) const GROUP_DEADLINE: Duration = Duration::from_secs(15);
/// How long a pool may take to let go.
const CLOSE_DEADLINE: Duration = Duration::from_secs(20);
/// Space that is not given to new disks and images, in MiB: guests' disks grow.
const RESERVE_MIB: u64 = 256;

/// A pool.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

/// What a pool's storage is on this node.
pub(super) enum Place {
    /// Files, in a directory.
    Files {
        directory: Arc<Directory>,
        /// What it is there by, if that is ours to do.
        mount: Option<NfsMount>,
    },
    /// Block devices.
    Volumes(Arc<VolumeGroup>),
}

pub(super) struct Inner {
    pub(super) record: PoolRecord,
    pub(super) place: Place,
    pub(super) gate: Gate,
    pub(super) status: watch::Sender<PoolStatus>,
    pub(super) looked: watch::Sender<bool>,
}

impl Pool {
    /// Touches nothing yet: see [`Self::keep_looking`].
    pub(super) fn new(record: PoolRecord, place: Place) -> Self {
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
                place,
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

    /// Waits until it answers.
    pub(super) async fn wait_ready(&self) {
        let mut status = self.inner.status.subscribe();
        // It is told of as long as there is a pool, which `self` is.
        let _ = status
            .wait_for(|status| status.state == PoolState::Ready)
            .await;
    }

    /// Where the guest's disk is, or would be.
    pub fn volume_path(&self, guest: Uuid, disk: &Disk) -> PathBuf {
        let file = &disk.volume.file;
        match &self.inner.place {
            Place::Files { directory, .. } => directory.guest_directory(guest).join(file.as_str()),
            Place::Volumes(group) => group.path(&volume_name(guest, file)),
        }
    }

    /// Where the image's file is, or would be.
    ///
    /// # Errors
    /// [`StorageError::Unfit`].
    pub fn image_path(&self, name: &FileName) -> Result<PathBuf, StorageError> {
        Ok(self.files()?.image_path(name))
    }

    pub(super) fn place(&self) -> &Place {
        &self.inner.place
    }

    fn files(&self) -> Result<&Arc<Directory>, StorageError> {
        match &self.inner.place {
            Place::Files { directory, .. } => Ok(directory),
            Place::Volumes(_) => Err(StorageError::Unfit {
                pool: self.name().clone(),
                reason: "holds disks only; keep images in another pool, disks are copied from there",
            }),
        }
    }

    /// Refuses a pool that no file of ours can be written to.
    ///
    /// # Errors
    /// [`StorageError::Unfit`].
    pub(super) fn require_writable(&self) -> Result<(), StorageError> {
        if self.files()?.is_media {
            return Err(StorageError::Unfit {
                pool: self.name().clone(),
                reason: "is read-only; change its files where they are kept",
            });
        }
        Ok(())
    }

    /// Refuses a pool that holds no disks.
    ///
    /// # Errors
    /// [`StorageError::Unfit`].
    pub fn require_disks(&self) -> Result<(), StorageError> {
        if self.record().source.holds_disks() {
            return Ok(());
        }
        Err(StorageError::Unfit {
            pool: self.name().clone(),
            reason: "is read-only and holds images only; choose another pool for the disk",
        })
    }

    /// A disk as it would be here.
    pub fn held_here(&self, disk: &Disk) -> Disk {
        let source = &self.record().source;
        let mut held = disk.in_format(source.disk_format().unwrap_or(disk.format));
        held.size_mib = source.disk_size_mib(disk.size_mib);
        held
    }

    /// Looks at it from now on, until it is dropped.
    pub(super) fn keep_looking(&self) {
        let pool = Arc::downgrade(&self.inner);
        tokio::spawn(keep_looking(pool));
    }

    /// Mounts it, or logs in, if that is ours to do.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub(super) async fn reach(&self) -> Result<(), StorageError> {
        self.inner.reach().await
    }

    /// Lets go of it: nothing is mounted or active any more.
    pub(super) async fn close(&self) {
        match &self.inner.place {
            Place::Files { mount: None, .. } => {}
            Place::Files {
                mount: Some(mount), ..
            } => mount.close().await,
            Place::Volumes(group) => {
                let closed = tokio::time::timeout(CLOSE_DEADLINE, group.close()).await;
                if closed.is_err() {
                    tracing::warn!("pool {} does not let go", self.name());
                }
            }
        }
    }

    /// Works on its volume group.
    pub(super) async fn on_group<T, F>(
        &self,
        group: &Arc<VolumeGroup>,
        deadline: Duration,
        work: impl FnOnce(Arc<VolumeGroup>) -> F,
    ) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StorageError>> + Send + 'static,
    {
        self.require_reached()?;
        self.on_any_group(group, deadline, work).await
    }

    /// Works on its volume group, which may not be known to be there.
    pub(super) async fn on_any_group<T, F>(
        &self,
        group: &Arc<VolumeGroup>,
        deadline: Duration,
        work: impl FnOnce(Arc<VolumeGroup>) -> F,
    ) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StorageError>> + Send + 'static,
    {
        let work = work(Arc::clone(group));
        self.inner.gate.run_program(deadline, work).await
    }

    /// Why it cannot be used says more than that it cannot.
    fn require_reached(&self) -> Result<(), StorageError> {
        let status = self.status();
        let ours = !matches!(self.inner.place, Place::Files { mount: None, .. });
        if ours && status.state == PoolState::Unavailable {
            return Err(StorageError::Unavailable {
                pool: self.name().clone(),
                reason: status.reason.unwrap_or_default(),
            });
        }
        Ok(())
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
        let directory = Arc::clone(self.files()?);
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
        self.require_reached()?;
        let verified = move |directory: &Directory| {
            directory.verify()?;
            work(directory)
        };
        self.on_any(deadline, verified).await
    }

    /// Works on a file of it that is open.
    pub(super) async fn on_open<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.inner.gate.run(deadline, work).await
    }

    /// Does something with its files when it can be done, and waits for nothing.
    pub(super) fn later(&self, work: impl FnOnce() + Send + 'static) {
        self.inner.gate.later(work);
    }

    /// Where an image is until it is complete.
    ///
    /// # Errors
    /// [`StorageError::Unfit`].
    pub(super) fn incoming_path(&self) -> Result<PathBuf, StorageError> {
        self.require_writable()?;
        Ok(self.files()?.incoming_path())
    }

    async fn space(&self) -> Result<Space, StorageError> {
        match &self.inner.place {
            Place::Files { .. } => self.on(DEADLINE, Directory::space).await,
            Place::Volumes(group) => {
                let space = |group: Arc<VolumeGroup>| async move { group.space().await };
                self.on_group(group, GROUP_DEADLINE, space).await
            }
        }
    }

    /// Refuses what does not fit.
    ///
    /// # Errors
    /// [`StorageError::NoSpace`], and those of every look at a pool.
    pub async fn require_space(&self, needed_mib: u64) -> Result<(), StorageError> {
        let free_mib = self.space().await?.free >> 20;
        let reserve_mib = match self.inner.place {
            Place::Files { .. } => RESERVE_MIB,
            Place::Volumes(_) => 0,
        };
        if needed_mib.saturating_add(reserve_mib) <= free_mib {
            return Ok(());
        }
        Err(StorageError::NoSpace {
            pool: self.name().clone(),
            needed_mib,
            free_mib,
            reserve_mib,
        })
    }

    /// An image.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], and those of every look at a pool.
    pub async fn image(&self, name: &FileName) -> Result<Image, StorageError> {
        if let Place::Volumes(_) = self.inner.place {
            return Err(StorageError::NoImage {
                image: name.to_string(),
                pool: self.name().to_string(),
            });
        }
        let name = name.clone();
        self.on(DEADLINE, move |directory| directory.image(&name))
            .await
    }

    /// All images, by name.
    ///
    /// # Errors
    /// Those of every look at a pool.
    pub async fn list_images(&self) -> Result<Vec<Image>, StorageError> {
        if let Place::Volumes(_) = self.inner.place {
            return Ok(Vec::new());
        }
        self.on(DEADLINE, Directory::list_images).await
    }

    /// Removes an image. Disks that were made from it are copies and stay.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], [`StorageError::Unfit`], and those of every look at a pool.
    pub async fn delete_image(&self, name: &FileName) -> Result<(), StorageError> {
        self.require_writable()?;
        let name = name.clone();
        self.on(DEADLINE, move |directory| directory.delete_image(&name))
            .await
    }
}
