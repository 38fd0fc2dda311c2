//! MAC addresses.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A unicast MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

/// Why a text or six bytes are no MAC address of a device.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParseMacError {
    /// Not six pairs of hexadecimal digits.
    #[error("{0:?} is not a MAC address such as 52:54:00:12:34:56")]
    Form(String),
    /// A group address, which cannot be the source of a packet.
    #[error("{0} is a multicast address")]
    Multicast(String),
    /// All zeroes.
    #[error("00:00:00:00:00:00 is no device's address")]
    Zero,
}

impl MacAddress {
    /// Takes six bytes.
    ///
    /// # Errors
    /// [`ParseMacError`] if the address is multicast or zero.
    pub fn new(bytes: [u8; 6]) -> Result<Self, ParseMacError> {
        let mac = Self(bytes);
        if bytes[0] & 1 != 0 {
            return Err(ParseMacError::Multicast(mac.to_string()));
        }
        if bytes == [0; 6] {
            return Err(ParseMacError::Zero);
        }
        Ok(mac)
    }

    /// The address of device `id` of the guest `name`, if none is configured: the same on every
    /// host and in every version of this program.
    pub fn derive(name: &str, id: &str) -> Self {
        // FNV-1a (64 bits), for want of a hash in the standard library that never changes. The
        // zero byte keeps ("a", "bc") and ("ab", "c") apart.
        let hash = [name.as_bytes(), &[0], id.as_bytes()]
            .into_iter()
            .flatten()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let [.., a, b, c] = (hash ^ hash >> 24 ^ hash >> 48).to_be_bytes();
        Self([0x52, 0x54, 0x00, a, b, c])
    }

    /// The six bytes in the order of the wire.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let malformed = || ParseMacError::Form(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(malformed)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        match parts.next() {
            None => Self::new(bytes),
            Some(_) => Err(malformed()),
        }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.into_iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            write!(to, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_address_prints_the_same() {
        for text in ["52:54:00:12:34:56", "02:00:00:00:00:01"] {
            assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn parse_malformed_or_unusable_address_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "+2:54:00:12:34:56",
            "5:5:5",
        ] {
            let refused = text.parse::<MacAddress>();
            assert_eq!(refused, Err(ParseMacError::Form(text.to_owned())));
        }
        let multicast = "01:00:5e:00:00:01";
        let refused = Err(ParseMacError::Multicast(multicast.to_owned()));
        assert_eq!(multicast.parse::<MacAddress>(), refused);
        let refused = Err(ParseMacError::Zero);
        assert_eq!("00:00:00:00:00:00".parse::<MacAddress>(), refused);
    }

    #[test]
    fn derive_never_changes() {
        // A guest keeps its address over upgrades of this program.
        let mac = MacAddress::derive("web", "net0");
        assert_eq!(mac.to_string(), "52:54:00:7e:5a:bc");
        assert_ne!(mac, MacAddress::derive("web", "net1"));
        assert_ne!(mac, MacAddress::derive("webn", "et0"));
    }
}
