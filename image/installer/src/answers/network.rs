//! How the machine is reached.

use std::net::IpAddr;

use toml::Spanned;

use super::file::NetworkFile;
use super::mistake::Mistakes;

/// The network interface that is meant. Without anything: the first one with a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// Its name.
    pub name: Option<String>,
    /// Its MAC address: six pairs of lower-case digits, with colons.
    pub mac: Option<String>,
}

/// Where addresses come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// From the network.
    #[default]
    Dhcp,
    /// As the answers say.
    Static {
        /// The machine's.
        address: IpAddr,
        /// Bits of it that are its network's.
        prefix: u8,
        /// Who leads elsewhere.
        gateway: Option<IpAddr>,
    },
}

/// The network by which the machine is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Its interface.
    pub nic: Nic,
    /// Its VLAN, 1 to 4094.
    pub vlan: Option<u16>,
    /// Its addresses.
    pub addressing: Addressing,
    /// Who resolves names, beside those that DHCP names.
    pub dns: Vec<IpAddr>,
}

impl Network {
    pub(super) fn validate(file: NetworkFile, mistakes: &mut Mistakes<'_>) -> Self {
        let nic = Nic {
            name: mistakes.read(file.nic, nic_name),
            mac: mistakes.read(file.mac, mac),
        };
        let vlan = file.vlan.and_then(|vlan| {
            let number = vlan.get_ref();
            if !(1..=4094).contains(number) {
                mistakes.add(
                    vlan.span(),
                    format!("network.vlan = {number}: write a number from 1 to 4094"),
                );
            }
            u16::try_from(*number).ok()
        });
        let gateway_place = file.gateway.as_ref().map(Spanned::span);
        let gateway = mistakes.read(file.gateway, |text| ip("gateway", text));
        let is_static = file.address.is_some();
        let address = mistakes.read(file.address, address);
        let place = gateway_place.as_ref();
        if let (Some(place), false) = (place, is_static) {
            mistakes.add(
                place.clone(),
                "network.gateway without network.address: write the address too, or leave both \
                 out for DHCP",
            );
        }
        if let (Some(place), Some((address, prefix)), Some(gateway)) = (place, address, gateway)
            && let Err(message) = check_gateway(address, prefix, gateway)
        {
            mistakes.add(place.clone(), message);
        }
        let servers = file.dns.into_iter();
        let dns = servers
            .filter_map(|server| mistakes.read(Some(server), |text| ip("dns", text)))
            .collect();
        let addressing = address.map_or(Addressing::Dhcp, |(address, prefix)| Addressing::Static {
            address,
            prefix,
            gateway,
        });
        Self {
            nic,
            vlan,
            addressing,
            dns,
        }
    }
}

/// Whether a machine with this address reaches this gateway.
pub(crate) fn check_gateway(address: IpAddr, prefix: u8, gateway: IpAddr) -> Result<(), String> {
    if gateway == address {
        return Err(format!(
            "network.gateway = \"{gateway}\" is the machine's own address: write the router's"
        ));
    }
    if same_network(address, gateway, prefix) {
        return Ok(());
    }
    Err(format!(
        "network.gateway = \"{gateway}\" is not in the network of {address}/{prefix}: write the \
         address of the router there, or correct the prefix"
    ))
}

/// What `network.nic` may be.
fn nic_name(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
    if (1..=15).contains(&text.len()) && text.chars().all(valid) && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    Err(format!(
        "network.nic = {text:?}: write an interface's name, as \"eno1\" (`ip link` shows them)"
    ))
}

fn mac(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase().replace('-', ":");
    let pairs: Vec<&str> = lower.split(':').collect();
    let pair = |pair: &&str| pair.len() == 2 && pair.chars().all(|c| c.is_ascii_hexdigit());
    if pairs.len() == 6 && pairs.iter().all(pair) {
        return Ok(lower);
    }
    Err(format!(
        "network.mac = {text:?}: write six pairs of hexadecimal digits, as \"00:1a:4b:12:34:56\""
    ))
}

/// An address of a machine.
pub(crate) fn ip(field: &str, text: &str) -> Result<IpAddr, String> {
    let address: Result<IpAddr, _> = text.parse();
    let usable = |ip: &IpAddr| !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback());
    address.ok().filter(usable).ok_or_else(|| {
        format!("network.{field} = {text:?}: write a machine's IP address, as \"192.168.0.1\"")
    })
}

/// A VLAN's number.
pub(crate) fn vlan(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|it| (1..=4094).contains(it));
    number.ok_or_else(|| format!("VLAN {text:?}: write a number from 1 to 4094"))
}

/// Addresses of name servers, with blanks or commas between them.
pub(crate) fn name_servers(text: &str) -> Result<Vec<IpAddr>, String> {
    let servers = text.split([' ', ',']).filter(|text| !text.is_empty());
    servers.map(|text| ip("dns", text)).collect()
}

/// An address of a machine with the length of its network's prefix.
pub(crate) fn address(text: &str) -> Result<(IpAddr, u8), String> {
    let advice = || {
        format!(
            "network.address = {text:?}: write a machine's address and the length of its \
             network's prefix, as \"192.168.0.11/24\""
        )
    };
    let (address, prefix) = text.split_once('/').ok_or_else(advice)?;
    let address = ip("address", address).map_err(|_| advice())?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix: u8 = prefix.parse().map_err(|_| advice())?;
    if prefix == 0 || prefix > bits {
        return Err(advice());
    }
    if let IpAddr::V4(v4) = address
        && prefix < 31
    {
        let host = u32::from(v4) & (u32::MAX >> prefix);
        if host == 0 || host == u32::MAX >> prefix {
            return Err(format!(
                "network.address = {text:?}: this is the address of the whole network or of all \
                 machines in it; write one of a machine"
            ));
        }
    }
    Ok((address, prefix))
}

fn same_network(one: IpAddr, other: IpAddr, prefix: u8) -> bool {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            (u32::from(one) ^ u32::from(other)).leading_zeros() >= prefix.into()
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            other.is_unicast_link_local()
                || (u128::from(one) ^ u128::from(other)).leading_zeros() >= prefix.into()
        }
        _ => false,
    }
}
