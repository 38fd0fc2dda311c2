//! How fast a guest's interface may be.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Invalid;
use super::invalid::within;

/// Limits of an interface, in the guest's directions; what is absent has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// What the guest receives, in kbit/s, 64 to 100000000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 64, maximum = 100_000_000)]
    pub rx_kbit_per_s: Option<u64>,
    /// What the guest transmits, in kbit/s, 64 to 100000000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 64, maximum = 100_000_000)]
    pub tx_kbit_per_s: Option<u64>,
}

impl RateLimit {
    /// Refuses what is no limit.
    pub(super) fn check(&self, field: &str) -> Result<(), Invalid> {
        for (name, rate) in [
            ("rx_kbit_per_s", self.rx_kbit_per_s),
            ("tx_kbit_per_s", self.tx_kbit_per_s),
        ] {
            if let Some(rate) = rate {
                within(
                    &format!("{field}.{name}"),
                    rate,
                    64..=100_000_000,
                    " kbit/s",
                )?;
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for RateLimit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown =
            |rate: Option<u64>| rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string());
        let (rx, tx) = (shown(self.rx_kbit_per_s), shown(self.tx_kbit_per_s));
        write!(formatter, "{rx} in, {tx} kbit/s out")
    }
}
