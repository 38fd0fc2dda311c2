//! What guests and nodes take, as the API shows it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::history::Bucket;

/// What a guest takes. Null is what is not known: a rate before the second sample of its process,
/// all of it while it is off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct GuestUsage {
    /// When it was last looked at, in milliseconds since the Unix epoch.
    pub sampled_unix_ms: Option<u64>,
    /// CPU time of its process; 100 is one processor of the node.
    pub cpu_percent: Option<f64>,
    /// Memory that the guest itself says is in use, in MiB; null if it says nothing.
    pub memory_used_mib: Option<u64>,
    /// Memory that it has given back to the node, in MiB.
    pub memory_returned_mib: Option<u64>,
    /// Memory of the node that its process holds, in MiB.
    pub memory_resident_mib: Option<u64>,
    /// What it receives, in kbit/s.
    pub network_rx_kbit_per_s: Option<f64>,
    /// What it sends, in kbit/s.
    pub network_tx_kbit_per_s: Option<f64>,
    /// What it reads from its disks, in KiB/s.
    pub disk_read_kib_per_s: Option<f64>,
    /// What it writes to its disks, in KiB/s.
    pub disk_write_kib_per_s: Option<f64>,
    /// Reads and writes of its disks a second.
    pub disk_operations_per_s: Option<f64>,
}

/// What a node's guests and its own programs take. Null is what is not known: a rate before the
/// second sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NodeUsage {
    /// When it was last looked at, in milliseconds since the Unix epoch.
    pub sampled_unix_ms: Option<u64>,
    /// CPU time; 100 is all its processors.
    pub cpu_percent: Option<f64>,
    /// Memory that cannot be had without swapping, in MiB.
    pub memory_used_mib: Option<u64>,
    /// What its network cards receive, in kbit/s.
    pub network_rx_kbit_per_s: Option<f64>,
    /// What its network cards send, in kbit/s.
    pub network_tx_kbit_per_s: Option<f64>,
    /// What is read from its disks, in KiB/s.
    pub disk_read_kib_per_s: Option<f64>,
    /// What is written to its disks, in KiB/s.
    pub disk_write_kib_per_s: Option<f64>,
}

/// Memory in use of `total_mib`, in bytes and in per cent.
fn memory(used_mib: Option<u64>, total_mib: u64) -> (Option<f64>, Option<f64>) {
    let bytes = used_mib.map(|mib| mib as f64 * 1_048_576.0);
    let share = |used: u64| (used as f64 * 100.0 / total_mib.max(1) as f64).min(100.0);
    (bytes, used_mib.map(share))
}

/// In the order of [`super::history::Quantity`].
fn sample(
    cpu_percent: Option<f64>,
    (memory_bytes, memory_percent): (Option<f64>, Option<f64>),
    kbit_per_s: [Option<f64>; 2],
    kib_per_s: [Option<f64>; 2],
) -> Bucket {
    let [rx, tx] = kbit_per_s.map(|rate| rate.map(|kbit| kbit * 1000.0));
    let [read, write] = kib_per_s.map(|rate| rate.map(|kib| kib * 1024.0));
    Bucket::sample([
        cpu_percent,
        memory_bytes,
        memory_percent,
        rx,
        tx,
        read,
        write,
    ])
}

impl GuestUsage {
    /// As the history takes it, of a guest with so much RAM. Its memory is what it says itself, or
    /// else what its process holds.
    pub(super) fn history_sample(&self, memory_mib: u64) -> Bucket {
        let used_mib = self.memory_used_mib.or(self.memory_resident_mib);
        sample(
            self.cpu_percent,
            memory(used_mib, memory_mib),
            [self.network_rx_kbit_per_s, self.network_tx_kbit_per_s],
            [self.disk_read_kib_per_s, self.disk_write_kib_per_s],
        )
    }
}

impl NodeUsage {
    /// As the history takes it, of a node with so much memory.
    pub(super) fn history_sample(&self, memory_mib: u64) -> Bucket {
        sample(
            self.cpu_percent,
            memory(self.memory_used_mib, memory_mib),
            [self.network_rx_kbit_per_s, self.network_tx_kbit_per_s],
            [self.disk_read_kib_per_s, self.disk_write_kib_per_s],
        )
    }
}

/// One digit after the point: more is noise.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Bytes a second as kbit/s.
pub(super) fn kbit(bytes_per_s: f64) -> f64 {
    rounded(bytes_per_s * 8.0 / 1000.0)
}

/// Bytes a second as KiB/s.
pub(super) fn kib(bytes_per_s: f64) -> f64 {
    rounded(bytes_per_s / 1024.0)
}
