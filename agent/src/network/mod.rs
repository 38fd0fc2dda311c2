//! Networks for guests on this node: bridges, and the guests' taps.
//!
//! ```text
//!   network node                     network lan, by record        ... on the host's bridge
//!   tap ─┐                           tap ─┐                        tap ─┐
//!   tap ─┴─ pindah0, NAT, DHCP       tap ─┴─ pn-lan ── enp3s0      tap ─┴─ br0, as it is
//!
//!                                    ... that the node routes
//!                                    tap ─┐
//!                                    tap ─┴─ pn-lan, 10.20.0.1/24, DHCP
//! ```
//!
//! All that is made carries our names (`pn-…`, `pd-…` for bonds, `pt…` for taps, nftables tables
//! that begin with `pindah`), and nothing else of the host is touched, but that NAT and routing need
//! the host to forward IPv4. Everything is applied again at each start; what is right already stays,
//! so that guests notice nothing.

mod bridge;
mod dnsmasq;
mod error;
mod filter;
mod forward;
mod keep;
mod link;
mod links;
mod node_network;
mod program;
mod rate;
mod records;
mod routed;
mod status;
mod tap;
mod vlan;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use error::{NetworkError, NetworkRequestError};
pub use records::if_unchanged;
pub use status::{NetworkState, NetworkStatus};

use crate::causes::chain;
use crate::config::NetworkConfig;
use crate::domain::{Guest, Network, NetworkName, Uplink};
use crate::store::{Collection, Store};
use bridge::Bridges;
use links::Links;
use node_network::NodeNetwork;
use routed::Routed;

/// The networks of this node.
#[derive(Clone)]
pub struct Networks {
    inner: Arc<Inner>,
}

struct Inner {
    node: String,
    runs_guests: bool,
    /// Whose bridges they are: the agent's state directory.
    owner: String,
    store: Arc<dyn Store>,
    records: Collection<Network>,
    links: Links,
    node_network: NodeNetworkState,
    routed: Routed,
    /// One at a time changes bridges.
    applying: tokio::sync::Mutex<()>,
    /// Why networks are not set up; those that are, are not in it.
    failures: Mutex<BTreeMap<NetworkName, String>>,
}

/// The right to change bridges: one has it at a time.
struct Change<'a> {
    _held: tokio::sync::MutexGuard<'a, ()>,
}

/// The node's own network.
enum NodeNetworkState {
    /// The configuration has none.
    Off,
    /// It could not be set up.
    Failed {
        /// The bridge that it should have.
        bridge: String,
        /// Why.
        reason: String,
    },
    /// It is there.
    Up(NodeNetwork),
}

impl Networks {
    /// Sets up the node's own network, if `config` says so; a failure is in the log, and the node
    /// runs without it. Those with records follow: see [`Self::keep`]; a node that runs no guests, a
    /// witness, has none of them.
    ///
    /// # Errors
    /// [`NetworkError::Socket`].
    pub async fn open(
        node: &str,
        state_dir: &Path,
        config: Option<&NetworkConfig>,
        store: Arc<dyn Store>,
        runs_guests: bool,
    ) -> Result<Self, NetworkError> {
        let links = Links::open()?;
        let node_network = match config {
            None => NodeNetworkState::Off,
            Some(config) => {
                let directory = state_dir.join("network");
                match NodeNetwork::apply(config, &directory, &links).await {
                    Ok(network) => NodeNetworkState::Up(network),
                    Err(error) => {
                        let reason = chain(&error);
                        tracing::error!("the node's own network cannot be set up: {reason}");
                        let bridge = config.bridge.clone();
                        NodeNetworkState::Failed { bridge, reason }
                    }
                }
            }
        };
        Ok(Self {
            inner: Arc::new(Inner {
                node: node.to_owned(),
                runs_guests,
                owner: state_dir.display().to_string(),
                records: Collection::new(Arc::clone(&store)),
                store,
                links,
                node_network,
                routed: Routed::new(state_dir),
                applying: tokio::sync::Mutex::default(),
                failures: Mutex::default(),
            }),
        })
    }

    fn records(&self) -> &Collection<Network> {
        &self.inner.records
    }

    fn bridges(&self) -> Bridges<'_> {
        Bridges {
            links: &self.inner.links,
            node: &self.inner.node,
            owner: &self.inner.owner,
        }
    }

    fn failures(&self) -> MutexGuard<'_, BTreeMap<NetworkName, String>> {
        let failures = self.inner.failures.lock();
        failures.unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the network is not set up, if it is not.
    fn failure(&self, name: &NetworkName) -> Option<String> {
        self.failures().get(name).cloned()
    }

    fn forget(&self, name: &NetworkName) {
        self.failures().remove(name);
    }

    async fn check(&self, network: &Network) -> Result<(), NetworkError> {
        if !self.inner.runs_guests {
            return Ok(());
        }
        self.bridges().check(network).await
    }

    /// The right to change bridges, and records with what follows of them.
    async fn change(&self) -> Change<'_> {
        Change {
            _held: self.inner.applying.lock().await,
        }
    }

    /// Sets a network up here; what is right already stays.
    async fn apply(&self, network: &Network, _: &Change<'_>) -> Result<(), NetworkError> {
        if !self.inner.runs_guests {
            return Ok(());
        }
        let applied = match self.bridges().apply(network).await {
            Ok(Some(port)) => self.admit_guests(network, &port).await,
            applied => applied.map(|_| ()),
        };
        let applied = match applied {
            Ok(()) => self.route(network).await,
            failed => failed,
        };
        match &applied {
            Ok(()) => self.forget(&network.name),
            Err(error) => {
                self.failures().insert(network.name.clone(), chain(error));
            }
        }
        applied
    }

    /// Routes the network if it leaves this node so, and no longer if it does not.
    async fn route(&self, network: &Network) -> Result<(), NetworkError> {
        let (links, routed) = (&self.inner.links, &self.inner.routed);
        let bridge = network.own_bridge();
        if let Uplink::Routed { subnet, dhcp } = network.uplink_on(&self.inner.node) {
            links.set_address(&bridge, Some(*subnet)).await?;
            let bridge = links.get(&bridge).await?;
            return routed.apply(&network.name, &bridge, *subnet, *dhcp).await;
        }
        if !routed.has(&network.name) {
            return Ok(());
        }
        if links.find(&bridge).await?.is_some() {
            links.set_address(&bridge, None).await?;
        }
        routed.remove(&network.name).await
    }

    /// A new uplink carries the VLANs of this node's guests: some may run already.
    async fn admit_guests(&self, network: &Network, port: &str) -> Result<(), NetworkError> {
        let links = &self.inner.links;
        let bridge = links.get(&network.own_bridge()).await?;
        if !bridge.filters_vlans() {
            return Ok(());
        }
        let guests = Collection::<Guest>::new(Arc::clone(&self.inner.store));
        for guest in guests.all().await? {
            let here = guest.value.node == self.inner.node;
            let interfaces = guest.value.interfaces.iter();
            for interface in interfaces.filter(|one| here && one.network == network.name) {
                vlan::admit(links, port, &bridge, &interface.vlan).await?;
            }
        }
        Ok(())
    }

    /// Makes the guest's taps and connects them. Those that are there already are kept.
    ///
    /// # Errors
    /// [`NetworkError`]; taps made before the failure stay for [`Self::disconnect`].
    pub async fn connect(&self, guest: &Guest) -> Result<(), NetworkError> {
        for interface in &guest.interfaces {
            self.connect_interface(interface).await?;
        }
        Ok(())
    }

    /// Removes the guest's taps. Nothing happens to those that are not there.
    pub async fn disconnect(&self, guest: &Guest) {
        for interface in &guest.interfaces {
            if let Err(error) = self.disconnect_interface(interface).await {
                tracing::warn!("{}", chain(&error));
            }
        }
    }

    /// Addresses that the guest's interfaces got by DHCP.
    pub fn addresses(&self, guest: &Guest) -> Vec<Ipv4Addr> {
        let mut addresses = match &self.inner.node_network {
            NodeNetworkState::Up(network) => network.addresses(guest),
            _ => Vec::new(),
        };
        addresses.extend(self.inner.routed.addresses(guest));
        addresses
    }
}

/// All addresses of this host.
///
/// # Errors
/// [`NetworkError`].
pub async fn host_addresses() -> Result<Vec<std::net::IpAddr>, NetworkError> {
    let addresses = Links::open()?.addresses(None).await?;
    Ok(addresses.into_iter().map(|(address, _)| address).collect())
}

/// All addresses of this host but those in networks that it routes for guests.
///
/// # Errors
/// [`NetworkError`].
pub async fn addresses_beside_routed() -> Result<Vec<std::net::IpAddr>, NetworkError> {
    let links = Links::open()?;
    let mut found = Vec::new();
    for link in links.all().await? {
        if !bridge::is_of_a_network(&link) {
            let addresses = links.addresses(Some(&link)).await?;
            found.extend(addresses.into_iter().map(|(address, _)| address));
        }
    }
    Ok(found)
}
