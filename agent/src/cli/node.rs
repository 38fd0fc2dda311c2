//! `pindah node …`.

use clap::Subcommand;

use super::output::{Output, figure, mib, properties, table};
use crate::api::NodeView;
use crate::client::Client;

/// The machines.
#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// List all nodes.
    List,
    /// Show a node.
    Show {
        /// The node.
        node: String,
    },
}

impl NodeCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List => {
                let nodes: Vec<NodeView> = client.list("/nodes").await?;
                output.show(&nodes, |nodes| {
                    let head = [
                        "NODE",
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
        }
    }
}

fn row(node: &NodeView) -> Vec<String> {
    vec![
        node.name.clone(),
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
            format!("{} ({}): {free} of {total} free", pool.name, pool.kind)
        })
        .collect();
    properties(&[
        ("node", node.name.clone()),
        ("version", node.version.clone()),
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
    ])
}
