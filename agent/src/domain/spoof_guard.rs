//! Whose addresses a guest may send from.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Invalid;

/// Most addresses of an interface.
const ADDRESSES_MAX: usize = 64;

/// What keeps a guest from speaking as another: frames that are not from it are dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpoofGuard {
    /// Only from its own MAC address. A guest that is itself a bridge or a host of guests needs this
    /// off.
    pub enabled: bool,
    /// Its IP addresses; if there are any, it sends from these, speaks for these by ARP and neighbour
    /// discovery, and from no others but IPv6's link-local ones.
    #[schema(value_type = Vec<String>, example = json!(["192.168.1.20"]))]
    pub addresses: Vec<IpAddr>,
}

impl Default for SpoofGuard {
    fn default() -> Self {
        Self {
            enabled: true,
            addresses: Vec::new(),
        }
    }
}

impl SpoofGuard {
    /// Refuses what is no guard.
    pub(super) fn check(&self, field: &str) -> Result<(), Invalid> {
        let field = format!("{field}.addresses");
        if self.addresses.len() > ADDRESSES_MAX {
            let must = format!("must be at most {ADDRESSES_MAX}");
            return Err(Invalid::number(field, self.addresses.len(), must));
        }
        for address in &self.addresses {
            if address.is_multicast() || address.is_unspecified() {
                let must = "must be addresses of one machine";
                return Err(Invalid::text(field, &address.to_string(), must));
            }
        }
        if !self.enabled && !self.addresses.is_empty() {
            let must = "must be empty when the guard is off, as nothing would keep to them";
            return Err(Invalid::number(field, self.addresses.len(), must));
        }
        Ok(())
    }
}
