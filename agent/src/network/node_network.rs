//! The node's own network for guests: a bridge with NAT, DHCP and DNS.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::forward::{self, Forward};
use super::links::Links;
use super::{NetworkError, dnsmasq};
use crate::config::NetworkConfig;
use crate::domain::Guest;

/// The node's own network, applied.
pub(super) struct NodeNetwork {
    config: NetworkConfig,
    directory: PathBuf,
    /// Whether it gives addresses; kept alive while we are.
    dnsmasq: Option<dnsmasq::Dnsmasq>,
}

impl NodeNetwork {
    /// Applies `config`; files of its own lie in `directory`.
    pub(super) async fn apply(
        config: &NetworkConfig,
        directory: &Path,
        links: &Links,
    ) -> Result<Self, NetworkError> {
        links.ensure_bridge(config).await?;
        if config.nat {
            forward::apply(&config.bridge, config.subnet, Forward::Nat).await?;
        }
        let dnsmasq = if config.dhcp {
            let bridge = links.get(&config.bridge).await?;
            Some(dnsmasq::Dnsmasq::start(&bridge, config.subnet, directory).await?)
        } else {
            None
        };
        Ok(Self {
            config: config.clone(),
            directory: directory.to_owned(),
            dnsmasq,
        })
    }

    /// Its bridge.
    pub(super) fn bridge(&self) -> &str {
        &self.config.bridge
    }

    /// Addresses that the guest's interfaces got by DHCP.
    pub(super) fn addresses(&self, guest: &Guest) -> Vec<Ipv4Addr> {
        if self.dnsmasq.is_none() {
            return Vec::new();
        }
        dnsmasq::addresses(&self.directory, guest)
    }
}
