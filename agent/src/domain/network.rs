//! A network that guests are connected to: the same name on every node, so that a guest can move.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Invalid, LinkName, NetworkName, Subnet, Uplink, check_notes};
use crate::store::Record;

/// Most nodes with an uplink of their own.
const NODES_MAX: usize = 64;

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Its name; never changes.
    pub name: NetworkName,
    /// How guests are connected by it.
    pub kind: NetworkKind,
    /// How it leaves each node that `node_uplinks` does not name.
    #[serde(default)]
    pub uplink: Uplink,
    /// How it leaves these nodes.
    #[serde(default)]
    pub node_uplinks: BTreeMap<String, Uplink>,
    /// Free text.
    #[serde(default)]
    pub notes: String,
    /// When it was created, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub created_unix_ms: u64,
    /// It is being deleted: no guest can be connected to it any more.
    #[serde(default)]
    pub deleting: bool,
}

impl Record for Network {
    const KIND: &'static str = "networks";
    const SCHEMA: u32 = 1;
}

/// How guests are connected by a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// Each node's own bridge, with NAT, DHCP and DNS: what `[network]` in its configuration says.
    Nat,
    /// A bridge with VLANs on each node, and what connects these.
    Bridge,
}

impl std::fmt::Display for NetworkKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Nat => "nat",
            Self::Bridge => "bridge",
        })
    }
}

/// A new network: a bridge on each node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its name: unique.
    pub name: NetworkName,
    /// How it leaves each node that `node_uplinks` does not name.
    #[serde(default)]
    pub uplink: Uplink,
    /// How it leaves these nodes.
    #[serde(default)]
    pub node_uplinks: BTreeMap<String, Uplink>,
    /// Free text.
    #[serde(default)]
    pub notes: String,
}

impl NetworkSpec {
    /// The record: everything checked that can be without looking at a node.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn plan(&self, now_unix_ms: u64) -> Result<Network, Invalid> {
        check_notes(&self.notes)?;
        self.uplink.check("uplink")?;
        if self.node_uplinks.len() > NODES_MAX {
            let count = self.node_uplinks.len();
            let must = format!("must be at most {NODES_MAX} nodes");
            return Err(Invalid::number("node_uplinks", count, must));
        }
        for (node, uplink) in &self.node_uplinks {
            if !super::is_label(node) {
                return Err(Invalid::text(
                    "node_uplinks",
                    node,
                    "must be names of nodes",
                ));
            }
            uplink.check(&format!("node_uplinks.{node}"))?;
        }
        self.check_subnets()?;
        let name = self.name.clone();
        if name.is_of_node() {
            let must = "must not be that of each node's own network, which is there already";
            return Err(Invalid::text("name", name.as_str(), must));
        }
        Ok(Network {
            name,
            kind: NetworkKind::Bridge,
            uplink: self.uplink.clone(),
            node_uplinks: self.node_uplinks.clone(),
            notes: self.notes.clone(),
            created_unix_ms: now_unix_ms,
            deleting: false,
        })
    }

    /// A subnet is on one node: a router sends it to one.
    fn check_subnets(&self) -> Result<(), Invalid> {
        if let Some(subnet) = self.uplink.subnet() {
            let must = "must be of one node, in node_uplinks: each routes a subnet of its own";
            return Err(Invalid::text("uplink.subnet", &subnet.to_string(), must));
        }
        let mut before: Vec<(&String, Subnet)> = Vec::new();
        for (node, uplink) in &self.node_uplinks {
            let Some(subnet) = uplink.subnet() else {
                continue;
            };
            if let Some((other, _)) = before.iter().find(|(_, other)| other.overlaps(subnet)) {
                let field = format!("node_uplinks.{node}.subnet");
                let must = format!("must have no addresses that the one of node {other} has");
                return Err(Invalid::text(field, &subnet.to_string(), must));
            }
            before.push((node, subnet));
        }
        Ok(())
    }
}

/// What is to change of a network; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkEdit {
    /// How it leaves each node that `node_uplinks` does not name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Uplink>,
    /// How it leaves these nodes, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_uplinks: Option<BTreeMap<String, Uplink>>,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

impl NetworkEdit {
    /// The network as it is then.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn apply(&self, network: &Network) -> Result<Network, Invalid> {
        let uplinks = self.node_uplinks.clone();
        let spec = NetworkSpec {
            name: network.name.clone(),
            uplink: self
                .uplink
                .clone()
                .unwrap_or_else(|| network.uplink.clone()),
            node_uplinks: uplinks.unwrap_or_else(|| network.node_uplinks.clone()),
            notes: self.notes.clone().unwrap_or_else(|| network.notes.clone()),
        };
        let mut edited = spec.plan(network.created_unix_ms)?;
        edited.deleting = network.deleting;
        Ok(edited)
    }
}

impl Network {
    /// Each node's own network, which has no record.
    pub fn of_node() -> Self {
        Self {
            name: NetworkName::of_node(),
            kind: NetworkKind::Nat,
            uplink: Uplink::None,
            node_uplinks: BTreeMap::new(),
            notes: String::new(),
            created_unix_ms: 0,
            deleting: false,
        }
    }

    /// How it leaves `node`.
    pub fn uplink_on(&self, node: &str) -> &Uplink {
        self.node_uplinks.get(node).unwrap_or(&self.uplink)
    }

    /// Whether a guest on it that moves between these nodes keeps its addresses. On a node's own
    /// network they stay behind, and so do they on a network that does not leave the node, or that
    /// the node routes.
    pub fn follows_a_move<'a>(&self, nodes: impl IntoIterator<Item = &'a str>) -> bool {
        let stays = |node| matches!(self.uplink_on(node), Uplink::None | Uplink::Routed { .. });
        let mut nodes = nodes.into_iter();
        self.kind == NetworkKind::Bridge && nodes.all(|node| !stays(node))
    }

    /// The subnets that nodes route, each with its node.
    pub fn subnets(&self) -> impl Iterator<Item = (&str, Subnet)> {
        let uplinks = self.node_uplinks.iter();
        uplinks.filter_map(|(node, uplink)| Some((node.as_str(), uplink.subnet()?)))
    }

    /// An interface of some node that both would take for themselves.
    pub fn shares_with(&self, other: &Self) -> Option<&LinkName> {
        let named = self.node_uplinks.keys().chain(other.node_uplinks.keys());
        // No node has an empty name: it stands for those that neither names.
        let mut nodes = named.map(String::as_str).chain([""]);
        nodes.find_map(|node| {
            let theirs = other.uplink_on(node).interfaces();
            let ours = self.uplink_on(node).interfaces();
            ours.iter().find(|&interface| theirs.contains(interface))
        })
    }

    /// The bridge that guests of `node` are connected to; `None`: what the node's own
    /// configuration says.
    pub fn bridge_on(&self, node: &str) -> Option<String> {
        match (self.kind, self.uplink_on(node)) {
            (NetworkKind::Nat, _) => None,
            (NetworkKind::Bridge, Uplink::HostBridge { bridge }) => Some(bridge.to_string()),
            (NetworkKind::Bridge, _) => Some(self.own_bridge()),
        }
    }

    /// The port of the node's own bridge that is the uplink, if there is one.
    pub fn uplink_port_on(&self, node: &str) -> Option<String> {
        match self.uplink_on(node) {
            Uplink::None | Uplink::HostBridge { .. } | Uplink::Routed { .. } => None,
            Uplink::Interface { interface } => Some(interface.to_string()),
            Uplink::Bond { .. } => Some(self.own_bond()),
        }
    }

    /// The bridge that a node makes for it.
    pub fn own_bridge(&self) -> String {
        Self::own_bridge_of(&self.name)
    }

    /// The bridge that a node makes for the network of this name.
    pub fn own_bridge_of(name: &NetworkName) -> String {
        format!("pn-{name}")
    }

    /// The bond that a node makes for it.
    pub fn own_bond(&self) -> String {
        format!("pd-{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(spec: serde_json::Value) -> Result<Network, String> {
        let spec: NetworkSpec = serde_json::from_value(spec).map_err(|error| error.to_string())?;
        spec.plan(7).map_err(|error| error.to_string())
    }

    #[test]
    fn each_node_has_its_own_uplink_or_that_of_all() {
        let network = plan(json!({
            "name": "lan",
            "uplink": { "by": "interface", "interface": "enp3s0" },
            "node_uplinks": {
                "node1": { "by": "bond", "interfaces": ["eno1", "eno2"], "mode": "802.3ad" },
                "node2": { "by": "host_bridge", "bridge": "br0" },
                "node3": { "by": "none" },
                "node4": { "by": "routed", "subnet": "10.20.0.1/24" },
            },
        }))
        .unwrap();
        assert_eq!(
            network.uplink_on("node1").to_string(),
            "eno1+eno2 (802.3ad)"
        );
        assert_eq!(network.bridge_on("node1").unwrap(), "pn-lan");
        assert_eq!(network.bridge_on("node2").unwrap(), "br0");
        assert_eq!(network.uplink_on("node9").to_string(), "enp3s0");
        assert!(network.follows_a_move(["node1", "node2"]));
        assert!(!network.follows_a_move(["node1", "node3"]));
        assert!(!network.follows_a_move(["node1", "node4"]));
        assert_eq!(
            network.uplink_on("node4").to_string(),
            "routed 10.20.0.1/24"
        );
        assert_eq!(network.bridge_on("node4").unwrap(), "pn-lan");
        assert_eq!(network.uplink_port_on("node4"), None);
        assert!(!Network::of_node().follows_a_move(["node1", "node2"]));
        assert_eq!(Network::of_node().bridge_on("node1"), None);
    }

    #[test]
    fn edit_changes_what_it_names() {
        let network = plan(json!({
            "name": "lan",
            "node_uplinks": {
                "node1": { "by": "interface", "interface": "eno1" },
                "node2": { "by": "interface", "interface": "eno1" },
            },
            "notes": "old",
        }))
        .unwrap();
        let edit: NetworkEdit = serde_json::from_value(json!({
            "uplink": { "by": "interface", "interface": "enp3s0" },
            "node_uplinks": { "node3": { "by": "host_bridge", "bridge": "br0" } },
        }))
        .unwrap();
        let edited = edit.apply(&network).unwrap();
        let uplinks = ["node1", "node2", "node3"].map(|node| edited.uplink_on(node).to_string());
        assert_eq!(uplinks, ["enp3s0", "enp3s0", "the host's bridge br0"]);
        assert_eq!((edited.notes.as_str(), edited.created_unix_ms), ("old", 7));
        assert_eq!(NetworkEdit::default().apply(&network).unwrap(), network);
    }

    #[test]
    fn network_that_cannot_be_is_refused_with_field_and_reason() {
        for (spec, expected) in [
            (json!({ "name": "../x" }), "name of a network = \"../x\""),
            (json!({ "name": "a-name-too-long" }), "1 to 12 lower-case"),
            (json!({ "name": "node" }), "is there already"),
            (
                json!({ "name": "lan", "uplink": { "by": "interface", "interface": "a/b" } }),
                "name of an interface = \"a/b\"",
            ),
            (
                json!({ "name": "lan", "uplink": { "by": "bond", "interfaces": ["a", "a"] } }),
                "uplink.interfaces = \"a,a\": must be 1 to 8 different",
            ),
            (
                json!({ "name": "lan", "uplink": { "by": "bond", "interfaces": [] } }),
                "must be 1 to 8",
            ),
            (
                json!({ "name": "lan", "uplink": { "by": "bond", "interfaces": ["a"], "mode": "x" } }),
                "unknown variant `x`",
            ),
            (
                json!({ "name": "lan", "node_uplinks": { "A/": { "by": "none" } } }),
                "must be names of nodes",
            ),
            (
                json!({ "name": "lan", "uplink": { "by": "routed", "subnet": "10.2.0.1/24" } }),
                "uplink.subnet = \"10.2.0.1/24\": must be of one node",
            ),
            (
                json!({ "name": "lan", "node_uplinks": {
                    "n1": { "by": "routed", "subnet": "10.2.0.1/16" },
                    "n2": { "by": "routed", "subnet": "10.2.7.1/24" },
                } }),
                "node_uplinks.n2.subnet = \"10.2.7.1/24\": must have no addresses that the one of node n1",
            ),
            (
                json!({ "name": "lan", "node_uplinks": {
                    "n1": { "by": "routed", "subnet": "10.2.0.0/16" } } }),
                "must be a host's IPv4 address",
            ),
            (
                json!({ "name": "lan", "notes": "\u{7}" }),
                "control characters",
            ),
            (json!({ "name": "lan", "surprise": 1 }), "unknown field"),
        ] {
            let message = plan(spec.clone()).unwrap_err();
            assert!(message.contains(expected), "{spec} gives {message}");
        }
    }
}
