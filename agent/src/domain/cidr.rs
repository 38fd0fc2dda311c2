//! A range of IP addresses, `10.0.0.0/8`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Invalid;

/// Addresses that begin alike; one alone needs no prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Whether they are IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }
}

impl TryFrom<String> for Cidr {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let refuse = |must: &str| Err(Invalid::text("address range", &text, must));
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text.as_str(), None),
        };
        let Ok(address) = address.parse::<IpAddr>() else {
            return refuse("must be an IP address or a range of them, as in 192.168.0.0/16");
        };
        let (bits, value) = match address {
            IpAddr::V4(address) => (32, u128::from(address.to_bits()) << 96),
            IpAddr::V6(address) => (128, address.to_bits()),
        };
        let prefix = match prefix.map(str::parse) {
            None => bits,
            Some(Ok(prefix)) if prefix <= bits => prefix,
            Some(_) => return refuse("must have a prefix length that its addresses have"),
        };
        // Shifted by all of its bits a number is gone.
        if value.checked_shl(prefix.into()).unwrap_or(0) != 0 {
            return refuse("must be a range's first address; its prefix length cuts it short");
        }
        Ok(Self { address, prefix })
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_read_and_shown() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("fd00::/8", "fd00::/8"),
            ("fd00::1", "fd00::1/128"),
        ] {
            assert_eq!(Cidr::try_from(text.to_owned()).unwrap().to_string(), shown);
        }
        for text in [
            "",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0/8",
            "fd00::1/64",
            "x",
            "1.2.3.4/",
            "1.2.3.4/-1",
        ] {
            assert!(Cidr::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
