//! Why a network is not as it should be.

use std::path::PathBuf;

use thiserror::Error;

use crate::domain::{Invalid, NetworkName, Subnet};
use crate::store::StoreError;

/// Why a network or an interface is not set up.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The kernel's routing socket.
    #[error("cannot {action} {interface}")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// On which interface.
        interface: String,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
    /// The socket itself.
    #[error("cannot open the kernel's routing socket")]
    Socket(#[source] std::io::Error),
    /// A tap.
    #[error("cannot create tap {tap}")]
    Tap {
        /// The tap.
        tap: String,
        /// Why.
        #[source]
        source: tokio_tun::Error,
    },
    /// An interface that should be there.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The bridge's name belongs to something else.
    #[error("{0} is there and is no bridge; set network.bridge to another name")]
    NoBridge(String),
    /// A program fails.
    #[error("{program} fails: {reason}")]
    Program {
        /// The program.
        program: &'static str,
        /// What it says.
        reason: String,
    },
    /// A file.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The node's own network is off.
    #[error(
        "the node's own network is switched off (network.enabled in the node's configuration) or \
         could not be set up (see the agent's log)"
    )]
    NodeNetworkOff,
    /// A network's record is gone.
    #[error("there is no network {0}; `pindah network list` shows what there is")]
    Gone(NetworkName),
    /// What a network should use on this node cannot be used.
    #[error("network {network} cannot use {interface} on node {node}: {reason}")]
    Unusable {
        /// The network.
        network: NetworkName,
        /// What it should use.
        interface: String,
        /// The node.
        node: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// The name of what would be made is taken.
    #[error(
        "network {network} needs the name {interface} on node {node}, and somebody else's \
         interface has it; rename that one, or give the network another name"
    )]
    Foreign {
        /// The network.
        network: NetworkName,
        /// The name.
        interface: String,
        /// The node.
        node: String,
    },
    /// A subnet that the host is in already.
    #[error(
        "network {network} cannot route {subnet} on node {node}, which has addresses of it on \
         {interface} ({address}); choose a subnet that nothing else uses"
    )]
    Overlap {
        /// The network.
        network: NetworkName,
        /// Its subnet.
        subnet: Subnet,
        /// Who has addresses of it.
        interface: String,
        /// An address there, with its prefix.
        address: String,
        /// The node.
        node: String,
    },
    /// A bridge that does not look at VLANs.
    #[error(
        "network {network} keeps no VLANs apart on node {node}: bridge {bridge} has no VLAN \
         filtering (a bridge of the host's: switch vlan_filtering on; else the kernel lacks \
         CONFIG_BRIDGE_VLAN_FILTERING)"
    )]
    NoVlans {
        /// The network.
        network: NetworkName,
        /// Its bridge.
        bridge: String,
        /// The node.
        node: String,
    },
    /// A kernel that does not know connections on bridges.
    #[error(
        "the firewall of {interface} is stateful, and the kernel of node {node} tracks no \
         connections on bridges (CONFIG_NF_CONNTRACK_BRIDGE); make it stateless, and allow answers \
         by rules"
    )]
    NoTracking {
        /// The interface.
        interface: String,
        /// The node.
        node: String,
    },
    /// A kernel without what is needed.
    #[error("cannot create {interface}: the kernel lacks what it needs ({option})")]
    KernelLacks {
        /// What would be made.
        interface: String,
        /// The kernel's option.
        option: &'static str,
    },
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl NetworkError {
    /// Whether it lies at what was asked for, or at the host's state, not at a failure.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NodeNetworkOff
                | Self::Gone(_)
                | Self::Unusable { .. }
                | Self::Foreign { .. }
                | Self::Overlap { .. }
                | Self::NoVlans { .. }
                | Self::NoTracking { .. }
                | Self::KernelLacks { .. }
        )
    }
}

/// Why the networks' records stay as they are.
#[derive(Debug, Error)]
pub enum NetworkRequestError {
    /// There is none.
    #[error("there is no network {0}; `pindah network list` shows what there is")]
    NotFound(String),
    /// There is one.
    #[error("there is a network {0} already; choose another name")]
    Exists(NetworkName),
    /// Each node's own network cannot be removed.
    #[error(
        "network {0} is each node's own; network.enabled in a node's configuration switches it off"
    )]
    OfNode(NetworkName),
    /// Guests are connected to it.
    #[error("network {network} has guests: {guests}; delete them or their interfaces first")]
    InUse {
        /// The network.
        network: NetworkName,
        /// Their names.
        guests: String,
    },
    /// It has changed since it was read.
    #[error("network {0} has changed since you read it; read it again, then edit")]
    Changed(NetworkName),
    /// Guests would have to be connected to another bridge.
    #[error(
        "guests of node {node} are connected to {bridge}: {guests}; connect them to another network \
         before network {network} gets another bridge there"
    )]
    BridgeInUse {
        /// The network.
        network: NetworkName,
        /// The node.
        node: String,
        /// Its bridge.
        bridge: String,
        /// Their names.
        guests: String,
    },
    /// Another network has some of the addresses.
    #[error(
        "network {other} has addresses of {subnet} on node {node}; choose a subnet that nothing \
         else uses"
    )]
    SubnetTaken {
        /// The other network.
        other: NetworkName,
        /// The node that routes them.
        node: String,
        /// The subnet that is asked for.
        subnet: Subnet,
    },
    /// Another network has the interface.
    #[error("network {other} has {interface} already")]
    Taken {
        /// The other network.
        other: NetworkName,
        /// The interface.
        interface: String,
    },
    /// A value.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This node cannot set it up.
    #[error(transparent)]
    Apply(#[from] NetworkError),
}
