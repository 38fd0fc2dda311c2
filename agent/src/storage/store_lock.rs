//! A lock that one of all nodes has: a key in the store, under a lease.
//!
//! What it guards lies on storage that knows no locks between hosts. Whoever has it keeps the lease
//! alive until it lets go; if its node dies, the lease expires and the next one may.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::StorageError;
use crate::domain::PoolName;
use crate::store::{Collection, LeaseId, Outcome, Record, Store, Transaction, encode};

/// How long the lock outlives its node.
const LEASE: Duration = Duration::from_secs(30);
/// How often it is said that the node lives.
const RENEWAL: Duration = Duration::from_secs(10);
/// How often one that somebody else has is tried.
const RETRY: Duration = Duration::from_millis(200);

/// Who changes a pool's volumes: the record that is the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    node: String,
}

impl Record for Holder {
    const KIND: &'static str = "pool-locks";
    const SCHEMA: u32 = 1;
}

/// A pool's lock.
pub(super) struct StoreLock {
    store: Arc<dyn Store>,
    key: String,
    node: String,
    pool: PoolName,
}

/// The lock, held until it is dropped.
pub(super) struct Held {
    store: Arc<dyn Store>,
    lease: LeaseId,
    keeper: JoinHandle<()>,
}

impl StoreLock {
    /// That of the storage `place`, which a pool is on or is to be on, as `node` takes it.
    pub(super) fn new(store: Arc<dyn Store>, (place, pool): (&str, PoolName), node: &str) -> Self {
        Self {
            store,
            key: Collection::<Holder>::key(place),
            node: node.to_owned(),
            pool,
        }
    }

    /// Takes it when it is free.
    ///
    /// # Errors
    /// [`StorageError::Locked`] after `patience`; [`StorageError::Store`].
    pub(super) async fn take(&self, patience: Duration) -> Result<Held, StorageError> {
        let lease = self.store.grant_lease(LEASE).await?;
        // From here on the lease goes when this is dropped.
        let held = Held {
            store: Arc::clone(&self.store),
            lease,
            keeper: tokio::spawn(keep(Arc::clone(&self.store), lease)),
        };
        let holder = Holder {
            node: self.node.clone(),
        };
        let value = encode(&self.key, &holder)?;
        let taken = async {
            loop {
                let put = Transaction::new().if_absent(&self.key).put_leased(
                    &self.key,
                    value.clone(),
                    lease,
                );
                if let Outcome::Committed(_) = self.store.commit(put).await? {
                    return Ok(());
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        match tokio::time::timeout(patience, taken).await {
            Ok(taken) => taken.map(|()| held),
            Err(_) => Err(StorageError::Locked {
                pool: self.pool.clone(),
                node: self.holder().await?,
            }),
        }
    }

    async fn holder(&self) -> Result<String, StorageError> {
        let entry = self.store.get(&self.key).await?;
        let holder = entry.as_ref().map(crate::store::decode::<Holder>);
        let holder = holder.transpose()?;
        Ok(holder.map_or_else(|| "another one".to_owned(), |stored| stored.value.node))
    }
}

async fn keep(store: Arc<dyn Store>, lease: LeaseId) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        if let Err(error) = store.keep_alive(lease).await {
            tracing::warn!("the lock of a pool: {error}");
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keeper.abort();
        // Without a runtime the agent ends, and the lease with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (store, lease) = (Arc::clone(&self.store), self.lease);
        runtime.spawn(async move {
            if let Err(error) = store.revoke_lease(lease).await {
                tracing::warn!("the lock of a pool is free in a while only: {error}");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SqliteStore;

    #[tokio::test]
    async fn one_of_two_nodes_has_it_and_the_other_hears_who() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let pool = PoolName::try_from("san".to_owned()).unwrap();
        let lock = |node: &str| StoreLock::new(Arc::clone(&store), ("place", pool.clone()), node);
        let (one, two) = (lock("node1"), lock("node2"));
        let held = one.take(Duration::from_secs(10)).await.unwrap();
        let error = two.take(Duration::from_millis(300)).await.err().unwrap();
        assert!(error.to_string().contains("node1"), "{error}");
        // One that waits gets it as soon as it is free.
        let waits = two.take(Duration::from_secs(60));
        let frees = async { drop(held) };
        let (taken, ()) = tokio::join!(waits, frees);
        drop(taken.unwrap());
    }
}
