//! All pools, as this node has them: its own, and those that have a record.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::directory::Directory;
use super::pool::Place;
use super::{Pool, PoolState, PoolStatus, Source, StorageError, iscsi_mark, nfs};
use crate::causes::chain;
use crate::domain::{Disk, Guest, ImageRef, PoolName, PoolRecord, PoolSource};
use crate::store::{Collection, Store, Stored, Transaction};

/// How often the records are looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// How long a pool that was just opened may take to be looked at.
const LOOK_PATIENCE: Duration = Duration::from_millis(800);

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
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) config: PoolsConfig,
    pub(super) records: Collection<PoolRecord>,
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
        match pools.refresh().await {
            Ok(()) => pools.unmount_strays().await,
            Err(error) => tracing::error!("pools: {}", chain(&error)),
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
    pub(super) async fn refresh(&self) -> Result<(), StorageError> {
        let records = self.records().await?;
        let mut gone = Vec::new();
        {
            let mut others = self.others();
            others.retain(|_, pool| {
                let kept = records.iter().any(|record| record.id == pool.record().id);
                if !kept {
                    gone.push(pool.clone());
                }
                kept
            });
            for record in records {
                let name = record.name.clone();
                others.entry(name).or_insert_with(|| {
                    let pool = self.make(record);
                    pool.keep_looking();
                    pool
                });
            }
        }
        for pool in gone {
            tracing::info!("pool {} is gone", pool.name());
            pool.close().await;
        }
        Ok(())
    }

    /// Unmounts what an agent before us has mounted for pools that are no more.
    async fn unmount_strays(&self) {
        let known = self.all();
        let id = |pool: &Pool| std::ffi::OsString::from(pool.record().id.to_string());
        let known: Vec<_> = known.iter().map(id).collect();
        let state_dir = &self.inner.config.state_dir;
        let keep = |point: &Path| known.iter().any(|id| point.file_name() == Some(id));
        nfs::unmount_others(&nfs::directory(state_dir), keep).await;
        iscsi_mark::log_out_others(&iscsi_mark::directory(state_dir), keep).await;
    }

    /// Lets go of those that nobody uses: the agent ends.
    pub async fn leave(&self, used: &BTreeSet<PoolName>) {
        let all = self.all();
        let unused = all.iter().filter(|pool| !used.contains(pool.name()));
        futures_util::future::join_all(unused.map(Pool::close)).await;
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

    /// A pool, to work with: one that was just opened is waited for, a moment.
    ///
    /// # Errors
    /// [`StorageError::NoPool`], [`StorageError::Store`].
    pub async fn get(&self, name: &PoolName) -> Result<Pool, StorageError> {
        let pool = self.find(name).await?;
        pool.looked_at(LOOK_PATIENCE).await;
        Ok(pool)
    }

    /// A pool, to look at what is known of it.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn find(&self, name: &PoolName) -> Result<Pool, StorageError> {
        if name.is_local() {
            return Ok(self.inner.local.clone());
        }
        let record = self.record(name).await?.value;
        let open = self.others().get(name).cloned();
        let open = open.filter(|pool| pool.record().id == record.id);
        if let Some(pool) = open {
            return Ok(pool);
        }
        self.refresh().await?;
        let opened = self.others().get(name).cloned();
        opened.ok_or_else(|| StorageError::NoPool(name.clone()))
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
        for name in guest.needed_pools() {
            let pool = self.get(&name).await?;
            pools.insert(name, pool);
        }
        Ok(GuestPools { pools })
    }

    /// The disks of a guest that are in pools which are open, each with its pool.
    fn open_disks<'a>(&self, guest: &'a Guest) -> Vec<(Pool, &'a Disk)> {
        let others = self.others();
        let disks = guest.disks.iter();
        disks
            .filter_map(|disk| Some((others.get(&disk.volume.pool)?.clone(), disk)))
            .collect()
    }

    /// A pool that the guest's disks are in and that does not answer, if there is one.
    pub fn troubled(&self, guest: &Guest) -> Option<PoolStatus> {
        let disks = self.open_disks(guest).into_iter();
        let mut statuses = disks.map(|(pool, _)| pool.status());
        statuses.find(|status| status.state != PoolState::Ready)
    }

    /// Waits until all pools answer that the guest's disks are in.
    pub async fn wait_ready(&self, guest: &Guest) {
        for (pool, _) in self.open_disks(guest) {
            pool.wait_ready().await;
        }
    }

    /// Takes note that the guest runs here already.
    pub fn note_attached(&self, guest: &Guest) {
        for (pool, disk) in self.open_disks(guest) {
            pool.note_attached(guest.uuid, disk);
        }
    }

    /// Lets go of the disks of a guest that has no process here.
    pub async fn detach(&self, guest: &Guest) {
        for (pool, disk) in self.open_disks(guest) {
            pool.detach(guest.uuid, disk).await;
        }
    }

    /// Lets a transaction that writes a guest's record happen only while its pools are there.
    ///
    /// # Errors
    /// [`StorageError::NoPool`], [`StorageError::Deleting`], [`StorageError::Store`].
    pub async fn guard(
        &self,
        mut transaction: Transaction,
        guest: &Guest,
    ) -> Result<Transaction, StorageError> {
        for name in guest.pools().iter().filter(|name| !name.is_local()) {
            let stored = self.record(name).await?;
            if stored.value.deleting {
                return Err(StorageError::Deleting(name.clone()));
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
        chap_password: None,
        deleting: false,
        created_unix_ms: 0,
    };
    let directory = Directory::new(PoolName::local(), path, config.node.clone(), None);
    directory.make_parts()?;
    let place = Place::Files {
        directory: Arc::new(directory),
        mount: None,
    };
    let pool = Pool::new(record, place);
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
    /// As [`Self::get`]; [`StorageError::Unfit`].
    pub fn image_path(&self, image: &ImageRef) -> Result<PathBuf, StorageError> {
        self.get(&image.pool_or_local())?.image_path(&image.file)
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

    /// Makes the guest's disks ones that this node can open, until [`Pools::detach`].
    ///
    /// # Errors
    /// Those of every look at a pool.
    pub async fn attach(&self, guest: &Guest) -> Result<(), StorageError> {
        for disk in &guest.disks {
            let pool = self.get(&disk.volume.pool)?;
            pool.attach(guest.uuid, disk).await?;
        }
        Ok(())
    }
}
