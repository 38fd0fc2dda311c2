//! Networks follow their records: applied at the start, when a record changes, and again from time
//! to time, as an interface may come late or go and come back.

use std::time::Duration;

use super::{NetworkError, Networks};
use crate::causes::chain;
use crate::domain::{Network, NetworkName};
use crate::store::{Collection, Revision, StoreError, Watch};

/// How often all of it is looked at when no record changes.
const PERIOD: Duration = Duration::from_secs(30);
/// How long a watch that has ended waits for the next one.
const RETRY: Duration = Duration::from_secs(2);

impl Networks {
    /// Follows the records for ever.
    pub async fn keep(self) {
        let mut changes: Option<Watch> = None;
        loop {
            if changes.is_none() {
                changes = self.watch().await;
            }
            self.reconcile().await;
            let next = async {
                match &mut changes {
                    Some(watch) => watch.next().await.is_some(),
                    None => std::future::pending().await,
                }
            };
            if let Ok(false) = tokio::time::timeout(PERIOD, next).await {
                changes = None;
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// `None`: the store has no majority; the next look is soon enough.
    async fn watch(&self) -> Option<Watch> {
        let prefix = Collection::<Network>::key("");
        let page = self.inner.store.list(&prefix, None, 1).await;
        let revision = page.map_or(Revision(0), |page| page.revision);
        self.inner.store.watch(&prefix, revision).await.ok()
    }

    /// Once: sets up what has a record, removes what has none any more.
    pub(super) async fn reconcile(&self) {
        let networks = match self.all_records().await {
            Ok(networks) => networks,
            Err(error) => {
                tracing::warn!("the networks' records: {error}");
                return;
            }
        };
        for network in &networks {
            let before = self.failure(&network.name);
            let now = self.follow(&network.name).await;
            let now = now.err().map(|error| chain(&error));
            if let Some(reason) = now.filter(|now| before.as_ref() != Some(now)) {
                tracing::warn!("network {} is not set up: {reason}", network.name);
            }
        }
        // What this node remembers without its cluster's majority may be old.
        if !self.inner.store.settled(Duration::ZERO).await {
            return;
        }
        if let Err(error) = self.remove_others().await {
            tracing::warn!("{}", chain(&error));
        }
    }

    async fn all_records(&self) -> Result<Vec<Network>, StoreError> {
        let records = self.records().all().await?;
        Ok(records.into_iter().map(|record| record.value).collect())
    }

    /// Sets a network up as its record is now; it may have gone since it was listed.
    async fn follow(&self, name: &NetworkName) -> Result<(), NetworkError> {
        let change = self.change().await;
        match self.records().get(name.as_str()).await? {
            Some(network) => self.apply(&network.value, &change).await,
            None => Ok(()),
        }
    }

    /// Removes what no record names.
    async fn remove_others(&self) -> Result<(), NetworkError> {
        // Records and bridges change together: both are seen as they are.
        let _change = self.change().await;
        let networks = self.all_records().await?;
        self.failures()
            .retain(|name, _| networks.iter().any(|network| network.name == *name));
        for name in self.inner.routed.names() {
            if !networks.iter().any(|network| network.name == name) {
                self.inner.routed.remove(&name).await?;
            }
        }
        self.bridges().remove_others(&networks).await
    }
}
