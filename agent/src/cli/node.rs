//! `pindah node …`.

use clap::{Args, Subcommand};
use reqwest::Method;

use super::network::state;
use super::output::{Output, figure, mib, properties, table};
use super::progress::begin;
use super::update::{UpdateArguments, last_update, slots};
use crate::api::NodeView;
use crate::client::Client;
use crate::network::NetworkState;
use crate::storage::PoolState;

/// Clocks that differ by less are the same, in milliseconds.
const CLOCK_TOLERATED_MS: i64 = 500;

/// The machines.
#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// List all nodes.
    List,
    /// Show a node.
    Show {
        /// The node.
        #[arg(id = "name", value_name = "NODE")]
        node: String,
    },
    /// Move all guests of a node to others, for its maintenance; it takes none until `undrain`.
    Drain(Begin),
    /// Let a node take guests again, and bring back those that left it.
    Undrain(Begin),
    /// Install another version of Pindah on a node: it is written beside the one that runs, guests
    /// move to other nodes and back, and the node restarts. It goes back by itself if the new version
    /// does not come up healthy.
    Update(UpdateArguments),
    /// Take a dead node out of the cluster.
    Remove {
        /// The node.
        #[arg(id = "name", value_name = "NODE")]
        node: String,
        /// It never comes back; the guests on its own disks are given up.
        #[arg(long)]
        force: bool,
    },
}

/// Which node, and whether to wait.
#[derive(Debug, Args)]
pub(super) struct Begin {
    /// The node.
    #[arg(id = "name", value_name = "NODE")]
    node: String,
    /// Do not wait; print the task.
    #[arg(long)]
    no_wait: bool,
}

impl Begin {
    async fn run(self, client: &Client, output: Output, what: &str) -> anyhow::Result<()> {
        let node = super::guest::segment(&self.node)?;
        let request = client.request(Method::POST, &format!("/nodes/{node}/{what}"));
        begin(client, request, !self.no_wait, output).await
    }
}

impl NodeCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List => {
                let nodes: Vec<NodeView> = client.list("/nodes").await?;
                output.show(&nodes, |nodes| {
                    let head = [
                        "NODE",
                        "HEALTH",
                        "VERSION",
                        "CPUS",
                        "CPU %",
                        "MEMORY",
                        "FREE",
                        "RX kbit/s",
                        "TX kbit/s",
                        "GUESTS",
                        "RUNNING",
                    ];
                    table(&head, nodes.iter().map(row))
                })
            }
            Self::Show { node } => {
                let node = super::guest::segment(&node)?;
                let node: NodeView = client.get(&format!("/nodes/{node}")).await?;
                output.show(&node, show)
            }
            Self::Drain(arguments) => arguments.run(client, output, "drain").await,
            Self::Undrain(arguments) => arguments.run(client, output, "undrain").await,
            Self::Update(arguments) => arguments.run(client, output).await,
            Self::Remove { node, force } => {
                let node = super::guest::segment(&node)?;
                let request = client.request(Method::DELETE, &format!("/nodes/{node}"));
                client.send(request.query(&[("force", force)])).await?;
                Ok(())
            }
        }
    }
}

/// A word, and what does not stay unsaid.
fn health(node: &NodeView) -> String {
    let mut words = vec![node.health.to_string()];
    if node.witness {
        words.push("witness".to_owned());
    }
    if node.drained {
        words.push("drained".to_owned());
    }
    if node
        .last_update
        .as_ref()
        .is_some_and(|last| last.fell_back.is_some())
    {
        words.push("update fell back".to_owned());
    }
    let networks = node.networks.iter();
    let failed = networks.filter(|network| network.state != NetworkState::Ready);
    words.extend(failed.map(|network| format!("network {} {}", network.network, network.state)));
    match node.clock_ahead_ms {
        Some(ahead) if ahead.abs() >= CLOCK_TOLERATED_MS => {
            let seconds = ahead.abs() as f64 / 1000.0;
            let side = if ahead > 0 { "ahead" } else { "behind" };
            words.push(format!("clock {seconds:.1} s {side}"));
        }
        _ => {}
    }
    words.join(", ")
}

fn row(node: &NodeView) -> Vec<String> {
    vec![
        node.name.clone(),
        health(node),
        node.version.clone(),
        node.cpus.to_string(),
        figure(node.usage.cpu_percent),
        mib(node.memory_mib),
        mib(node.memory_available_mib),
        figure(node.usage.network_rx_kbit_per_s),
        figure(node.usage.network_tx_kbit_per_s),
        node.guests.to_string(),
        node.guests_running.to_string(),
    ]
}

fn show(node: &NodeView) -> String {
    let pools: Vec<String> = node
        .pools
        .iter()
        .map(|pool| {
            let (free, total) = (mib(pool.free_mib), mib(pool.total_mib));
            let state = match pool.state {
                PoolState::Ready => format!("{free} of {total} free"),
                state => state.to_string(),
            };
            format!("{} ({}): {state}", pool.name, pool.kind)
        })
        .collect();
    let networks: Vec<String> = node
        .networks
        .iter()
        .map(|network| format!("{}: {}", network.network, state(network)))
        .collect();
    properties(&[
        ("node", node.name.clone()),
        ("health", health(node)),
        ("address", node.address.clone().unwrap_or_default()),
        ("version", node.version.clone()),
        ("slots", node.slots.as_ref().map(slots).unwrap_or_default()),
        (
            "last update",
            node.last_update
                .as_ref()
                .map(last_update)
                .unwrap_or_default(),
        ),
        ("cpus", node.cpus.to_string()),
        ("kvm", if node.kvm { "yes" } else { "no" }.to_owned()),
        ("memory", mib(node.memory_mib)),
        ("available", mib(node.memory_available_mib)),
        ("of guests", mib(node.memory_guests_mib)),
        ("cpu", format!("{} %", figure(node.usage.cpu_percent))),
        (
            "network",
            format!(
                "{} in, {} kbit/s out",
                figure(node.usage.network_rx_kbit_per_s),
                figure(node.usage.network_tx_kbit_per_s)
            ),
        ),
        (
            "guests",
            format!("{} of {} run", node.guests_running, node.guests),
        ),
        ("pools", pools.join(", ")),
        ("networks", networks.join(", ")),
    ])
}
