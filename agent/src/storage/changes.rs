//! Pools that are made, and pools that are forgotten.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::directory::Directory;
use super::pool::{DEADLINE, Place};
use super::volume_group::VolumeGroup;
use super::{Pool, Pools, StorageError};
use crate::causes::chain;
use crate::clock::now_unix_ms;
use crate::domain::{PoolName, PoolRecord, PoolSource, PoolSpec, overlap};
use crate::store::Outcome;

/// How long a volume group may take to be made: with a login, and another node at it before us.
const FOUND_DEADLINE: Duration = Duration::from_secs(90);

impl Pools {
    /// Makes a pool, of storage that this node can reach.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn create(&self, spec: &PoolSpec) -> Result<Pool, StorageError> {
        let mut record = spec.record(Uuid::new_v4(), now_unix_ms())?;
        let exists = || StorageError::PoolExists(record.name.clone());
        let records = self.records().await?;
        let taken = records.iter().any(|other| other.name == record.name);
        if taken || record.name.is_local() {
            return Err(exists());
        }
        self.refuse_overlap(&record, &records)?;
        let pool = self.make(record.clone());
        match found(&pool).await {
            Ok(lun) => record.source.set_lun(lun),
            Err(error) => {
                pool.close().await;
                return Err(error);
            }
        }
        let created = self.inner.records.create(record.name.as_str(), &record);
        let failed = match created.await {
            Ok(Outcome::Committed(_)) => return self.get(&record.name).await,
            Ok(Outcome::Conflict) => exists(),
            Err(error) => error.into(),
        };
        let given_up = give_up(&pool).await;
        pool.close().await;
        given_up?;
        Err(failed)
    }

    /// One pool inside another would be two that know nothing of each other.
    fn refuse_overlap(
        &self,
        record: &PoolRecord,
        records: &[PoolRecord],
    ) -> Result<(), StorageError> {
        let refuse = |what: String| {
            let reason = format!("it overlaps with {what}; choose another place");
            Err(bad_place(&record.source, reason))
        };
        let state_dir = &self.inner.config.state_dir;
        if let PoolSource::Dir { path, .. } = &record.source
            && overlap(path, state_dir)
        {
            return refuse(format!("the agent's own {}", state_dir.display()));
        }
        for other in records {
            if let Some(place) = record.source.overlap(&other.source) {
                return refuse(format!("pool {} in {place}", other.name));
            }
        }
        Ok(())
    }

    /// From now on nothing new goes to the pool, until [`Self::end_deletion`].
    ///
    /// # Errors
    /// [`StorageError::NoPool`], [`StorageError::BuiltIn`], [`StorageError::Store`].
    pub async fn begin_deletion(&self, name: &PoolName) -> Result<PoolRecord, StorageError> {
        if name.is_local() {
            return Err(StorageError::BuiltIn);
        }
        self.set_deleting(name, true).await
    }

    async fn set_deleting(&self, name: &PoolName, to: bool) -> Result<PoolRecord, StorageError> {
        let records = &self.inner.records;
        let updated = records.update(name.as_str(), |record| record.deleting = to);
        let updated = updated.await?;
        let updated = updated.ok_or_else(|| StorageError::NoPool(name.clone()))?;
        Ok(updated.value)
    }

    /// Forgets the pool; what is in it stays. Otherwise it is as before.
    ///
    /// # Errors
    /// [`StorageError::Store`].
    pub async fn end_deletion(
        &self,
        record: &PoolRecord,
        delete: bool,
    ) -> Result<(), StorageError> {
        if !delete {
            return self.set_deleting(&record.name, false).await.map(|_| ());
        }
        let pool = self.get(&record.name).await?;
        // A pool whose storage is gone for good can be forgotten, too.
        if let Err(error) = give_up(&pool).await {
            tracing::warn!("pool {}: {}", record.name, chain(&error));
        }
        self.inner.records.delete(record.name.as_str()).await?;
        self.refresh().await
    }
}

/// Makes the storage the pool's own. The LUN that it is on, if it is on one.
async fn found(pool: &Pool) -> Result<Option<u16>, StorageError> {
    let source = &pool.record().source;
    let directory = match pool.place() {
        Place::Volumes(group) => {
            let found = |group: Arc<VolumeGroup>| async move { group.found().await };
            // It has not been looked at yet, and so is not known to be there.
            return pool
                .on_any_group(group, FOUND_DEADLINE, found)
                .await
                .map(Some);
        }
        Place::Files { directory, .. } => directory,
    };
    pool.reach().await?;
    if directory.is_media {
        pool.on_any(DEADLINE, Directory::verify).await?;
        return Ok(None);
    }
    let own = matches!(source, PoolSource::Dir { .. });
    let founded = pool.on_any(DEADLINE, move |directory| {
        if own {
            directory.require_plain()?;
        }
        directory.found()
    });
    match founded.await {
        Err(StorageError::Io { source: error, .. })
            if !own && error.kind() == ErrorKind::PermissionDenied =>
        {
            let reason = "the server lets root write nothing there: export it with no_root_squash";
            Err(bad_place(source, reason.to_owned()))
        }
        founded => founded.map(|()| None),
    }
}

/// The storage is no pool's any more; what is in it stays.
async fn give_up(pool: &Pool) -> Result<(), StorageError> {
    match pool.place() {
        Place::Volumes(group) => {
            let give_up = |group: Arc<VolumeGroup>| async move { group.give_up().await };
            pool.on_any_group(group, FOUND_DEADLINE, give_up).await
        }
        Place::Files { directory, .. } if directory.is_media => Ok(()),
        Place::Files { .. } => pool.on_any(DEADLINE, Directory::give_up).await,
    }
}

fn bad_place(source: &PoolSource, reason: String) -> StorageError {
    let path = match source {
        PoolSource::Dir { path, .. } => path.clone(),
        PoolSource::Nfs { export, .. } => export.into(),
        PoolSource::Iscsi { target, .. } => target.into(),
    };
    StorageError::BadPath { path, reason }
}
