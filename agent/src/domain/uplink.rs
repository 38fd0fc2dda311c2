//! How a network leaves a node.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Invalid, LinkName, Subnet};

/// Most interfaces of a bond.
const BOND_MAX: usize = 8;

/// How a network leaves a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "by", rename_all = "snake_case", deny_unknown_fields)]
pub enum Uplink {
    /// Not at all: only guests of the same node see each other.
    #[default]
    None,
    /// By an interface of the host that has no addresses. It becomes a port of the bridge.
    Interface {
        /// The interface.
        interface: LinkName,
    },
    /// By a bond that is made of interfaces of the host that have no addresses.
    Bond {
        /// The interfaces.
        interfaces: Vec<LinkName>,
        /// How they work together.
        #[serde(default)]
        mode: BondMode,
    },
    /// By a bridge of the host, which is used as it is, and neither changed nor removed.
    HostBridge {
        /// The bridge.
        bridge: LinkName,
    },
    /// By the node itself, which routes: guests are reached from elsewhere by their own addresses.
    /// The router of the node's network must send the subnet to the node.
    Routed {
        /// The node's address in the subnet, with the prefix length: the guests' gateway.
        #[schema(value_type = String, example = "10.20.0.1/24")]
        subnet: Subnet,
        /// Whether the node gives addresses and resolves names.
        #[serde(default = "yes")]
        dhcp: bool,
    },
}

fn yes() -> bool {
    true
}

impl std::fmt::Display for Uplink {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => formatter.write_str("none"),
            Self::Interface { interface } => write!(formatter, "{interface}"),
            Self::Bond { interfaces, mode } => {
                let names: Vec<&str> = interfaces.iter().map(LinkName::as_str).collect();
                write!(formatter, "{} ({mode})", names.join("+"))
            }
            Self::HostBridge { bridge } => write!(formatter, "the host's bridge {bridge}"),
            Self::Routed { subnet, .. } => write!(formatter, "routed {subnet}"),
        }
    }
}

/// How the interfaces of a bond work together (Linux `Documentation/networking/bonding.rst`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum BondMode {
    /// One carries everything, another takes over when it fails. Needs nothing of the switch.
    #[default]
    #[serde(rename = "active-backup")]
    ActiveBackup,
    /// All carry, as agreed with the switch by LACP.
    #[serde(rename = "802.3ad")]
    Lacp,
}

impl std::fmt::Display for BondMode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::ActiveBackup => "active-backup",
            Self::Lacp => "802.3ad",
        })
    }
}

impl Uplink {
    /// The host's interfaces that it takes for itself.
    pub fn interfaces(&self) -> &[LinkName] {
        match self {
            Self::None | Self::HostBridge { .. } | Self::Routed { .. } => &[],
            Self::Interface { interface } => std::slice::from_ref(interface),
            Self::Bond { interfaces, .. } => interfaces,
        }
    }

    /// The subnet that the node routes, if it does.
    pub fn subnet(&self) -> Option<Subnet> {
        match self {
            Self::Routed { subnet, .. } => Some(*subnet),
            _ => None,
        }
    }

    /// Refuses what cannot be; `field` is where it stands.
    pub(super) fn check(&self, field: &str) -> Result<(), Invalid> {
        let Self::Bond { interfaces, .. } = self else {
            return Ok(());
        };
        let mut names: Vec<&str> = interfaces.iter().map(LinkName::as_str).collect();
        let shown = names.join(",");
        names.sort_unstable();
        names.dedup();
        if names.len() == interfaces.len() && (1..=BOND_MAX).contains(&names.len()) {
            return Ok(());
        }
        let must = format!("must be 1 to {BOND_MAX} different interfaces");
        Err(Invalid::text(format!("{field}.interfaces"), &shown, must))
    }
}
