//! All pools, as this node has them: its own, and those that have a record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::directory::Directory;
use super::mark::Mark;
use super::{Pool, PoolStatus, Source, StorageError};
use crate::causes::chain;
use crate::clock::now_unix_ms;
use crate::domain::{Guest, ImageRef, PoolName, PoolRecord, PoolSource, PoolSpec};
use crate::store::{Collection, Outcome, Store, Stored, Transaction};

/// How often the records are looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// How long a pool that was just opened may take to be looked at.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);

/// What pools are made of.
pub struct PoolsConfig {
    /// The node.
    pub node: String,
    /// The agent's state directory, with the node's own pool in it.
    pub state_dir: PathBuf,
    /// Where disks are kept if nothing else is said.
    pub default_pool: PoolName,
    /// Where the records are.
    pub store: Arc<dyn Store>,
}

/// All pools.
#[derive(Clone)]
pub struct Pools {
    inner: Arc<Inner>,
}

struct Inner {
    config: PoolsConfig,
    records: Collection<PoolRecord>,
    local: Pool,
    others: Mutex<BTreeMap<PoolName, Pool>>,
}

impl Pools {
    /// Opens the node's own, and begins to open the others. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub async fn open(config: PoolsConfig) -> Result<Self, StorageError> {
        let local = open_local(&config)?;
        let pools = Self {
            inner: Arc::new(Inner {
                records: Collection::new(Arc::clone(&config.store)),
                config,
                local,
                others: Mutex::default(),
            }),
        };
        pools.inner.local.looked_at(LOOK_PATIENCE).await;
        if let Err(error) = pools.refresh().await {
            tracing::error!("pools: {}", chain(&error));
        }
        let weak = Arc::downgrade(&pools.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PERIOD).await;
                let Some(inner) = weak.upgrade() else { return };
                if let Err(error) = (Self { inner }).refresh().await {
                    tracing::debug!("pools: {}", chain(&error));
                }
            }
        });
        Ok(pools)
    }

    fn others(&self) -> MutexGuard<'_, BTreeMap<PoolName, Pool>> {
        let others = self.inner.others.lock();
        others.unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's own.
    pub fn local(&self) -> &Pool {
        &self.inner.local
    }

    /// Where disks are kept if nothing else is said.
    pub fn default_pool(&self) -> &PoolName {
        &self.inner.config.default_pool
    }

    /// Opens those that have a record, and closes those that have none any more.
    async fn refresh(&self) -> Result<(), StorageError> {
        let records = self.records().await?;
        let mut others = self.others();
        others.retain(|name, pool| {
            let kept = records.iter().any(|record| record.id == pool.record().id);
            if !kept {
                tracing::info!("pool {name} is gone");
            }
            kept
        });
        for record in records {
            if !others.contains_key(&record.name) {
                others.insert(record.name.clone(), self.make(record));
            }
        }
        Ok(())
    }

    fn make(&self, record: PoolRecord) -> Pool {
        let PoolSource::Dir { path, .. } = &record.source;
        let mark = Mark {
            pool: record.name.clone(),
            id: record.id,
        };
        let node = self.inner.config.node.clone();
        let mut directory = Directory::new(record.name.clone(), path.clone(), node, Some(mark));
        if !record.source.is_shared() {
            let known = self.inner.config.state_dir.join("pools");
            directory.known = Some(known.join(record.id.to_string()));
        }
        let pool = Pool::new(record, directory);
        pool.keep_looking();
        pool
    }

    /// The records, the node's own pool not among them.
    ///
    /// # Errors
    /// [`StorageError::Store`].
    pub async fn records(&self) -> Result<Vec<PoolRecord>, StorageError> {
        let records = self.inner.records.all().await?.into_iter();
        Ok(records.map(|stored| stored.value).collect())
    }

    /// A record; the node's own pool has none.
    ///
    /// # Errors
    /// [`StorageError::NoPool`], [`StorageError::Store`].
    pub async fn record(&self, name: &PoolName) -> Result<Stored<PoolRecord>, StorageError> {
        let found = self.inner.records.get(name.as_str()).await?;
        found.ok_or_else(|| StorageError::NoPool(name.clone()))
    }

    /// A pool.
    ///
    /// # Errors
    /// [`StorageError::NoPool`], [`StorageError::Store`].
    pub async fn get(&self, name: &PoolName) -> Result<Pool, StorageError> {
        if name.is_local() {
            return Ok(self.inner.local.clone());
        }
        let record = self.record(name).await?.value;
        let open = self.others().get(name).cloned();
        if let Some(pool) = open.filter(|pool| pool.record().id == record.id) {
            return Ok(pool);
        }
        self.refresh().await?;
        let opened = self.others().get(name).cloned();
        let pool = opened.ok_or_else(|| StorageError::NoPool(name.clone()))?;
        pool.looked_at(LOOK_PATIENCE).await;
        Ok(pool)
    }

    /// All pools, the node's own first.
    pub fn all(&self) -> Vec<Pool> {
        let mut all = vec![self.inner.local.clone()];
        all.extend(self.others().values().cloned());
        all
    }

    /// How all of them are doing, as seen last.
    pub fn statuses(&self) -> Vec<PoolStatus> {
        self.all().iter().map(Pool::status).collect()
    }

    /// Those that a guest needs on the node that runs it.
    ///
    /// # Errors
    /// [`StorageError::NoPool`], [`StorageError::Store`].
    pub async fn of(&self, guest: &Guest) -> Result<GuestPools, StorageError> {
        let mut pools = BTreeMap::new();
        for name in guest.pools() {
            let pool = self.get(&name).await?;
            pools.insert(name, pool);
        }
        Ok(GuestPools { pools })
    }

    /// Lets a transaction that writes a guest's record happen only while its pools are there.
    ///
    /// # Errors
    /// [`StorageError::NoPool`], [`StorageError::Store`].
    pub async fn guard(
        &self,
        mut transaction: Transaction,
        guest: &Guest,
    ) -> Result<Transaction, StorageError> {
        for name in guest.pools().iter().filter(|name| !name.is_local()) {
            let stored = self.record(name).await?;
            if stored.value.deleting {
                return Err(StorageError::NoPool(name.clone()));
            }
            let key = Collection::<PoolRecord>::key(name.as_str());
            transaction = transaction.if_unchanged(key, stored.revision);
        }
        Ok(transaction)
    }

    /// The image that a request names.
    ///
    /// # Errors
    /// [`StorageError::NoImage`], [`StorageError::NoPool`], and those of every look at a pool.
    pub async fn find_image(&self, image: &ImageRef) -> Result<Source, StorageError> {
        let default = self.default_pool();
        let places = match &image.pool {
            Some(pool) => vec![pool.clone()],
            None if default.is_local() => vec![PoolName::local()],
            None => vec![PoolName::local(), default.clone()],
        };
        for name in &places {
            let pool = self.get(name).await?;
            match pool.image(&image.file).await {
                Err(StorageError::NoImage { .. }) => {}
                found => {
                    let image = found?;
                    return Ok(Source { pool, image });
                }
            }
        }
        let places: Vec<&str> = places.iter().map(PoolName::as_str).collect();
        Err(StorageError::NoImage {
            image: image.file.to_string(),
            pool: places.join(" or "),
        })
    }

    /// Makes a pool, of a directory that is there on this node.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn create(&self, spec: &PoolSpec) -> Result<Pool, StorageError> {
        let record = spec.record(Uuid::new_v4(), now_unix_ms())?;
        let exists = || StorageError::PoolExists(record.name.clone());
        let records = self.records().await?;
        let taken = records.iter().any(|other| other.name == record.name);
        if taken || record.name.is_local() {
            return Err(exists());
        }
        self.refuse_overlap(&record, &records)?;
        let pool = self.make(record.clone());
        pool.on_any(super::pool::DEADLINE, Directory::found).await?;
        let created = self.inner.records.create(record.name.as_str(), &record);
        let failed = match created.await {
            Ok(Outcome::Committed(_)) => {
                return self.get(&record.name).await;
            }
            Ok(Outcome::Conflict) => exists(),
            Err(error) => error.into(),
        };
        pool.on_any(super::pool::DEADLINE, Directory::give_up)
            .await?;
        Err(failed)
    }

    /// One pool inside another would be two that know nothing of each other.
    fn refuse_overlap(
        &self,
        record: &PoolRecord,
        records: &[PoolRecord],
    ) -> Result<(), StorageError> {
        let PoolSource::Dir { path, .. } = &record.source;
        let refuse = |what: String| StorageError::BadPath {
            path: path.clone(),
            reason: format!("it overlaps with {what}; choose another directory"),
        };
        let overlaps = |other: &Path| path.starts_with(other) || other.starts_with(path);
        let state_dir = &self.inner.config.state_dir;
        if overlaps(state_dir) {
            let what = format!("the agent's own {}", state_dir.display());
            return Err(refuse(what));
        }
        for other in records {
            let PoolSource::Dir { path: taken, .. } = &other.source;
            if overlaps(taken) {
                let what = format!("pool {} in {}", other.name, taken.display());
                return Err(refuse(what));
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
        self.inner.records.delete(record.name.as_str()).await?;
        // A pool whose storage is gone for good can be forgotten, too.
        let given_up = pool.on_any(super::pool::DEADLINE, Directory::give_up);
        if let Err(error) = given_up.await {
            tracing::warn!("pool {}: {}", record.name, chain(&error));
        }
        self.refresh().await
    }
}

fn open_local(config: &PoolsConfig) -> Result<Pool, StorageError> {
    let path = config.state_dir.join("pool");
    let record = PoolRecord {
        id: Uuid::nil(),
        name: PoolName::local(),
        source: PoolSource::Dir {
            path: path.clone(),
            shared: false,
        },
        deleting: false,
        created_unix_ms: 0,
    };
    let directory = Directory::new(PoolName::local(), path, config.node.clone(), None);
    directory.make_parts()?;
    let pool = Pool::new(record, directory);
    pool.keep_looking();
    Ok(pool)
}

/// The pools that a guest needs.
#[derive(Clone)]
pub struct GuestPools {
    pools: BTreeMap<PoolName, Pool>,
}

impl GuestPools {
    /// The pool of this name.
    ///
    /// # Errors
    /// [`StorageError::NoPool`]: the guest does not need it.
    pub fn get(&self, name: &PoolName) -> Result<&Pool, StorageError> {
        let pool = self.pools.get(name);
        pool.ok_or_else(|| StorageError::NoPool(name.clone()))
    }

    /// Where an image's file is.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn image_path(&self, image: &ImageRef) -> Result<PathBuf, StorageError> {
        Ok(self.get(&image.pool_or_local())?.image_path(&image.file))
    }

    /// Sees that the guest's disks and images are there and can be opened.
    ///
    /// # Errors
    /// Those of every look at a pool.
    pub async fn require(&self, guest: &Guest) -> Result<(), StorageError> {
        for disk in &guest.disks {
            let pool = self.get(&disk.volume.pool)?;
            pool.require_volume(guest.uuid, disk).await?;
        }
        for image in guest.boot_images() {
            let pool = self.get(&image.pool_or_local())?;
            pool.image(&image.file).await?;
        }
        Ok(())
    }
}
