//! A network's bridge on this node, with its uplink.
//!
//! What we make carries a mark in its alias, `pindah network NAME of STATE_DIR`, a bridge with what
//! we have taken for it, ` by INTERFACE+INTERFACE`: only that is ever changed, removed or given back.
//! An interface of the host becomes a port if it has no addresses and belongs
//! to nothing else; everything is looked at before anything is made, and what was made before a
//! failure is removed again.

use std::net::IpAddr;

use rtnetlink::packet_route::link::{BondMode as KernelBondMode, LinkMessage};
use rtnetlink::{LinkBond, LinkBridge, LinkUnspec};

use super::NetworkError;
use super::link::Link;
use super::links::Links;
use crate::domain::{BondMode, LinkName, Network, Subnet, Uplink};

/// What a mark begins with.
const MARK: &str = "pindah network ";
/// What stands in a mark before the interfaces that were taken.
const BY: &str = " by ";
/// How often a bond looks whether its interfaces have a link, in milliseconds.
const MIIMON_MS: u32 = 100;

/// Sets networks up on one node.
pub(super) struct Bridges<'a> {
    pub(super) links: &'a Links,
    pub(super) node: &'a str,
    /// Whose: the agent's state directory.
    pub(super) owner: &'a str,
}

impl Bridges<'_> {
    /// Sets the network up; what is right already stays, with who is connected to it. Returns the
    /// port that its uplink is, if it was not there yet.
    pub(super) async fn apply(&self, network: &Network) -> Result<Option<String>, NetworkError> {
        self.check(network).await?;
        let mut made = Vec::new();
        let applied = self.make(network, &mut made).await;
        if applied.is_err() {
            for name in made.iter().rev() {
                if let Err(error) = self.links.remove(name).await {
                    tracing::warn!("{}", crate::causes::chain(&error));
                }
            }
        }
        applied
    }

    /// Whether it can be set up, as far as can be seen without changing anything.
    pub(super) async fn check(&self, network: &Network) -> Result<(), NetworkError> {
        let uplink = network.uplink_on(self.node);
        if let Uplink::HostBridge { bridge } = uplink {
            return match self.links.find(bridge.as_str()).await? {
                Some(link) if link.is_bridge() => Ok(()),
                Some(_) => Err(self.unusable(
                    network,
                    bridge,
                    "it is no bridge; an interface can be an uplink",
                )),
                None => Err(self.unusable(network, bridge, "there is no such interface")),
            };
        }
        self.ours(network, &network.own_bridge()).await?;
        if matches!(uplink, Uplink::Bond { .. }) {
            self.ours(network, &network.own_bond()).await?;
        }
        for interface in uplink.interfaces() {
            self.check_port(network, interface).await?;
        }
        match uplink.subnet() {
            Some(subnet) => self.check_subnet(network, subnet).await,
            None => Ok(()),
        }
    }

    /// Refuses a subnet that would hide a part of what the host reaches already.
    async fn check_subnet(&self, network: &Network, subnet: Subnet) -> Result<(), NetworkError> {
        let own = network.own_bridge();
        for link in self.links.all().await? {
            if link.name == own {
                continue;
            }
            for (address, prefix) in self.links.addresses(Some(&link)).await? {
                if let IpAddr::V4(address) = address
                    && subnet.overlaps_range(address, prefix)
                {
                    return Err(NetworkError::Overlap {
                        network: network.name.clone(),
                        subnet,
                        interface: link.name,
                        address: format!("{address}/{prefix}"),
                        node: self.node.to_owned(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Refuses what belongs to the host, or to another network.
    async fn check_port(&self, network: &Network, port: &LinkName) -> Result<(), NetworkError> {
        let refuse = |reason: &str| Err(self.unusable(network, port, reason));
        let Some(link) = self.links.find(port.as_str()).await? else {
            return refuse("there is no such interface");
        };
        if link.loopback {
            return refuse("it leads to the host itself");
        }
        if link.is_bridge() {
            return refuse("it is a bridge; it can be used as it is, with --bridge");
        }
        if let Some(index) = link.controller {
            let all = self.links.all().await?;
            let controller = all.iter().find(|other| other.index == index);
            let ours = [network.own_bridge(), network.own_bond()];
            if controller.is_some_and(|link| ours.contains(&link.name)) {
                return Ok(());
            }
            let name = controller.map_or("another", |link| &link.name);
            return refuse(&format!("it is a port of {name} already"));
        }
        let addresses = self.links.addresses(Some(&link)).await?;
        match addresses.iter().find(|(address, _)| is_of_host(*address)) {
            None => Ok(()),
            Some((address, prefix)) => refuse(&format!(
                "it has the host's address {address}/{prefix}, which could no longer be reached; \
                 in the host's own configuration make a bridge of it that has the address, and use \
                 that with --bridge, or take an interface without addresses"
            )),
        }
    }

    fn unusable(&self, network: &Network, interface: &LinkName, reason: &str) -> NetworkError {
        NetworkError::Unusable {
            network: network.name.clone(),
            interface: interface.to_string(),
            node: self.node.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// The interface that we have made under this name, if we have.
    async fn ours(&self, network: &Network, name: &str) -> Result<Option<Link>, NetworkError> {
        let Some(link) = self.links.find(name).await? else {
            return Ok(None);
        };
        // One that an agent has just made, and not marked before it was killed, is down.
        let unfinished = link.alias.is_none() && !link.up;
        let mark = self.mark(network.name.as_str());
        if unfinished || split(link.alias.as_deref()).0 == mark {
            return Ok(Some(link));
        }
        Err(NetworkError::Foreign {
            network: network.name.clone(),
            interface: name.to_owned(),
            node: self.node.to_owned(),
        })
    }

    fn mark(&self, network: &str) -> String {
        format!("{MARK}{network} of {}", self.owner)
    }

    async fn make(
        &self,
        network: &Network,
        made: &mut Vec<String>,
    ) -> Result<Option<String>, NetworkError> {
        let uplink = network.uplink_on(self.node);
        let bridge = network.own_bridge();
        let there = self.ours(network, &bridge).await?;
        if matches!(uplink, Uplink::HostBridge { .. }) {
            if there.is_some() {
                self.remove_bond(network).await?;
                self.links.remove(&bridge).await?;
            }
            return Ok(None);
        }
        let wanted: Vec<&str> = uplink.interfaces().iter().map(LinkName::as_str).collect();
        let before = there.and_then(|link| link.alias);
        let mut taken: Vec<&str> = split(before.as_deref()).1;
        taken.retain(|interface| !wanted.contains(interface));
        let all = [taken.as_slice(), &wanted].concat();
        let message = (LinkBridge::new(&bridge).build(), "CONFIG_BRIDGE");
        self.ensure(network, &bridge, message, made).await?;
        self.note(network, &bridge, &all).await?;
        keep_host_out(&bridge)?;
        let filter = LinkBridge::new(&bridge).vlan_filtering(true).build();
        // Without it networks work, and interfaces with VLANs are refused.
        self.links.try_change(&bridge, filter).await?;
        for interface in taken {
            self.give_back(network, interface).await?;
        }
        match uplink {
            Uplink::Bond { interfaces, mode } => {
                self.ensure_bond(network, interfaces, *mode, made).await?;
            }
            _ => self.remove_bond(network).await?,
        }
        let mut new = false;
        let port = network.uplink_port_on(self.node);
        if let Some(port) = &port {
            new = self.links.connect(port, &bridge).await?;
        }
        self.note(network, &bridge, &wanted).await?;
        Ok(port.filter(|_| new))
    }

    /// Writes down which interfaces the bridge has taken.
    async fn note(
        &self,
        network: &Network,
        bridge: &str,
        taken: &[&str],
    ) -> Result<(), NetworkError> {
        let mut mark = self.mark(network.name.as_str());
        if !taken.is_empty() {
            mark = format!("{mark}{BY}{}", taken.join("+"));
        }
        self.links.set_alias(bridge, mark).await
    }

    /// An interface that is not the uplink any more is nobody's port.
    async fn give_back(&self, network: &Network, interface: &str) -> Result<(), NetworkError> {
        let Some(link) = self.links.find(interface).await? else {
            return Ok(());
        };
        for name in [network.own_bridge(), network.own_bond()] {
            let ours = self.links.find(&name).await?;
            if ours.is_some_and(|ours| link.controller == Some(ours.index)) {
                let free = LinkUnspec::new_with_index(link.index).nocontroller();
                self.links.change(interface, free.build()).await?;
            }
        }
        Ok(())
    }

    async fn remove_bond(&self, network: &Network) -> Result<(), NetworkError> {
        let bond = network.own_bond();
        // One that is not ours is not asked for either.
        match self.ours(network, &bond).await {
            Ok(Some(_)) => self.links.remove(&bond).await,
            Ok(None) | Err(NetworkError::Foreign { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn ensure_bond(
        &self,
        network: &Network,
        interfaces: &[LinkName],
        bond_mode: BondMode,
        made: &mut Vec<String>,
    ) -> Result<(), NetworkError> {
        let bond = network.own_bond();
        let kernel_mode = match bond_mode {
            BondMode::ActiveBackup => KernelBondMode::ActiveBackup,
            BondMode::Lacp => KernelBondMode::Ieee8023Ad,
        };
        let message = LinkBond::new(&bond)
            .mode(kernel_mode)
            .miimon(MIIMON_MS)
            .build();
        let wanted = (message, "CONFIG_BONDING");
        self.ensure(network, &bond, wanted, made).await?;
        for interface in interfaces {
            let link = self.links.get(interface.as_str()).await?;
            if link.controller.is_none() {
                // The kernel takes only interfaces that are down into a bond.
                let down = LinkUnspec::new_with_index(link.index).down().build();
                self.links.change(&link.name, down).await?;
            }
            self.links.connect(&link.name, &bond).await?;
        }
        Ok(())
    }

    /// The interface, marked and up.
    async fn ensure(
        &self,
        network: &Network,
        name: &str,
        (message, option): (LinkMessage, &'static str),
        made: &mut Vec<String>,
    ) -> Result<(), NetworkError> {
        if self.ours(network, name).await?.is_none() {
            self.links.add(name, message, option).await?;
            made.push(name.to_owned());
        }
        let link = self.links.get(name).await?;
        if link.alias.is_none() {
            let mark = self.mark(network.name.as_str());
            self.links.set_alias(name, mark).await?;
        }
        let up = LinkUnspec::new_with_index(link.index).up().build();
        self.links.change(name, up).await
    }

    /// Removes what we have made for networks that are not among `networks`.
    pub(super) async fn remove_others(&self, networks: &[Network]) -> Result<(), NetworkError> {
        let marks: Vec<String> = networks
            .iter()
            .map(|network| self.mark(network.name.as_str()))
            .collect();
        let end = format!(" of {}", self.owner);
        for link in self.links.all().await? {
            let mark = split(link.alias.as_deref()).0;
            let stray = mark.starts_with(MARK) && mark.ends_with(&end);
            if stray && !marks.iter().any(|known| known == mark) {
                tracing::info!("removing {}: its network is gone", link.name);
                self.links.remove(&link.name).await?;
            }
        }
        Ok(())
    }
}

/// Whether an agent of this host has made it for a network.
pub(super) fn is_of_a_network(link: &Link) -> bool {
    let alias = link.alias.as_deref();
    alias.is_some_and(|alias| alias.starts_with(MARK))
}

/// A mark, and the interfaces that its bridge has taken.
fn split(alias: Option<&str>) -> (&str, Vec<&str>) {
    let alias = alias.unwrap_or_default();
    match alias.rsplit_once(BY) {
        Some((mark, taken)) => (mark, taken.split('+').collect()),
        None => (alias, Vec::new()),
    }
}

/// Whether losing this address would cut something off. The kernel gives each interface a link-local
/// one by itself.
fn is_of_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    }
}

/// The host has no IPv6 address on the bridge, not even a link-local one; and no other, unless it
/// routes the network: guests do not reach it there.
fn keep_host_out(bridge: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6");
    match std::fs::write(&path, "1\n") {
        // The host has no IPv6 at all.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        written => written.map_err(|source| NetworkError::Write {
            path: path.into(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_tells_what_was_taken() {
        let mark = "pindah network lan of /var/lib/pindah";
        assert_eq!(split(Some(mark)), (mark, vec![]));
        let alias = format!("{mark}{BY}eno1+eno2.10");
        assert_eq!(split(Some(&alias)), (mark, vec!["eno1", "eno2.10"]));
        assert_eq!(split(None), ("", vec![]));
    }
}
