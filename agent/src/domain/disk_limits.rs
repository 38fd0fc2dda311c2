//! How much of its storage a guest's disk may take.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Invalid;
use super::invalid::within;

type Vmm = pindah_vmm_api::DiskLimits;

/// Limits of a disk, reads and writes together; what is absent has none. A disk that was idle may
/// exceed them by what they allow in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DiskLimits {
    /// Most bytes a second, 65536 (64 KiB) to 1099511627776 (1 TiB).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 65_536, maximum = 1_099_511_627_776_u64)]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Most requests a second, flushes and discards included, 10 to 1000000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 10, maximum = 1_000_000)]
    pub iops: Option<u64>,
}

impl DiskLimits {
    /// Refuses what is no limit; `field` is what a request calls them.
    pub(crate) fn check(&self, field: &str) -> Result<(), Invalid> {
        if let Some(bytes) = self.bandwidth_bytes_per_s {
            let field = format!("{field}.bandwidth_bytes_per_s");
            within(&field, bytes, Vmm::BANDWIDTH_BYTES_PER_S, " bytes/s")?;
        }
        if let Some(iops) = self.iops {
            within(&format!("{field}.iops"), iops, Vmm::IOPS, "")?;
        }
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<DiskLimits> for Vmm {
    fn from(limits: DiskLimits) -> Self {
        let DiskLimits {
            bandwidth_bytes_per_s,
            iops,
        } = limits;
        Self {
            bandwidth_bytes_per_s,
            iops,
        }
    }
}

impl std::fmt::Display for DiskLimits {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.bandwidth_bytes_per_s.map(rate));
        parts.extend(self.iops.map(|iops| format!("{iops} IOPS")));
        formatter.write_str(&parts.join(", "))
    }
}

/// In the largest unit that says it exactly.
fn rate(bytes_per_s: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB"), (0, "bytes")];
    let whole = |(shift, _): &(u32, _)| bytes_per_s.trailing_zeros() >= *shift;
    let (shift, unit) = units.into_iter().find(whole).expect("the last is whole");
    format!("{} {unit}/s", bytes_per_s >> shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str) -> DiskLimits {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn limits_are_shown_exactly() {
        for (json, shown) in [
            ("{}", ""),
            (r#"{"iops":500}"#, "500 IOPS"),
            (
                r#"{"bandwidth_bytes_per_s":20971520,"iops":500}"#,
                "20 MiB/s, 500 IOPS",
            ),
            (r#"{"bandwidth_bytes_per_s":1536000}"#, "1500 KiB/s"),
            (r#"{"bandwidth_bytes_per_s":100001}"#, "100001 bytes/s"),
            (r#"{"bandwidth_bytes_per_s":1099511627776}"#, "1024 GiB/s"),
        ] {
            assert_eq!(limits(json).to_string(), shown);
        }
    }

    #[test]
    fn limits_that_no_disk_can_have_are_refused_by_name() {
        for json in [
            "{}",
            r#"{"bandwidth_bytes_per_s":65536,"iops":10}"#,
            r#"{"bandwidth_bytes_per_s":1099511627776,"iops":1000000}"#,
        ] {
            assert_eq!(limits(json).check("limits"), Ok(()));
        }
        for (json, expected) in [
            (r#"{"iops":9}"#, "limits.iops = 9: must be 10 to 1000000"),
            (r#"{"iops":1000001}"#, "limits.iops = 1000001"),
            (
                r#"{"bandwidth_bytes_per_s":65535}"#,
                "limits.bandwidth_bytes_per_s = 65535: must be 65536 to 1099511627776 bytes/s",
            ),
        ] {
            let refused = limits(json).check("limits").unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
    }
}
