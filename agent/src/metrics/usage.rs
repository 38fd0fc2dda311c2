//! What guests and nodes take, as the API shows it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
