//! Where a new guest should go.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{GuestUse, NodeUse, percent_of, promised_mib};

/// Room on a node for a new guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeRoom {
    /// The node.
    pub node: String,
    /// Memory for a new guest, its VMM's included, in MiB.
    pub free_mib: u64,
    /// What guests are promised of its memory for guests.
    pub memory_percent: f64,
    /// What 95 of 100 minutes took of its processors at most; null: it was not measured.
    pub cpu_percent: Option<f64>,
}

/// The nodes that take guests and have memory left; that with the most of both left comes first,
/// memory counting more, as for the balance of a cluster.
pub(super) fn rooms(nodes: &[NodeUse], guests: &[GuestUse]) -> Vec<NodeRoom> {
    let taking = nodes.iter().filter(|node| node.takes_guests);
    let rooms = taking.map(|node| {
        let promised = promised_mib(&node.name, guests);
        NodeRoom {
            node: node.name.clone(),
            free_mib: node.memory_mib.saturating_sub(promised),
            memory_percent: percent_of(promised as f64, node.memory_mib as f64),
            cpu_percent: node.cpu_percent.map(|cpu| cpu.p95),
        }
    });
    let mut rooms: Vec<NodeRoom> = rooms.filter(|room| room.free_mib > 0).collect();
    let load = |room: &NodeRoom| {
        let cpu = room.cpu_percent.unwrap_or(0.0);
        4.0 * room.memory_percent * room.memory_percent + cpu * cpu
    };
    rooms.sort_by(|a, b| {
        let by_load = load(a).total_cmp(&load(b));
        by_load.then_with(|| a.node.cmp(&b.node))
    });
    rooms
}
