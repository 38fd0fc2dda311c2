//! MAC addresses of guests: unicast, and each of them once in a cluster.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Invalid;
use crate::store::Record;

/// The guest that has a MAC address: what makes them unique. Its id is the address with hyphens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacOwner {
    /// The guest.
    pub uuid: Uuid,
}

impl Record for MacOwner {
    const KIND: &'static str = "guest-macs";
    const SCHEMA: u32 = 1;
}

impl MacOwner {
    /// The id of the record of an address.
    pub fn id(mac: &str) -> String {
        mac.replace(':', "-")
    }
}

/// A unicast address in lower case.
pub(super) fn parse_mac(field: &str, text: &str) -> Result<String, Invalid> {
    let octets: Option<Vec<u8>> = text
        .split(':')
        .map(|part| {
            let digits = part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        })
        .collect();
    match octets.as_deref() {
        Some(octets @ [first, ..])
            if octets.len() == 6 && first & 1 == 0 && octets.iter().any(|&octet| octet != 0) =>
        {
            Ok(text.to_ascii_lowercase())
        }
        _ => {
            let must = "must be six octets of a unicast address, as in 52:54:00:12:34:56";
            Err(Invalid::text(field, text, must))
        }
    }
}

/// The address that a guest's interface has if nothing else is said.
pub(super) fn derived_mac(uuid: Uuid, index: usize) -> String {
    let bytes = uuid.as_bytes();
    let last = bytes[15].wrapping_add(index as u8);
    format!("52:54:00:{:02x}:{:02x}:{last:02x}", bytes[13], bytes[14])
}
