//! What `pindah top` shows, as text.

use super::Seen;
use crate::api::{GuestView, NodeView};
use crate::cli::output::{figure, mib, table, used};

/// Two tables.
pub(super) fn text(seen: &Seen) -> String {
    let nodes = [
        "NODE",
        "CPU %",
        "MEMORY",
        "USED",
        "RX kbit/s",
        "TX kbit/s",
        "GUESTS",
        "RUNNING",
    ];
    let guests = [
        "GUEST",
        "STATE",
        "NODE",
        "CPU %",
        "MEMORY",
        "USED",
        "RX kbit/s",
        "TX kbit/s",
        "READ KiB/s",
        "WRITE KiB/s",
    ];
    let nodes = table(&nodes, seen.nodes.iter().map(node));
    let guests = table(&guests, seen.guests.iter().map(guest));
    format!("{nodes}\n\n{guests}")
}

fn node(node: &NodeView) -> Vec<String> {
    let usage = &node.usage;
    vec![
        node.name.clone(),
        figure(usage.cpu_percent),
        mib(node.memory_mib),
        usage.memory_used_mib.map_or_else(|| "-".to_owned(), mib),
        figure(usage.network_rx_kbit_per_s),
        figure(usage.network_tx_kbit_per_s),
        node.guests.to_string(),
        node.guests_running.to_string(),
    ]
}

fn guest(guest: &GuestView) -> Vec<String> {
    let usage = &guest.usage;
    vec![
        guest.name.to_string(),
        guest.state.to_string(),
        guest.node.clone(),
        figure(usage.cpu_percent),
        mib(guest.memory_mib),
        used(usage),
        figure(usage.network_rx_kbit_per_s),
        figure(usage.network_tx_kbit_per_s),
        figure(usage.disk_read_kib_per_s),
        figure(usage.disk_write_kib_per_s),
    ]
}
