//! An IPv4 subnet with the node's own address in it, `10.87.0.1/22`.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::Invalid;

/// Shortest and longest prefix.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=29;

/// The node's address in a subnet, with the length of the prefix, 8 to 29.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    address: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// What the text must be.
    pub const MUST: &'static str =
        "must be a host's IPv4 address with a prefix of 8 to 29, as in 10.87.0.1/22";

    /// The subnet that the text names.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address: Ipv4Addr = address.parse().ok()?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|prefix| PREFIXES.contains(prefix))?;
        // 0.0.0.0/8 and from 224.0.0.0 on there are no hosts (RFC 6890).
        let is_unicast = (1..224).contains(&address.octets()[0]) && !address.is_loopback();
        let subnet = Self { address, prefix };
        let is_host = address != subnet.base() && address != subnet.last();
        (is_unicast && is_host).then_some(subnet)
    }

    /// The node's address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Length of the prefix.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The subnet's own address.
    pub fn base(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() & mask(self.prefix))
    }

    /// Its mask.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !mask(self.prefix))
    }

    /// The subnet as a range of addresses, `10.87.0.0/22`.
    pub fn range(self) -> String {
        format!("{}/{}", self.base(), self.prefix)
    }

    /// First and last address that guests get: the larger part beside the node's own address.
    pub fn guests(self) -> (Ipv4Addr, Ipv4Addr) {
        let own = self.address.to_bits();
        let (base, last) = (self.base().to_bits(), self.last().to_bits());
        if own - base <= last - own {
            (Ipv4Addr::from_bits(own + 1), Ipv4Addr::from_bits(last - 1))
        } else {
            (Ipv4Addr::from_bits(base + 1), Ipv4Addr::from_bits(own - 1))
        }
    }

    /// Whether an address belongs to both.
    pub fn overlaps(self, other: Self) -> bool {
        self.overlaps_range(other.address, other.prefix)
    }

    /// Whether an address of it begins with the first `prefix` bits of `address`.
    pub fn overlaps_range(self, address: Ipv4Addr, prefix: u8) -> bool {
        let mask = mask(self.prefix.min(prefix));
        (self.address.to_bits() ^ address.to_bits()) & mask == 0
    }
}

/// Of a prefix of at most 32 bits.
fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl TryFrom<String> for Subnet {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::parse(&text).ok_or_else(|| Invalid::text("subnet", &text, Self::MUST))
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        Subnet::parse(text).unwrap()
    }

    #[test]
    fn guests_get_the_larger_part_of_it() {
        for (text, range, expected) in [
            ("10.87.0.1/22", "10.87.0.0/22", ["10.87.0.2", "10.87.3.254"]),
            (
                "192.168.7.254/24",
                "192.168.7.0/24",
                ["192.168.7.1", "192.168.7.253"],
            ),
        ] {
            let (first, last) = subnet(text).guests();
            assert_eq!([first.to_string(), last.to_string()], expected);
            assert_eq!(subnet(text).range(), range);
            assert_eq!(subnet(text).to_string(), text);
        }
        assert_eq!(subnet("10.87.0.1/22").mask().to_string(), "255.255.252.0");
    }

    #[test]
    fn what_is_no_host_in_a_subnet_is_refused() {
        for text in [
            "",
            "10.0.0.1",
            "10.0.0.0/24",
            "10.0.0.255/24",
            "10.0.0.1/7",
            "10.0.0.1/30",
            "x/24",
            "10.0.0.1/",
            "127.0.0.1/8",
            "224.0.0.1/24",
            "0.0.0.1/8",
            "fd00::1/24",
        ] {
            assert_eq!(Subnet::parse(text), None, "{text}");
        }
    }

    #[test]
    fn overlap_goes_by_the_shorter_prefix() {
        let one = subnet("10.20.0.1/24");
        assert!(one.overlaps(subnet("10.20.0.9/28")) && one.overlaps(subnet("10.1.0.1/8")));
        assert!(!one.overlaps(subnet("10.20.1.1/24")));
        assert!(one.overlaps_range(Ipv4Addr::new(10, 20, 0, 77), 32));
        assert!(!one.overlaps_range(Ipv4Addr::new(10, 20, 1, 77), 32));
        assert!(one.overlaps_range(Ipv4Addr::UNSPECIFIED, 0));
    }
}
