//! By which address a node is found, and under which names it proves itself.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ClusterError;
use crate::config::Config;
use crate::network;

/// How a cluster is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InitRequest {
    /// Where other nodes find this one; absent: its first address that is not its guests' network.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "192.168.1.11")]
    pub address: Option<IpAddr>,
}

/// Addresses by which other hosts may reach this one, the likeliest first.
async fn candidates(config: &Config) -> Result<Vec<IpAddr>, ClusterError> {
    let bridge = config
        .network
        .as_ref()
        .map(|network| network.subnet.address());
    let mut found = network::addresses_beside_routed().await?;
    found.retain(|address| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && Some(*v4) != bridge,
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    });
    found.sort_by_key(IpAddr::is_ipv6);
    Ok(found)
}

/// Where other nodes find this one.
///
/// # Errors
/// [`ClusterError::Value`]: `wanted` is not this host's, or it has none.
pub async fn choose(config: &Config, wanted: Option<IpAddr>) -> Result<IpAddr, ClusterError> {
    let listen = config.listen.ip();
    if let Some(address) = wanted {
        let listens = listen.is_unspecified() || listen == address;
        let ours = network::host_addresses().await?.contains(&address);
        if listens && (ours || address.is_loopback()) {
            return Ok(address);
        }
        return Err(ClusterError::Value {
            field: "address",
            value: address.to_string(),
            must: "must be an address of this host on which pindahd listens",
        });
    }
    if !listen.is_unspecified() {
        return Ok(listen);
    }
    let first = candidates(config).await?.into_iter().next();
    first.ok_or_else(|| ClusterError::Value {
        field: "address",
        value: String::new(),
        must: "must be given: this host has no address by which others reach it",
    })
}

/// The recorded address, or what took its place if the host does not have it any more.
pub async fn current(config: &Config, recorded: IpAddr) -> IpAddr {
    let Ok(all) = network::host_addresses().await else {
        return recorded;
    };
    if all.is_empty() || all.contains(&recorded) || recorded.is_loopback() {
        return recorded;
    }
    choose(config, None).await.unwrap_or(recorded)
}

/// What clients and nodes may call this node.
pub async fn own_names(config: &Config, address: Option<IpAddr>) -> Vec<String> {
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    addresses.extend(address);
    if config.listen.ip().is_unspecified() {
        match network::host_addresses().await {
            Ok(found) => addresses.extend(found),
            Err(error) => tracing::warn!("{}", crate::causes::chain(&error)),
        }
    } else {
        addresses.push(config.listen.ip());
    }
    let mut names = vec![config.node.clone(), "localhost".to_owned()];
    names.extend(addresses.iter().map(ToString::to_string));
    names.sort();
    names.dedup();
    names
}
