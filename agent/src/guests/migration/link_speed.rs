//! How fast the link to another node is, as its network card says.
//!
//! A bridge, a bond or a VLAN is as fast as the slowest card below it that has a link: one
//! connection goes over one of them. What is no card, as one half of a veth pair, has a speed that
//! somebody has made up: it counts for nothing.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

/// Where the kernel shows its interfaces (`Documentation/ABI/testing/sysfs-class-net`).
const INTERFACES: &str = "/sys/class/net";
/// A VLAN on a bridge on a bond on cards, and one more.
const DEEPEST: usize = 5;

/// What the link that leads to `to` carries, in bits a second. `None`: nobody knows.
pub(super) fn link_bits_per_s(to: IpAddr) -> Option<u64> {
    let from = address_towards(to).ok()?;
    let mut all = nix::ifaddrs::getifaddrs().ok()?;
    let ours = all.find(|interface| {
        let storage = interface.address.as_ref();
        let address = storage.and_then(|storage| {
            let ipv4 = storage.as_sockaddr_in().map(|address| address.ip().into());
            ipv4.or_else(|| storage.as_sockaddr_in6().map(|address| address.ip().into()))
        });
        address == Some(from)
    })?;
    slowest_card(Path::new(INTERFACES), &ours.interface_name, DEEPEST)
}

/// Our address on the way there. Nothing is sent.
fn address_towards(to: IpAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    // Any port leads the same way.
    socket.connect(SocketAddr::new(to, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// In bits a second.
fn slowest_card(interfaces: &Path, name: &str, depth: usize) -> Option<u64> {
    let directory = interfaces.join(name);
    if directory.join("device").exists() {
        // -1, or EINVAL: it has no link, or does not tell.
        let text = fs::read_to_string(directory.join("speed")).ok()?;
        let mbits: i64 = text.trim().parse().ok()?;
        return u64::try_from(mbits)
            .ok()
            .filter(|mbits| *mbits > 0)
            .map(|mbits| mbits * 1_000_000);
    }
    let depth = depth.checked_sub(1)?;
    let entries = fs::read_dir(&directory).ok()?.flatten();
    let lower = entries.filter_map(|entry| {
        let entry = entry.file_name();
        let below = entry.to_str()?.strip_prefix("lower_")?;
        slowest_card(interfaces, below, depth)
    });
    lower.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridge_is_as_fast_as_the_slowest_card_below_it_that_has_a_link() {
        let interfaces = tempfile::tempdir().unwrap();
        let make = |name: &str, speed: &str, card: bool, lower: &[&str]| {
            let directory = interfaces.path().join(name);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("speed"), speed).unwrap();
            if card {
                fs::create_dir(directory.join("device")).unwrap();
            }
            for below in lower {
                fs::create_dir(directory.join(format!("lower_{below}"))).unwrap();
            }
        };
        make("eno1", "1000\n", true, &[]);
        make("eno2", "10000\n", true, &[]);
        make("eno3", "-1\n", true, &[]);
        make("veth0", "10000\n", false, &[]);
        make("bond0", "11000\n", false, &["eno1", "eno2", "eno3"]);
        make("br0", "10000\n", false, &["bond0", "veth0"]);
        make("br0.7", "10000\n", false, &["br0"]);
        make("br1", "10000\n", false, &["veth0"]);
        make("ring", "10000\n", false, &["ring"]);
        for (name, expected) in [
            ("eno2", Some(10_000_000_000)),
            ("eno3", None),
            ("br0.7", Some(1_000_000_000)),
            ("br1", None),
            ("veth0", None),
            ("ring", None),
            ("none", None),
        ] {
            let found = slowest_card(interfaces.path(), name, DEEPEST);
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn way_to_an_address_of_our_own_is_no_card() {
        let loopback = Ipv4Addr::LOCALHOST.into();
        assert_eq!(address_towards(loopback).unwrap(), loopback);
        assert_eq!(link_bits_per_s(loopback), None);
    }
}
