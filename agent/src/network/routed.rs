//! Networks that this node routes: what stands beside the bridge, which has the node's address.
//!
//! Each has a directory `networks/NAME` in the agent's state directory, made first and removed
//! last: by it the next agent finds what is there.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::NetworkError;
use super::dnsmasq::{self, Dnsmasq};
use super::forward::{self, Forward};
use super::link::Link;
use crate::domain::{Guest, Network, NetworkName, Subnet};

/// What is routed here. Who changes it has the right to change bridges.
pub(super) struct Routed {
    directory: PathBuf,
    kept: Mutex<BTreeMap<NetworkName, Kept>>,
}

/// A dnsmasq that is kept alive while we are.
struct Kept {
    bridge: u32,
    subnet: Subnet,
    _dnsmasq: Dnsmasq,
}

impl Routed {
    /// With the agent's state directory.
    pub(super) fn new(state_dir: &Path) -> Self {
        Self {
            directory: state_dir.join("networks"),
            kept: Mutex::default(),
        }
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<NetworkName, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self, name: &NetworkName) -> PathBuf {
        self.directory.join(name.as_str())
    }

    /// Whether something of it is here.
    pub(super) fn has(&self, name: &NetworkName) -> bool {
        self.directory(name).exists()
    }

    /// All of which something is here.
    pub(super) fn names(&self) -> Vec<NetworkName> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        let names = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            NetworkName::try_from(name).ok()
        });
        names.collect()
    }

    /// Routes what comes to `bridge`, which is up and has the subnet's address. What is right
    /// already stays.
    pub(super) async fn apply(
        &self,
        name: &NetworkName,
        bridge: &Link,
        subnet: Subnet,
        dhcp: bool,
    ) -> Result<(), NetworkError> {
        let directory = self.directory(name);
        let made = fs::create_dir_all(&directory);
        made.map_err(|source| write_error(&directory, source))?;
        forward::apply(&bridge.name, subnet, Forward::Routed).await?;
        let same = |kept: &Kept| (kept.bridge, kept.subnet) == (bridge.index, subnet);
        if dhcp && self.kept().get(name).is_some_and(same) {
            return Ok(());
        }
        // The old one is not to come back while the new one starts.
        self.kept().remove(name);
        if !dhcp {
            dnsmasq::end(&directory).await;
            return Ok(());
        }
        let kept = Kept {
            bridge: bridge.index,
            subnet,
            _dnsmasq: Dnsmasq::start(bridge, subnet, &directory).await?,
        };
        self.kept().insert(name.clone(), kept);
        Ok(())
    }

    /// Removes what is here of it, but for the bridge and its address. Nothing happens if there is
    /// nothing.
    pub(super) async fn remove(&self, name: &NetworkName) -> Result<(), NetworkError> {
        let directory = self.directory(name);
        if !directory.exists() {
            return Ok(());
        }
        self.kept().remove(name);
        dnsmasq::end(&directory).await;
        forward::remove(&Network::own_bridge_of(name)).await?;
        match fs::remove_dir_all(&directory) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(write_error(&directory, source))
            }
            _ => Ok(()),
        }
    }

    /// Addresses that the guest's interfaces got by DHCP.
    pub(super) fn addresses(&self, guest: &Guest) -> Vec<Ipv4Addr> {
        let mut names: Vec<&NetworkName> = Vec::new();
        for interface in &guest.interfaces {
            if !names.contains(&&interface.network) && self.has(&interface.network) {
                names.push(&interface.network);
            }
        }
        let leases = names.into_iter();
        leases
            .flat_map(|name| dnsmasq::addresses(&self.directory(name), guest))
            .collect()
    }
}

fn write_error(path: &Path, source: std::io::Error) -> NetworkError {
    NetworkError::Write {
        path: path.to_owned(),
        source,
    }
}
