//! A guest's tap: connected to its network as its interface says.

use std::time::Duration;

use super::link::Link;
use super::program::run;
use super::{NetworkError, Networks, NodeNetworkState, filter, rate, vlan};
use crate::causes::chain;
use crate::domain::{Interface, Vlan};

/// What a tap is connected to.
struct Place {
    bridge: String,
    /// The port by which the bridge leaves the node, if that is ours to care for.
    uplink: Option<String>,
}

/// How long the kernel takes to load a module.
const LOAD_DEADLINE: Duration = Duration::from_secs(10);

impl Networks {
    /// Sets up one interface of a guest, whose tap may be there already, with a guest that has it
    /// open. What is right already stays.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn connect_interface(&self, interface: &Interface) -> Result<(), NetworkError> {
        let links = &self.inner.links;
        let tap = &interface.tap;
        let place = self.place_of(interface).await?;
        let bridge = links.get(&place.bridge).await?;
        self.require_vlans(interface, &bridge)?;
        self.require_tracking(interface).await?;
        let new = links.ensure_tap(tap).await?;
        if !new && links.get(tap).await?.controller != Some(bridge.index) {
            // A port has the bridge's VLANs until its own are set.
            nft(&filter::closed(interface)).await?;
        }
        links.connect(tap, &bridge.name).await?;
        if bridge.filters_vlans() {
            vlan::set(links, tap, &bridge, &interface.vlan).await?;
            if let Some(uplink) = place.uplink {
                vlan::admit(links, &uplink, &bridge, &interface.vlan).await?;
            }
        }
        rate::apply(links, tap, &interface.rate_limit).await?;
        nft(&filter::ruleset(interface)).await
    }

    /// Where the interface is connected to, set up.
    async fn place_of(&self, interface: &Interface) -> Result<Place, NetworkError> {
        let name = &interface.network;
        if name.is_of_node() {
            return match &self.inner.node_network {
                NodeNetworkState::Up(network) => Ok(Place {
                    bridge: network.bridge().to_owned(),
                    uplink: None,
                }),
                _ => Err(NetworkError::NodeNetworkOff),
            };
        }
        let gone = || NetworkError::Gone(name.clone());
        let network = self.records().get(name.as_str()).await?;
        let network = network.ok_or_else(gone)?.value;
        let bridge = network.bridge_on(&self.inner.node).ok_or_else(gone)?;
        let uplink = network.uplink_port_on(&self.inner.node);
        let applied = self.apply(&network, &self.change().await).await;
        match applied {
            Ok(()) => Ok(Place { bridge, uplink }),
            // Who is connected already stays so, and waits for the uplink to come back.
            Err(error) if self.is_at(interface, &bridge).await => {
                tracing::warn!("{}", chain(&error));
                Ok(Place {
                    bridge,
                    uplink: None,
                })
            }
            Err(error) => Err(error),
        }
    }

    async fn is_at(&self, interface: &Interface, bridge: &str) -> bool {
        let links = &self.inner.links;
        let tap = links.find(&interface.tap).await.ok().flatten();
        let bridge = links.find(bridge).await.ok().flatten();
        let controller = tap.and_then(|tap| tap.controller);
        bridge.is_some_and(|bridge| controller == Some(bridge.index))
    }

    /// Removes an interface's tap and what belongs to it. Nothing happens if it is not there.
    pub(super) async fn disconnect_interface(
        &self,
        interface: &Interface,
    ) -> Result<(), NetworkError> {
        let links = &self.inner.links;
        let tap = &interface.tap;
        if links.find(tap).await?.is_none() {
            return Ok(());
        }
        rate::remove(links, tap).await?;
        // The tap goes last: it says that there may be more.
        nft(&filter::removal(tap)).await?;
        links.remove(tap).await
    }

    fn require_vlans(&self, interface: &Interface, bridge: &Link) -> Result<(), NetworkError> {
        if interface.vlan == Vlan::default() || bridge.filters_vlans() {
            return Ok(());
        }
        Err(NetworkError::NoVlans {
            network: interface.network.clone(),
            bridge: bridge.name.clone(),
            node: self.inner.node.clone(),
        })
    }

    async fn require_tracking(&self, interface: &Interface) -> Result<(), NetworkError> {
        let firewall = &interface.firewall;
        if firewall.is_open() || !firewall.stateful {
            return Ok(());
        }
        let tracks = || run("nft", &["--check", "--file", "-"], filter::TRACKING);
        if tracks().await.is_ok() {
            return Ok(());
        }
        // The kernel does not load it by itself.
        let load = run("modprobe", &["--quiet", "nf_conntrack_bridge"], "");
        let _ = tokio::time::timeout(LOAD_DEADLINE, load).await;
        tracks().await.map_err(|_| NetworkError::NoTracking {
            interface: interface.id.clone(),
            node: self.inner.node.clone(),
        })
    }
}

/// Carries a transaction out, all of it or nothing.
async fn nft(transaction: &str) -> Result<(), NetworkError> {
    run("nft", &["--file", "-"], transaction).await
}
