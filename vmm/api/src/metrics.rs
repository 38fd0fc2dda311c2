//! Counters of one guest. All count from the start of the VMM's process and never fall, but for
//! those that say so.

use serde::{Deserialize, Serialize};

/// Everything that is counted, as `GET /api/v1/metrics` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Metrics {
    /// How long the VMM has had the guest, in milliseconds.
    pub uptime_ms: u64,
    /// How long of that the guest stood still, in milliseconds.
    pub paused_ms: u64,
    /// One for each vCPU.
    pub vcpus: Vec<VcpuMetrics>,
    /// One for each virtio-blk device.
    pub disks: Vec<DiskMetrics>,
    /// One for each virtio-net device.
    pub nets: Vec<NetMetrics>,
    /// virtio-balloon, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonMetrics>,
}

/// One vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VcpuMetrics {
    /// Its number.
    pub index: u8,
    /// Host CPU time that its thread has taken, in nanoseconds, exits included.
    pub cpu_time_ns: u64,
    /// Returns from `KVM_RUN`, by reason.
    pub exits: ExitCounts,
}

/// Returns from `KVM_RUN` by reason (KVM API, section 5, `exit_reason`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExitCounts {
    /// Port reads.
    pub io_in: u64,
    /// Port writes.
    pub io_out: u64,
    /// MMIO reads.
    pub mmio_read: u64,
    /// MMIO writes.
    pub mmio_write: u64,
    /// `hlt` that reached user space.
    pub halt: u64,
    /// Kicks and signals.
    pub interrupted: u64,
    /// Everything else.
    pub other: u64,
}

/// One virtio-blk device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiskMetrics {
    /// Its id.
    pub id: String,
    /// Reads.
    pub read: OperationMetrics,
    /// Writes.
    pub write: OperationMetrics,
    /// Flushes; they move no bytes.
    pub flush: OperationMetrics,
    /// Discards.
    pub discard: OperationMetrics,
    /// Writes of zeroes.
    pub write_zeroes: OperationMetrics,
}

/// One kind of request to one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct OperationMetrics {
    /// Requests answered, failed ones included.
    pub operations: u64,
    /// Bytes moved by those that did not fail.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// From the descriptor's arrival to the answer.
    pub latency: LatencyHistogram,
}

/// How long operations took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LatencyHistogram {
    /// `counts[i]` operations took less than 2^i µs and no less than `counts[i - 1]`'s bound; the
    /// last of [`LatencyHistogram::BUCKETS`] holds all that took longer. Zeroes at the end are
    /// left out.
    pub counts: Vec<u64>,
    /// All of them together, in microseconds.
    pub sum_us: u64,
}

impl LatencyHistogram {
    /// Number of buckets: the last but one ends at 2^23 µs, 8.4 s.
    pub const BUCKETS: usize = 25;

    /// The bucket that an operation of this length belongs to.
    pub fn bucket(duration_us: u64) -> usize {
        let bits = u64::BITS - duration_us.leading_zeros();
        (bits as usize).min(Self::BUCKETS - 1)
    }
}

/// One virtio-net device. Directions are the guest's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NetMetrics {
    /// Its id.
    pub id: String,
    /// Packets that the guest received.
    pub rx_packets: u64,
    /// Bytes that the guest received, headers included.
    pub rx_bytes: u64,
    /// Packets for which the guest had no buffer.
    pub rx_dropped: u64,
    /// Packets that the guest sent.
    pub tx_packets: u64,
    /// Bytes that the guest sent, headers included.
    pub tx_bytes: u64,
    /// Packets that the host did not take.
    pub tx_dropped: u64,
}

/// virtio-balloon. What the guest reports is absent until it does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BalloonMetrics {
    /// Memory that the guest is asked to give back, in MiB. Rises and falls.
    pub target_mib: u64,
    /// Memory that it has given back, in MiB. Rises and falls.
    pub actual_mib: u64,
    /// Free memory that the guest has reported and the host has taken, in bytes.
    pub reported_free_bytes: u64,
    /// What the guest says of its memory; rises and falls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestMemoryStats>,
}

/// What a guest says of its memory (virtio 1.2, 5.5.6.4). A guest may leave any of it out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GuestMemoryStats {
    /// When it said so, in milliseconds since the Unix epoch.
    pub time_unix_ms: u64,
    /// Bytes swapped in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_in_bytes: Option<u64>,
    /// Bytes swapped out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_out_bytes: Option<u64>,
    /// Faults that needed the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Faults that did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Bytes that nothing uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Bytes in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Bytes that programs could get without swapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Bytes that cache files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_caches_bytes: Option<u64>,
    /// Huge pages handed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be handed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_bucket_holds_less_than_its_power_of_two() {
        for (duration_us, bucket) in [
            (0, 0),
            (1, 1),
            (2, 2),
            (3, 2),
            (4, 3),
            ((1 << 23) - 1, 23),
            (1 << 23, 24),
            (u64::MAX, 24),
        ] {
            assert_eq!(LatencyHistogram::bucket(duration_us), bucket);
        }
    }
}
