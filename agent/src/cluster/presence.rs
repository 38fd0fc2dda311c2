//! The node's lease: what says that its agent runs, and lets it start guests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::records::NodeAlive;
use crate::clock::now_unix_ms;
use crate::store::{
    Collection, LeaseId, Outcome, Revision, Store, StoreError, Transaction, encode,
};

/// How long a node that is not heard of is taken for alive.
pub const LEASE: Duration = Duration::from_secs(20);
/// How often the lease is renewed.
const RENEWAL: Duration = Duration::from_secs(5);
/// How long a lost lease waits for the next try.
const RETRY: Duration = Duration::from_millis(500);

/// A lease that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The lease.
    pub lease: LeaseId,
    /// Last change of the key that stands for it.
    revision: Revision,
}

/// This node's presence.
#[derive(Clone)]
pub struct Presence {
    store: Arc<dyn Store>,
    node: String,
    held: Arc<watch::Sender<Option<Held>>>,
}

impl Presence {
    /// That of `node`; see [`Self::keep`].
    pub fn new(store: Arc<dyn Store>, node: &str) -> Self {
        Self {
            store,
            node: node.to_owned(),
            held: Arc::new(watch::Sender::new(None)),
        }
    }

    /// The lease, if there is one now.
    pub fn held(&self) -> Option<Held> {
        *self.held.borrow()
    }

    /// Tells of each new lease.
    pub fn subscribe(&self) -> watch::Receiver<Option<Held>> {
        self.held.subscribe()
    }

    /// The transaction, carried out only while this node has its lease. Waits a little for a lease
    /// that is on its way.
    ///
    /// # Errors
    /// [`StoreError::NoMajority`]: there is none, as there is nobody to give one.
    pub async fn guard(&self, transaction: Transaction) -> Result<Transaction, StoreError> {
        let mut held = self.subscribe();
        let wait = held.wait_for(Option::is_some);
        let held = match tokio::time::timeout(RENEWAL, wait).await {
            Ok(Ok(held)) => *held,
            _ => None,
        };
        let held = held.ok_or(StoreError::NoMajority)?;
        let key = Collection::<NodeAlive>::key(&self.node);
        Ok(transaction.if_unchanged(key, held.revision))
    }

    /// Gets and keeps the lease, for ever.
    pub async fn keep(self) {
        let since_unix_ms = now_unix_ms();
        loop {
            match self.acquire(since_unix_ms).await {
                Ok(held) => {
                    self.held.send_replace(Some(held));
                    self.renew(held).await;
                    self.held.send_replace(None);
                }
                Err(StoreError::NoMajority) => {
                    self.store.settled(RENEWAL).await;
                }
                Err(error) => tracing::warn!("this node's lease: {error}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn acquire(&self, since_unix_ms: u64) -> Result<Held, StoreError> {
        let lease = self.store.grant_lease(LEASE).await?;
        let key = Collection::<NodeAlive>::key(&self.node);
        let value = encode(&key, &NodeAlive { since_unix_ms })?;
        let put = Transaction::new().put_leased(&key, value, lease);
        match self.store.commit(put).await? {
            Outcome::Committed(revision) => Ok(Held { lease, revision }),
            Outcome::Conflict => Err(StoreError::Engine(
                "a conflict without condition".to_owned(),
            )),
        }
    }

    /// Until it is gone, or has certainly expired unrenewed.
    async fn renew(&self, held: Held) {
        let mut renewed = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(RENEWAL).await;
            let now = tokio::time::Instant::now();
            match self.store.keep_alive(held.lease).await {
                Ok(()) => renewed = now,
                Err(StoreError::LeaseGone(_)) => return,
                Err(error) if renewed.elapsed() > LEASE => {
                    tracing::warn!("this node's lease has expired: {error}");
                    return;
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SqliteStore;

    #[tokio::test]
    async fn guarded_change_is_refused_when_the_lease_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let presence = Presence::new(Arc::clone(&store), "node1");
        let keeper = tokio::spawn(presence.clone().keep());
        let put = || Transaction::new().put("a", b"1".to_vec());
        let guarded = presence.guard(put()).await.unwrap();
        let outcome = store.commit(guarded.clone()).await.unwrap();
        assert!(matches!(outcome, Outcome::Committed(_)));
        keeper.abort();
        let lease = presence.held().unwrap().lease;
        store.revoke_lease(lease).await.unwrap();
        let outcome = store.commit(guarded).await.unwrap();
        assert_eq!(outcome, Outcome::Conflict);
    }
}
