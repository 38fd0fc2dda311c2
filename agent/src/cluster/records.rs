//! What the store holds of nodes: who they are for ever, and how they do under their leases.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Ports;
use crate::guests::Status;
use crate::metrics::{GuestUsage, NodeUsage};
use crate::network::NetworkStatus;
use crate::storage::PoolStatus;
use crate::store::Record;
use crate::update::{LastUpdate, Slots};

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name; never changes.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
    /// The port of its API; its other ports follow.
    pub port: u16,
    /// It votes and runs no guests.
    pub witness: bool,
    /// When it joined, in milliseconds since the Unix epoch.
    pub joined_unix_ms: u64,
    /// It was let in and has not come yet, as far as the cluster knows.
    #[serde(default)]
    pub entering: bool,
}

impl Record for NodeRecord {
    const KIND: &'static str = "nodes";
    const SCHEMA: u32 = 1;
}

impl NodeRecord {
    /// Its ports.
    pub fn ports(&self) -> Option<Ports> {
        Ports::from_api(self.port)
    }

    /// Where other etcds find its own.
    pub fn etcd_url(&self) -> Option<String> {
        Some(self.ports()?.etcd_peer_url(self.address))
    }

    /// Where its API is for everybody.
    pub fn api(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// That a node's agent runs: there as long as its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAlive {
    /// Since when, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
}

impl Record for NodeAlive {
    const KIND: &'static str = "nodes-alive";
    const SCHEMA: u32 = 1;
}

/// How a node does, as it says itself from time to time; gone with its lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// When, by its own clock, in milliseconds since the Unix epoch.
    pub time_unix_ms: u64,
    /// Version of Pindah that it runs.
    pub version: String,
    /// Its processors.
    pub cpus: usize,
    /// Its memory, in MiB.
    pub memory_mib: u64,
    /// What could be had of it without swapping, in MiB.
    pub memory_available_mib: u64,
    /// What running guests have of it, in MiB.
    pub memory_guests_mib: u64,
    /// What guests may not take of it, in MiB.
    #[serde(default)]
    pub memory_reserved_mib: u64,
    /// Guests that have a process.
    pub guests_running: usize,
    /// Whether it can run guests: `/dev/kvm` is there.
    pub kvm: bool,
    /// Its pools.
    pub pools: Vec<PoolStatus>,
    /// How the networks do on it.
    #[serde(default)]
    pub networks: Vec<NetworkStatus>,
    /// What it takes.
    #[serde(default)]
    pub usage: NodeUsage,
    /// What its guests take: together, so that telling it is one write.
    #[serde(default)]
    pub guests_usage: BTreeMap<Uuid, GuestUsage>,
    /// Its two systems, if it was installed from the image.
    #[serde(default)]
    pub slots: Option<Slots>,
    /// How its last update ended.
    #[serde(default)]
    pub last_update: Option<LastUpdate>,
}

impl NodeStatus {
    /// Memory that guests may have, in MiB.
    pub fn memory_for_guests_mib(&self) -> u64 {
        self.memory_mib.saturating_sub(self.memory_reserved_mib)
    }
}

impl Record for NodeStatus {
    const KIND: &'static str = "nodes-status";
    const SCHEMA: u32 = 1;
}

/// How a guest does, as its node says; gone with the node's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// Which guest.
    pub uuid: Uuid,
    /// The node that says so.
    pub node: String,
    /// What it does there.
    pub status: Status,
    /// Addresses that it got by DHCP.
    pub addresses: Vec<String>,
}

impl Record for GuestStatus {
    const KIND: &'static str = "guests-status";
    const SCHEMA: u32 = 1;
}
