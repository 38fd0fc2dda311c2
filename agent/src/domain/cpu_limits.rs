//! What a guest may take of its node's processors.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Invalid;
use super::invalid::within;

/// Limits of a guest's whole VMM, its vCPUs and its devices; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CpuLimits {
    /// Its share when guests compete, against the 100 of each other one, 1 to 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10_000)]
    pub weight: Option<u64>,
    /// The most that it gets, in per cent of one CPU, 5 to 6400.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 5, maximum = 6400)]
    pub limit_percent: Option<u64>,
}

impl CpuLimits {
    /// Refuses what is no limit.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if let Some(weight) = self.weight {
            within("cpu_limits.weight", weight, 1..=10_000, "")?;
        }
        if let Some(percent) = self.limit_percent {
            within("cpu_limits.limit_percent", percent, 5..=6400, " %")?;
        }
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for CpuLimits {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.weight.map(|weight| format!("weight {weight}")));
        let limit = self.limit_percent;
        parts.extend(limit.map(|percent| format!("at most {percent} % of a CPU")));
        formatter.write_str(&parts.join(", "))
    }
}
