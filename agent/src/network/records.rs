//! The networks' records: create, find, list, edit, delete.

use std::collections::BTreeMap;

use super::{NetworkRequestError, Networks};
use crate::clock::now_unix_ms;
use crate::domain::{Guest, Interface, Invalid, Network, NetworkEdit, NetworkName, NetworkSpec};
use crate::names::some_of;
use crate::store::{Collection, Outcome, Revision, StoreError, Stored, Transaction};

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
    pub async fn find(&self, name: &str) -> Result<Stored<Network>, NetworkRequestError> {
        let not_found = || NetworkRequestError::NotFound(name.chars().take(64).collect());
        let name = NetworkName::try_from(name.to_owned()).map_err(|_| not_found())?;
        if name.is_of_node() {
            return Ok(Stored {
                value: Network::of_node(),
                revision: Revision::default(),
            });
        }
        let found = self.records().get(name.as_str()).await?;
        found.ok_or_else(not_found)
    }

    /// Makes a network. It is there when this returns, and on the other nodes soon after; what
    /// this node cannot set up is refused.
    ///
    /// # Errors
    /// [`NetworkRequestError`]; nothing is left then.
    pub async fn create(&self, spec: &NetworkSpec) -> Result<Network, NetworkRequestError> {
        let network = spec.plan(now_unix_ms())?;
        self.require_free(&network).await?;
        self.check(&network).await?;
        let change = self.change().await;
        let created = self.records().create(network.name.as_str(), &network);
        match created.await? {
            Outcome::Committed(_) => {}
            Outcome::Conflict => return Err(NetworkRequestError::Exists(network.name)),
        }
        if let Err(error) = self.apply(&network, &change).await {
            self.records().delete(network.name.as_str()).await?;
            self.forget(&network.name);
            drop(change);
            self.reconcile().await;
            return Err(error.into());
        }
        Ok(network)
    }

    /// Refuses interfaces and addresses that another network has.
    async fn require_free(&self, network: &Network) -> Result<(), NetworkRequestError> {
        for other in self.records().all().await? {
            if other.value.name == network.name {
                continue;
            }
            if let Some(interface) = network.shares_with(&other.value) {
                return Err(NetworkRequestError::Taken {
                    other: other.value.name,
                    interface: interface.to_string(),
                });
            }
            for (_, subnet) in network.subnets() {
                let taken = other.value.subnets().find(|(_, one)| one.overlaps(subnet));
                if let Some((node, _)) = taken {
                    return Err(NetworkRequestError::SubnetTaken {
                        node: node.to_owned(),
                        subnet,
                        other: other.value.name.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Changes a network if its record is still the one of `stored`. Guests stay connected; what
    /// this node cannot do is refused, and everything stays as it was.
    ///
    /// # Errors
    /// [`NetworkRequestError`].
    pub async fn edit(
        &self,
        stored: &Stored<Network>,
        edit: &NetworkEdit,
    ) -> Result<Stored<Network>, NetworkRequestError> {
        let before = &stored.value;
        if before.name.is_of_node() {
            return Err(NetworkRequestError::OfNode(before.name.clone()));
        }
        let edited = edit.apply(before)?;
        self.require_free(&edited).await?;
        self.require_same_bridges(before, &edited).await?;
        self.check(&edited).await?;
        let change = self.change().await;
        let revision = self.replace(&edited, stored.revision).await?;
        if let Err(error) = self.apply(&edited, &change).await {
            self.replace(before, revision).await?;
            if let Err(error) = self.apply(before, &change).await {
                tracing::error!("{}", crate::causes::chain(&error));
            }
            return Err(error.into());
        }
        let value = edited;
        Ok(Stored { value, revision })
    }

    async fn replace(
        &self,
        network: &Network,
        revision: Revision,
    ) -> Result<Revision, NetworkRequestError> {
        let replaced = self
            .records()
            .replace(network.name.as_str(), network, revision);
        match replaced.await? {
            Outcome::Committed(revision) => Ok(revision),
            Outcome::Conflict => Err(NetworkRequestError::Changed(network.name.clone())),
        }
    }

    async fn require_same_bridges(
        &self,
        before: &Network,
        after: &Network,
    ) -> Result<(), NetworkRequestError> {
        for (node, guests) in self.guests_by_node(&before.name).await? {
            if let Some(bridge) = before.bridge_on(&node)
                && after.bridge_on(&node).as_ref() != Some(&bridge)
            {
                return Err(NetworkRequestError::BridgeInUse {
                    network: before.name.clone(),
                    node,
                    bridge,
                    guests: some_of(&guests),
                });
            }
        }
        Ok(())
    }

    /// Removes a network that no guest is connected to.
    ///
    /// # Errors
    /// [`NetworkRequestError`].
    pub async fn delete(&self, name: &str) -> Result<(), NetworkRequestError> {
        let network = self.find(name).await?.value;
        if network.name.is_of_node() {
            return Err(NetworkRequestError::OfNode(network.name));
        }
        // From here on no guest comes to it: a guest's record is written only if the network's is
        // still what it was.
        self.mark_deleting(&network.name, true).await?;
        let guests = self.guests_on(&network.name).await?;
        if !guests.is_empty() {
            self.mark_deleting(&network.name, false).await?;
            return Err(NetworkRequestError::InUse {
                network: network.name,
                guests: some_of(&guests),
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
        let by_node = self.guests_by_node(name).await?;
        Ok(by_node.into_values().flatten().collect())
    }

    async fn guests_by_node(
        &self,
        name: &NetworkName,
    ) -> Result<BTreeMap<String, Vec<String>>, StoreError> {
        let guests = Collection::<Guest>::new(self.inner.store.clone());
        let mut by_node: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for guest in guests.all().await? {
            let guest = guest.value;
            if guest.interfaces.iter().any(|one| one.network == *name) {
                let names = by_node.entry(guest.node).or_default();
                names.push(guest.name.to_string());
            }
        }
        Ok(by_node)
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
