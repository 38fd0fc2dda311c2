//! How much of its storage a disk may take.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Limits of a disk, reads and writes together; what is absent has none. A disk that was idle may
/// exceed them by what they allow in one second, and a single request of any size passes whole:
/// those after it wait for so much longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct DiskLimits {
    /// Most bytes a second that are read, written and zeroed, 65536 (64 KiB) to 1099511627776
    /// (1 TiB). Flushes and discards move none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Most requests a second, flushes and discards included, 10 to 1000000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
}

impl DiskLimits {
    /// What the bandwidth may be. Below it, requests of usual sizes would wait for seconds.
    pub const BANDWIDTH_BYTES_PER_S: RangeInclusive<u64> = 64 << 10..=1 << 40;
    /// What the number of requests may be. Below it, a guest takes its disk for a broken one.
    pub const IOPS: RangeInclusive<u64> = 10..=1_000_000;

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A limit that cannot be: its field, its value, and what that may be.
    pub fn out_of_range(&self) -> Option<(&'static str, u64, RangeInclusive<u64>)> {
        let limits = [
            (
                "bandwidth_bytes_per_s",
                self.bandwidth_bytes_per_s,
                Self::BANDWIDTH_BYTES_PER_S,
            ),
            ("iops", self.iops, Self::IOPS),
        ];
        limits.into_iter().find_map(|(field, value, range)| {
            let value = value.filter(|value| !range.contains(value))?;
            Some((field, value, range))
        })
    }
}
