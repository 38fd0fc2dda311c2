//! A guest's tap: connected to its network as its interface says.

use std::time::Duration;

use super::link::Link;
use super::program::run;
use super::{NetworkError, Networks, filter, rate, vlan};
use crate::domain::{Interface, Vlan};

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
        let bridge = links
            .get(&self.bridge_of(&interface.network).await?)
            .await?;
        self.require_vlans(interface, &bridge)?;
        self.require_tracking(interface).await?;
        links.ensure_tap(tap).await?;
        let moves = links.get(tap).await?.controller != Some(bridge.index);
        if moves {
            // Until its VLANs are set a port has the bridge's own.
            nft(&filter::closed(interface)).await?;
        }
        links.connect(tap, &bridge.name).await?;
        if bridge.filters_vlans() {
            vlan::set(links, tap, &bridge, &interface.vlan).await?;
        }
        rate::apply(links, tap, &interface.rate_limit).await?;
        nft(&filter::ruleset(interface)).await
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
