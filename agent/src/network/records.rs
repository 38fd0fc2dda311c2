//! The networks' records: create, find, list, delete.

use super::{NetworkRequestError, Networks};
use crate::clock::now_unix_ms;
use crate::domain::{Guest, Interface, Invalid, Network, NetworkName, NetworkSpec};
use crate::store::{Collection, Outcome, StoreError, Stored, Transaction};

/// Most names of guests in an error.
const NAMED: usize = 5;

impl Networks {
    /// Each node's own network, and those that have records, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self) -> Result<Vec<Network>, StoreError> {
        let records = self.records().all().await?;
        let mut networks = vec![Network::of_node()];
        networks.extend(records.into_iter().map(|record| record.value));
        Ok(networks)
    }

    /// One network.
    ///
    /// # Errors
    /// [`NetworkRequestError::NotFound`], [`NetworkRequestError::Store`].
    pub async fn find(&self, name: &str) -> Result<Network, NetworkRequestError> {
        let not_found = || NetworkRequestError::NotFound(name.chars().take(64).collect());
        let name = NetworkName::try_from(name.to_owned()).map_err(|_| not_found())?;
        if name.is_of_node() {
            return Ok(Network::of_node());
        }
        let found = self.records().get(name.as_str()).await?;
        found.map(|stored| stored.value).ok_or_else(not_found)
    }

    /// Makes a network. It is there when this returns, and on the other nodes soon after; what
    /// this node cannot set up is refused.
    ///
    /// # Errors
    /// [`NetworkRequestError`]; nothing is left then.
    pub async fn create(&self, spec: &NetworkSpec) -> Result<Network, NetworkRequestError> {
        let network = spec.plan(now_unix_ms())?;
        for other in self.records().all().await? {
            if other.value.name == network.name {
                return Err(NetworkRequestError::Exists(network.name));
            }
            if let Some(interface) = network.shares_with(&other.value) {
                return Err(NetworkRequestError::Taken {
                    other: other.value.name,
                    interface: interface.to_string(),
                });
            }
        }
        self.check(&network).await?;
        match self
            .records()
            .create(network.name.as_str(), &network)
            .await?
        {
            Outcome::Committed(_) => {}
            Outcome::Conflict => return Err(NetworkRequestError::Exists(network.name)),
        }
        if let Err(error) = self.apply(&network).await {
            self.records().delete(network.name.as_str()).await?;
            self.forget(&network.name);
            return Err(error.into());
        }
        Ok(network)
    }

    /// Removes a network that no guest is connected to.
    ///
    /// # Errors
    /// [`NetworkRequestError`].
    pub async fn delete(&self, name: &str) -> Result<(), NetworkRequestError> {
        let network = self.find(name).await?;
        if network.name.is_of_node() {
            return Err(NetworkRequestError::OfNode(network.name));
        }
        // From here on no guest comes to it: a guest's record is written only if the network's is
        // still what it was.
        self.mark_deleting(&network.name, true).await?;
        let guests = self.guests_on(&network.name).await?;
        if !guests.is_empty() {
            self.mark_deleting(&network.name, false).await?;
            let mut named: Vec<&str> = guests.iter().map(String::as_str).take(NAMED).collect();
            if guests.len() > NAMED {
                named.push("…");
            }
            return Err(NetworkRequestError::InUse {
                network: network.name,
                guests: named.join(", "),
            });
        }
        self.records().delete(network.name.as_str()).await?;
        self.reconcile().await;
        Ok(())
    }

    async fn mark_deleting(&self, name: &NetworkName, deleting: bool) -> Result<(), StoreError> {
        let mark = self.records().update(name.as_str(), |network| {
            network.deleting = deleting;
        });
        mark.await.map(|_| ())
    }

    /// Names of the guests that are connected to it, on any node.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn guests_on(&self, name: &NetworkName) -> Result<Vec<String>, StoreError> {
        let guests = Collection::<Guest>::new(self.inner.store.clone());
        let guests = guests.all().await?.into_iter();
        let on = |guest: &Guest| guest.interfaces.iter().any(|one| one.network == *name);
        let on = guests.filter(|guest| on(&guest.value));
        Ok(on.map(|guest| guest.value.name.to_string()).collect())
    }

    /// The networks of these interfaces; a transaction that writes them holds only while these
    /// are what they are now.
    ///
    /// # Errors
    /// [`NetworkRequestError::Invalid`], naming the field; [`NetworkRequestError::Store`].
    pub async fn of_interfaces(
        &self,
        interfaces: &[Interface],
    ) -> Result<Vec<Stored<Network>>, NetworkRequestError> {
        let mut networks: Vec<Stored<Network>> = Vec::new();
        for interface in interfaces {
            let name = &interface.network;
            let known = networks.iter().any(|network| network.value.name == *name);
            if known || name.is_of_node() {
                continue;
            }
            let found = self.records().get(name.as_str()).await?;
            let usable = found.filter(|network| !network.value.deleting);
            networks.push(usable.ok_or_else(|| {
                let must = "must be a network that is there; `pindah network list` shows them";
                Invalid::text(format!("{}.network", interface.id), name.as_str(), must)
            })?);
        }
        Ok(networks)
    }
}

/// Holds only while the networks are what they are now.
pub fn if_unchanged(mut transaction: Transaction, networks: &[Stored<Network>]) -> Transaction {
    for network in networks {
        let key = Collection::<Network>::key(network.value.name.as_str());
        transaction = transaction.if_unchanged(key, network.revision);
    }
    transaction
}
