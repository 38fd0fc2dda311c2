//! The first node: its records move from SQLite into an etcd of one member.

use std::time::Duration;

use uuid::Uuid;

use super::member::{connect, etcd_config};
use super::{
    Beginning, ClusterError, ClusterView, EtcdProcess, InitRequest, Membership, NodeRecord, Site,
    address,
};
use crate::clock::now_unix_ms;
use crate::security::Authority;
use crate::store::{Collection, Entry, EtcdStore, Outcome, Store, StoreError, Transaction, encode};

/// How long the first etcd may take to answer.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How much is written at once: etcd takes 128 changes and 3 MB.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 1 << 20;

impl Site {
    /// Makes this node the first of a cluster. Guests run on; the node begins anew.
    ///
    /// # Errors
    /// [`ClusterError`]; nothing has changed then.
    pub async fn init(&self, request: &InitRequest) -> Result<ClusterView, ClusterError> {
        let _change = self.begin_change()?;
        let sqlite = self.sqlite.as_ref().ok_or(ClusterError::AlreadyIn)?;
        self.require_idle()?;
        let membership = Membership {
            cluster: Uuid::new_v4(),
            node: self.config.node.clone(),
            address: address::choose(&self.config, request.address).await?,
            witness: false,
        };
        sqlite.freeze(true);
        let made = async {
            let entries = sqlite.export().await?;
            self.found(&membership, entries).await
        };
        if let Err(error) = made.await {
            sqlite.freeze(false);
            return Err(error);
        }
        self.restart();
        Ok(ClusterView {
            id: membership.cluster,
            node: membership.node,
            majority: true,
            members: Vec::new(),
            warnings: Vec::new(),
        })
    }

    /// An etcd of one member that holds these records, and the place that makes it count.
    pub(super) async fn found(
        &self,
        membership: &Membership,
        entries: Vec<Entry>,
    ) -> Result<(), ClusterError> {
        let etcd = etcd_config(&self.config, membership)?;
        let authority = Authority::open(&self.private())?;
        let names = address::own_names(&self.config, Some(membership.address)).await;
        let certificate = authority.issue(&names)?;
        etcd.wipe().await?;
        let filled = async {
            etcd.write_certificate(&certificate)?;
            let process = EtcdProcess::start(etcd.clone(), Beginning::Alone).await?;
            let store = connect(&etcd, &certificate).await?;
            wait_until_it_answers(&store).await?;
            fill(&store, entries).await?;
            let record = NodeRecord {
                name: membership.node.clone(),
                address: membership.address,
                port: etcd.ports.api,
                witness: membership.witness,
                joined_unix_ms: now_unix_ms(),
                entering: false,
            };
            let key = Collection::<NodeRecord>::key(&record.name);
            let put = Transaction::new().put(&key, encode(&key, &record)?);
            store.commit(put).await?;
            membership
                .save(&self.config.state_dir)
                .map_err(|source| self.io(source))?;
            // From here on it runs by itself, until we begin anew and adopt it.
            drop(process);
            Ok::<_, ClusterError>(())
        };
        let filled = filled.await;
        if filled.is_err() {
            etcd.wipe().await?;
        }
        filled
    }
}

pub(super) async fn wait_until_it_answers(store: &EtcdStore) -> Result<(), ClusterError> {
    let end = tokio::time::Instant::now() + START_DEADLINE;
    while !store.has_majority(Duration::from_secs(3)).await {
        if tokio::time::Instant::now() > end {
            let seconds = START_DEADLINE.as_secs();
            let hint = "look at etcd/etcd.log in the state directory".to_owned();
            return Err(ClusterError::NotReady(seconds, hint));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Writes records into an empty store.
async fn fill(store: &EtcdStore, entries: Vec<Entry>) -> Result<(), ClusterError> {
    let mut batch = Transaction::new();
    let mut bytes = 0;
    for Entry { key, value, .. } in entries {
        bytes += key.len() + value.len();
        batch = batch.put(key, value);
        if batch.writes.len() == BATCH || bytes > BATCH_BYTES {
            commit(store, std::mem::take(&mut batch)).await?;
            bytes = 0;
        }
    }
    if !batch.writes.is_empty() {
        commit(store, batch).await?;
    }
    Ok(())
}

async fn commit(store: &EtcdStore, batch: Transaction) -> Result<(), StoreError> {
    match store.commit(batch).await? {
        Outcome::Committed(_) => Ok(()),
        Outcome::Conflict => Err(StoreError::Engine(
            "a conflict without condition".to_owned(),
        )),
    }
}
