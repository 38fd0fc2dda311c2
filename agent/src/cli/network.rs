//! `pindah network …`.

use std::collections::BTreeMap;

use anyhow::Context;
use clap::{Args, Subcommand};
use reqwest::{Method, header};

use super::guest::{choice, segment};
use super::output::{Output, properties, table};
use crate::api::{Data, NetworkView};
use crate::client::Client;
use crate::domain::{
    BondMode, LinkName, NetworkEdit, NetworkName, NetworkSpec, Subnet, Uplink, is_label,
};
use crate::network::NetworkStatus;

/// What guests are connected to.
#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// List all networks.
    List,
    /// Show a network, and how it is doing on each node.
    Show {
        /// The network.
        network: String,
    },
    /// Make a network: a bridge on each node, and what connects it with the rest of the world.
    Create(CreateArguments),
    /// Change a network's uplinks; guests stay connected.
    Edit(EditArguments),
    /// Remove a network that no guest is connected to.
    Delete {
        /// The network.
        network: String,
    },
}

/// A new network.
#[derive(Debug, Args)]
pub(super) struct CreateArguments {
    /// Its name, at most 12 characters.
    name: String,
    #[command(flatten)]
    uplinks: UplinkFlags,
    /// Free text.
    #[arg(long, default_value = "")]
    notes: String,
}

/// What is to change.
#[derive(Debug, Args)]
pub(super) struct EditArguments {
    /// The network.
    network: String,
    #[command(flatten)]
    uplinks: UplinkFlags,
    /// A node that has no uplink of its own any more, but that of each node. May be repeated.
    #[arg(long, value_name = "NODE")]
    common_uplink: Vec<String>,
    /// Free text.
    #[arg(long)]
    notes: Option<String>,
}

/// How a network leaves the nodes.
#[derive(Debug, Args)]
pub(super) struct UplinkFlags {
    /// An interface without addresses that becomes a port of the bridge: on each node, or on one.
    /// May be repeated. Without any uplink only guests of the same node see each other.
    #[arg(long, value_name = "[NODE=]INTERFACE")]
    uplink: Vec<String>,
    /// Interfaces without addresses that work together as the uplink: on each node, or on one. May
    /// be repeated.
    #[arg(long, value_name = "[NODE=]INTERFACE,INTERFACE…")]
    bond: Vec<String>,
    /// How they do: active-backup, or 802.3ad, which the switch must be set up for.
    #[arg(long, default_value = "active-backup", requires = "bond", value_parser = choice::<BondMode>)]
    bond_mode: BondMode,
    /// A bridge of the host's own, which is used as it is: on each node, or on one. May be repeated.
    #[arg(long, value_name = "[NODE=]BRIDGE")]
    bridge: Vec<String>,
    /// The node routes the subnet itself, without NAT: its address there, which is the guests'
    /// gateway, with the prefix length. The router of the node's network must send the subnet to
    /// the node. May be repeated.
    #[arg(long, value_name = "NODE=ADDRESS/PREFIX")]
    routed: Vec<String>,
    /// A node that routes gives no addresses and resolves no names.
    #[arg(long, requires = "routed")]
    no_dhcp: bool,
    /// No uplink: on each node, or on one. May be repeated.
    #[arg(long, value_name = "NODE", num_args = 0..=1, default_missing_value = "")]
    no_uplink: Vec<String>,
}

impl NetworkCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List => {
                let networks: Vec<NetworkView> = client.list("/networks").await?;
                output.show(&networks, |networks| {
                    let head = ["NAME", "KIND", "UPLINK", "STATE", "GUESTS"];
                    table(&head, networks.iter().map(row))
                })
            }
            Self::Show { network } => {
                let path = format!("/networks/{}", segment(&network)?);
                let network: NetworkView = client.get(&path).await?;
                output.show(&network, text)
            }
            Self::Create(arguments) => {
                let spec = arguments.into_spec()?;
                let network: NetworkView = client.post("/networks", &spec).await?;
                output.show(&network, text)
            }
            Self::Edit(arguments) => arguments.run(client, output).await,
            Self::Delete { network } => {
                let path = format!("/networks/{}", segment(&network)?);
                client.send(client.request(Method::DELETE, &path)).await?;
                Ok(())
            }
        }
    }
}

impl UplinkFlags {
    /// By node; that of each node has no name.
    fn by_node(&self) -> anyhow::Result<BTreeMap<String, Uplink>> {
        let mut uplinks: BTreeMap<String, Uplink> = BTreeMap::new();
        let mut add = |text: &str, uplink: &dyn Fn(&str) -> anyhow::Result<Uplink>| {
            let (node, rest) = text.split_once('=').unwrap_or(("", text));
            anyhow::ensure!(
                node.is_empty() || is_label(node),
                "{node:?} is no node's name"
            );
            let before = uplinks.insert(node.to_owned(), uplink(rest)?);
            let place = if node.is_empty() { "each node" } else { node };
            anyhow::ensure!(before.is_none(), "{place} has two uplinks; name one");
            Ok(())
        };
        let link = |name: &str| LinkName::try_from(name.to_owned());
        for text in &self.uplink {
            add(text, &|name| {
                let interface = link(name)?;
                Ok(Uplink::Interface { interface })
            })?;
        }
        for text in &self.bond {
            add(text, &|names| {
                let interfaces: Result<Vec<LinkName>, _> = names.split(',').map(link).collect();
                let mode = self.bond_mode;
                let interfaces = interfaces?;
                Ok(Uplink::Bond { interfaces, mode })
            })?;
        }
        for text in &self.bridge {
            add(text, &|name| {
                let bridge = link(name)?;
                Ok(Uplink::HostBridge { bridge })
            })?;
        }
        for text in &self.routed {
            add(text, &|subnet| {
                let subnet = Subnet::try_from(subnet.to_owned())?;
                let dhcp = !self.no_dhcp;
                Ok(Uplink::Routed { subnet, dhcp })
            })?;
        }
        for node in &self.no_uplink {
            add(&format!("{node}="), &|_| Ok(Uplink::None))?;
        }
        Ok(uplinks)
    }
}

impl CreateArguments {
    fn into_spec(self) -> anyhow::Result<NetworkSpec> {
        let mut uplinks = self.uplinks.by_node()?;
        let name = NetworkName::try_from(self.name).context("cannot create it")?;
        Ok(NetworkSpec {
            name,
            uplink: uplinks.remove("").unwrap_or_default(),
            node_uplinks: uplinks,
            notes: self.notes,
        })
    }
}

impl EditArguments {
    async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let path = format!("/networks/{}", segment(&self.network)?);
        let (view, etag) = client.get_tagged::<NetworkView>(&path).await?;
        let edit = self.into_edit(view.network.node_uplinks)?;
        let request = client
            .request(Method::PATCH, &path)
            .header(header::IF_MATCH, etag)
            .json(&edit);
        let edited: Data<NetworkView> = client.send(request).await?.json().await?;
        output.show(&edited.data, text)
    }

    fn into_edit(self, mut of_nodes: BTreeMap<String, Uplink>) -> anyhow::Result<NetworkEdit> {
        let mut given = self.uplinks.by_node()?;
        let uplink = given.remove("");
        let before = of_nodes.clone();
        for node in &self.common_uplink {
            let there = of_nodes.remove(node).is_some() && !given.contains_key(node);
            anyhow::ensure!(there, "node {node} has no uplink of its own");
        }
        of_nodes.extend(given);
        Ok(NetworkEdit {
            uplink,
            node_uplinks: (of_nodes != before).then_some(of_nodes),
            notes: self.notes,
        })
    }
}

/// How it is doing, and what to do about it.
pub(super) fn state(status: &NetworkStatus) -> String {
    match &status.problem {
        None => status.state.to_string(),
        Some(problem) => format!("{}: {problem}", status.state),
    }
}

fn row(view: &NetworkView) -> Vec<String> {
    let network = &view.network;
    let mut uplinks = vec![network.uplink.to_string()];
    let of_nodes = network.node_uplinks.iter();
    uplinks.extend(of_nodes.map(|(node, uplink)| format!("{node}: {uplink}")));
    let states = view.nodes.iter();
    let states: Vec<String> = states
        .map(|(node, status)| format!("{node}: {}", status.state))
        .collect();
    vec![
        network.name.to_string(),
        network.kind.to_string(),
        uplinks.join(", "),
        states.join(", "),
        view.guests.len().to_string(),
    ]
}

fn text(view: &NetworkView) -> String {
    let network = &view.network;
    let deleting = if network.deleting {
        ", is being deleted"
    } else {
        ""
    };
    let mut lines = vec![properties(&[
        ("network", format!("{}{deleting}", network.name)),
        ("kind", network.kind.to_string()),
        (
            "moves",
            if view.follows_a_move {
                "guests keep their addresses"
            } else {
                "guests leave their addresses behind"
            }
            .to_owned(),
        ),
        ("guests", view.guests.join(" ")),
        ("notes", network.notes.clone()),
    ])];
    let head = ["NODE", "BRIDGE", "UPLINK", "VLANS", "STATE"];
    let rows = view.nodes.iter().map(|(node, status)| {
        let vlans = if status.vlans { "yes" } else { "no" };
        vec![
            node.clone(),
            status.bridge.clone(),
            status.uplink.clone(),
            vlans.to_owned(),
            state(status),
        ]
    });
    lines.push(table(&head, rows));
    lines.extend(network.subnets().map(|(node, subnet)| {
        let range = subnet.range();
        format!("guests are reached when the router of {node}'s network sends {range} to {node}")
    }));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        create: CreateArguments,
    }

    fn spec(line: &str) -> Result<NetworkSpec, String> {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let spec = line.create.into_spec();
        spec.map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn uplinks_are_of_all_nodes_or_of_one() {
        let line = "lan --uplink enp3s0 --bond node1=eno1,eno2 --bridge node2=br0 \
                    --routed node3=10.2.0.1/24 --no-dhcp";
        let spec = spec(line).unwrap();
        assert_eq!(spec.uplink.to_string(), "enp3s0");
        let of = |node: &str| spec.node_uplinks[node].to_string();
        assert_eq!(of("node1"), "eno1+eno2 (active-backup)");
        assert_eq!(of("node2"), "the host's bridge br0");
        assert_eq!(of("node3"), "routed 10.2.0.1/24");
        let routed = &spec.node_uplinks["node3"];
        assert!(matches!(routed, Uplink::Routed { dhcp: false, .. }));
    }

    #[test]
    fn edit_keeps_the_nodes_that_it_does_not_name() {
        #[derive(Debug, Parser)]
        struct Line {
            #[command(flatten)]
            edit: EditArguments,
        }
        let edit = |line: &str| {
            let words = ["x", "lan"].into_iter().chain(line.split_whitespace());
            let before = spec("lan --uplink node1=eno1 --uplink node2=eno2").unwrap();
            let line = Line::try_parse_from(words).unwrap();
            line.edit.into_edit(before.node_uplinks)
        };
        let changed = edit("--uplink node3=eno3 --no-uplink node1 --common-uplink node2").unwrap();
        let uplinks = changed.node_uplinks.unwrap();
        assert_eq!(uplinks.keys().collect::<Vec<_>>(), ["node1", "node3"]);
        assert_eq!(uplinks["node1"], Uplink::None);
        assert_eq!(edit("--no-uplink").unwrap().uplink, Some(Uplink::None));
        assert_eq!(edit("--notes x").unwrap().node_uplinks, None);
        let error = edit("--common-uplink node9").unwrap_err().to_string();
        assert!(error.contains("node9 has no uplink of its own"), "{error}");
    }

    #[test]
    fn wrong_uplinks_are_refused_with_the_reason() {
        for (line, expected) in [
            ("lan --uplink a --bridge b", "each node has two uplinks"),
            ("lan --uplink n1=a --uplink n1=b", "n1 has two uplinks"),
            ("lan --uplink N=a", "\"N\" is no node's name"),
            ("lan --uplink a/b", "name of an interface = \"a/b\""),
            ("lan --bond-mode 802.3ad", "--bond"),
            ("lan --no-dhcp", "--routed"),
            (
                "lan --routed n1=10.2.0.0/24",
                "must be a host's IPv4 address",
            ),
            (
                "lan --routed n1=10.2.0.1/24 --bridge n1=b",
                "n1 has two uplinks",
            ),
            ("Lan", "name of a network = \"Lan\""),
        ] {
            let message = spec(line).unwrap_err();
            assert!(message.contains(expected), "{line} gives {message}");
        }
    }
}
