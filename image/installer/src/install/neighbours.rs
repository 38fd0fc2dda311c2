//! Who is there already on the network that a node is to join: ARP probes (RFC 5227), which are from
//! nobody, so that no table of anybody's learns of them. Debian's iputils-arping sends them.

use std::net::IpAddr;

use super::InstallError;
use crate::answers::{Addressing, Network};
use crate::hardware::Link;
use crate::program;

/// Fails if somebody has the address that the node is to have. What cannot be asked (an address of
/// IPv6, a VLAN, no link) is taken for free.
pub(super) fn check_free(network: &Network, link: &Link) -> Result<(), InstallError> {
    let Addressing::Static { address, .. } = network.addressing else {
        return Ok(());
    };
    match who_has(network, link, address) {
        Answer::Somebody(mac) => Err(InstallError::Taken { address, mac }),
        Answer::Nobody | Answer::Unknown => Ok(()),
    }
}

/// What to say of a gateway that does not answer. It may be switched on later.
pub(super) fn missing_gateway(network: &Network, link: &Link) -> Option<String> {
    let Addressing::Static {
        gateway: Some(gateway),
        ..
    } = network.addressing
    else {
        return None;
    };
    let silent = who_has(network, link, gateway) == Answer::Nobody;
    silent.then(|| {
        format!(
            "warning: nobody on {} answers as the gateway {gateway}: is it right, and on?",
            link.name
        )
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// With this MAC address.
    Somebody(String),
    Nobody,
    Unknown,
}

fn who_has(network: &Network, link: &Link, address: IpAddr) -> Answer {
    let (IpAddr::V4(address), None, true) = (address, network.vlan, link.carrier) else {
        return Answer::Unknown;
    };
    let address = address.to_string();
    let fixed = ["-D", "-c", "2", "-w", "3", "-I", &link.name, &address];
    match program::output("arping", &fixed, b"") {
        Ok(output) => read(&String::from_utf8_lossy(&output.stdout)),
        Err(_) => Answer::Unknown,
    }
}

/// What arping prints: an answer with the sender's address in brackets, and how many there were.
fn read(printed: &str) -> Answer {
    let reply = printed.lines().find(|line| line.contains(" reply from "));
    let mac = reply.and_then(|line| line.split_once('[')?.1.split_once(']'));
    match mac {
        Some((mac, _)) => Answer::Somebody(mac.to_lowercase()),
        None if printed.contains("Received 0 response") => Answer::Nobody,
        None => Answer::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arping_is_understood() {
        let somebody = "ARPING 10.9.0.254 from 0.0.0.0 enp0s2\nUnicast reply from 10.9.0.254 \
                        [3A:90:37:EC:7C:A1]  1.213ms\nSent 1 probes (1 broadcast(s))\nReceived 1 \
                        response(s)\n";
        assert_eq!(
            read(somebody),
            Answer::Somebody("3a:90:37:ec:7c:a1".to_owned())
        );
        let nobody = "ARPING 10.9.0.9 from 0.0.0.0 enp0s2\nSent 2 probes (2 broadcast(s))\n\
                      Received 0 response(s)\n";
        assert_eq!(read(nobody), Answer::Nobody);
        assert_eq!(read("arping: Interface \"x\" is down\n"), Answer::Unknown);
    }
}
