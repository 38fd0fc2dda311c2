//! The network as systemd-networkd reads it.

use std::fmt::Write as _;

use crate::answers::{Addressing, Network, Nic};
use crate::hardware::Link;

/// What a VLAN's interface is called, before its number.
const VLAN: &str = "vlan";

/// The interface that `nic` means: without anything the first with a link, or the first.
///
/// # Errors
/// A sentence with all that there are.
pub fn choose<'a>(nic: &Nic, links: &'a [Link]) -> Result<&'a Link, String> {
    let means = |link: &&Link| {
        nic.name.as_ref().is_none_or(|name| *name == link.name)
            && nic.mac.as_ref().is_none_or(|mac| *mac == link.mac)
    };
    let mut fitting = links.iter().filter(means);
    let linked = links.iter().filter(means).find(|link| link.carrier);
    linked.or_else(|| fitting.next()).ok_or_else(|| {
        let wanted = match (&nic.name, &nic.mac) {
            (Some(name), Some(mac)) => {
                format!("no network interface {name} with MAC address {mac}")
            }
            (Some(name), None) => format!("no network interface {name}"),
            (None, Some(mac)) => format!("no network interface with MAC address {mac}"),
            (None, None) => "no network interface".to_owned(),
        };
        let titles: Vec<String> = links.iter().map(Link::title).collect();
        format!("the machine has {wanted}; it has: {}", titles.join(", "))
    })
}

/// The files that make `link` what `network` says, by their names in `/etc/systemd/network`.
pub(crate) fn files(network: &Network, link: &Link) -> Vec<(String, String)> {
    // Names change with a card more or less; what has the card's own address (a VLAN's interface)
    // must not match too.
    let card = format!("[Match]\nPermanentMACAddress={}\n", link.mac);
    let Some(vlan) = network.vlan else {
        return vec![("10-pindah.network".to_owned(), card + &addresses(network))];
    };
    let carrier = format!("{card}\n[Network]\nVLAN={VLAN}{vlan}\nLinkLocalAddressing=no\n");
    let device = format!("[NetDev]\nName={VLAN}{vlan}\nKind=vlan\n\n[VLAN]\nId={vlan}\n");
    let network = format!("[Match]\nName={VLAN}{vlan}\n{}", addresses(network));
    vec![
        ("10-pindah.network".to_owned(), carrier),
        ("10-pindah-vlan.netdev".to_owned(), device),
        ("10-pindah-vlan.network".to_owned(), network),
    ]
}

fn addresses(network: &Network) -> String {
    let mut text = "\n[Network]\n".to_owned();
    let mut tail = "";
    match &network.addressing {
        Addressing::Dhcp => {
            text += "DHCP=yes\n";
            // What a machine's DHCP server knows it by.
            tail = "\n[DHCPv4]\nClientIdentifier=mac\n";
        }
        Addressing::Static {
            address,
            prefix,
            gateway,
        } => {
            // A string takes it.
            let _ = writeln!(text, "Address={address}/{prefix}");
            if let Some(gateway) = gateway {
                let _ = writeln!(text, "Gateway={gateway}");
            }
        }
    }
    for server in &network.dns {
        let _ = writeln!(text, "DNS={server}");
    }
    text + "MulticastDNS=no\nLLMNR=no\n" + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Vec<Link> {
        [
            ("eno1", "00:00:00:00:00:01", false),
            ("eno2", "00:00:00:00:00:02", true),
        ]
        .map(|(name, mac, carrier)| Link {
            name: name.to_owned(),
            mac: mac.to_owned(),
            driver: "tg3".to_owned(),
            carrier,
            speed_mbit_s: None,
        })
        .to_vec()
    }

    fn nic(name: Option<&str>, mac: Option<&str>) -> Nic {
        Nic {
            name: name.map(str::to_owned),
            mac: mac.map(str::to_owned),
        }
    }

    #[test]
    fn interface_is_found_by_name_mac_or_link() {
        let links = links();
        for (nic, expected) in [
            (nic(None, None), "eno2"),
            (nic(Some("eno1"), None), "eno1"),
            (nic(None, Some("00:00:00:00:00:01")), "eno1"),
        ] {
            assert_eq!(choose(&nic, &links).unwrap().name, expected);
        }
        let error = choose(&nic(Some("eno1"), Some("00:00:00:00:00:02")), &links).unwrap_err();
        assert!(error.contains("no network interface eno1 with MAC address 00:00:00:00:00:02"));
        assert!(
            error.contains("eno2 (00:00:00:00:00:02, tg3, link)"),
            "{error}"
        );
        assert_eq!(choose(&nic(None, None), &links[..1]).unwrap().name, "eno1");
    }

    #[test]
    fn address_in_a_vlan_gives_three_files() {
        let network = Network {
            vlan: Some(20),
            addressing: Addressing::Static {
                address: [10, 0, 0, 2].into(),
                prefix: 24,
                gateway: Some([10, 0, 0, 1].into()),
            },
            dns: vec![[10, 0, 0, 3].into()],
            ..Network::default()
        };
        let files = files(&network, &links()[0]);
        let expected = [
            "[Match]\nPermanentMACAddress=00:00:00:00:00:01\n\n[Network]\nVLAN=vlan20\n\
             LinkLocalAddressing=no\n",
            "[NetDev]\nName=vlan20\nKind=vlan\n\n[VLAN]\nId=20\n",
            "[Match]\nName=vlan20\n\n[Network]\nAddress=10.0.0.2/24\nGateway=10.0.0.1\n\
             DNS=10.0.0.3\nMulticastDNS=no\nLLMNR=no\n",
        ];
        assert_eq!(
            files.iter().map(|(_, text)| &**text).collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn dhcp_is_one_file() {
        let [(name, text)] = &*files(&Network::default(), &links()[1]) else {
            panic!("several files");
        };
        assert_eq!(name, "10-pindah.network");
        let expected = "[Match]\nPermanentMACAddress=00:00:00:00:00:02\n\n[Network]\nDHCP=yes\n\
                        MulticastDNS=no\nLLMNR=no\n\n[DHCPv4]\nClientIdentifier=mac\n";
        assert_eq!(text, expected);
    }
}
