//! The store of a node in a cluster: etcd while there is a majority, and the node's own copy for
//! reads while there is none.
//!
//! ```text
//!              get, list                  commit, lease, watch
//!                  │                               │
//!   majority: etcd, linearizable            majority: etcd
//!   none:     the mirror, maybe old         none:     NoMajority, at once
//! ```
//!
//! Revisions in the mirror are etcd's, so a swap that was read there fails when it was old.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use super::mirror::Mirror;
use super::{
    Entry, EtcdStore, LeaseId, Outcome, Page, Revision, Store, StoreError, Transaction, Watch,
};

/// How long one look for the majority waits.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);
/// How often it is looked for while it is there, and while it is not.
const PROBE_PERIOD: Duration = Duration::from_secs(2);
const PROBE_PERIOD_WITHOUT: Duration = Duration::from_millis(500);
/// How long it may be away before it is taken for lost: an election is shorter.
const PATIENCE: Duration = Duration::from_secs(9);

/// A store that is etcd with a copy at hand.
#[derive(Clone)]
pub struct ClusterStore {
    etcd: EtcdStore,
    mirror: Mirror,
    majority: Arc<watch::Sender<bool>>,
    /// Ends what runs beside us when the last clone goes.
    _alive: Arc<tokio_util::sync::DropGuard>,
}

impl ClusterStore {
    /// Etcd, with its copy in the file `mirror`. Must be called inside a tokio runtime, in which
    /// the copy is then kept up to date. No majority is taken for there until it is seen.
    ///
    /// # Errors
    /// [`StoreError::Engine`].
    pub fn open(etcd: EtcdStore, mirror: &Path) -> Result<Self, StoreError> {
        let mirror = Mirror::open(mirror)?;
        let majority = Arc::new(watch::Sender::new(false));
        let end = tokio_util::sync::CancellationToken::new();
        for job in [
            tokio::spawn(
                end.clone()
                    .run_until_cancelled_owned(probe(etcd.clone(), Arc::clone(&majority))),
            ),
            tokio::spawn(
                end.clone()
                    .run_until_cancelled_owned(follow(etcd.clone(), mirror.clone())),
            ),
        ] {
            // They end with `end`.
            drop(job);
        }
        Ok(Self {
            etcd,
            mirror,
            majority,
            _alive: Arc::new(end.drop_guard()),
        })
    }

    /// For what only etcd has.
    pub fn etcd(&self) -> &EtcdStore {
        &self.etcd
    }

    /// Whether there is a majority, as last seen.
    pub fn majority(&self) -> watch::Receiver<bool> {
        self.majority.subscribe()
    }

    fn has_majority(&self) -> bool {
        *self.majority.borrow()
    }

    /// The call, unless the majority goes in the meantime.
    async fn while_majority<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let mut majority = self.majority();
        tokio::select! {
            answer = call => answer,
            _ = majority.wait_for(|there| !there) => Err(StoreError::NoMajority),
        }
    }
}

async fn probe(etcd: EtcdStore, majority: Arc<watch::Sender<bool>>) {
    let mut seen = Instant::now();
    loop {
        let there = etcd.has_majority(PROBE_DEADLINE).await;
        if there {
            seen = Instant::now();
        }
        let before = *majority.borrow();
        if there && !before {
            tracing::info!("the cluster has its majority");
            majority.send_replace(true);
        } else if !there && before && seen.elapsed() > PATIENCE {
            tracing::error!("{}", StoreError::NoMajority);
            majority.send_replace(false);
        }
        let period = if there {
            PROBE_PERIOD
        } else {
            PROBE_PERIOD_WITHOUT
        };
        tokio::time::sleep(period).await;
    }
}

async fn follow(etcd: EtcdStore, mirror: Mirror) {
    loop {
        if let Err(error) = follow_once(&etcd, &mirror).await
            && !matches!(error, StoreError::NoMajority)
        {
            tracing::warn!("this node's copy of the records: {error}");
        }
        tokio::time::sleep(PROBE_PERIOD).await;
    }
}

async fn follow_once(etcd: &EtcdStore, mirror: &Mirror) -> Result<(), StoreError> {
    let page = etcd.list("", None, usize::MAX).await?;
    let revision = page.revision;
    mirror.replace(page).await?;
    let mut changes = etcd.watch("", revision).await?;
    while let Some(change) = changes.next().await {
        mirror.apply(change).await?;
    }
    Ok(())
}

#[async_trait]
impl Store for ClusterStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        if self.has_majority() {
            match self.while_majority(self.etcd.get(key)).await {
                Err(StoreError::NoMajority) => {}
                answer => return answer,
            }
        }
        self.mirror.get(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        if self.has_majority() {
            let read = self.etcd.list(prefix, after, limit);
            match self.while_majority(read).await {
                Err(StoreError::NoMajority) => {}
                answer => return answer,
            }
        }
        self.mirror.list(prefix, after, limit).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        if !self.has_majority() {
            return Err(StoreError::NoMajority);
        }
        self.while_majority(self.etcd.commit(transaction)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        if !self.has_majority() {
            return Err(StoreError::NoMajority);
        }
        self.while_majority(self.etcd.watch(prefix, after)).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        if !self.has_majority() {
            return Err(StoreError::NoMajority);
        }
        self.while_majority(self.etcd.grant_lease(ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        if !self.has_majority() {
            return Err(StoreError::NoMajority);
        }
        self.while_majority(self.etcd.keep_alive(lease)).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        if !self.has_majority() {
            return Err(StoreError::NoMajority);
        }
        self.while_majority(self.etcd.revoke_lease(lease)).await
    }

    async fn settled(&self, patience: Duration) -> bool {
        let mut majority = self.majority();
        let there = majority.wait_for(|there| *there);
        matches!(tokio::time::timeout(patience, there).await, Ok(Ok(_)))
    }
}
