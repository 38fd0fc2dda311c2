//! A tap's spoofing guard and firewall as nftables text. Pure.
//!
//! One table of the bridge family has them all; maps lead from a tap's name to its chains:
//!
//! ```text
//! from the guest   prerouting -300   guard_TAP   is it the guest that speaks?
//!                  prerouting -150   from_TAP    may it go?  (after connection tracking, -200)
//! to the guest     postrouting 0     to_TAP      may it come?
//! ```
//!
//! So both hold whether the other side is at the bridge too, behind its uplink, or the node itself.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::domain::{
    Cidr, Direction, Firewall, FirewallRule, Interface, Policy, Protocol, SpoofGuard,
};

/// The table. It may be that of several agents on one host: each changes its own taps' chains only.
const TABLE: &str = "bridge pindah";
/// Maps, with the hook and the priority of the chains that look into them, and the packet's side
/// whose interface they know.
const MAPS: [(&str, &str, i32, &str); 3] = [
    ("guard", "prerouting", -300, "iifname"),
    ("from", "prerouting", -150, "iifname"),
    ("to", "postrouting", 0, "oifname"),
];
/// What no IP network works without: ARP, and RARP by which a guest that has moved tells where it is.
const NOT_IP: &str = "meta protocol { arp, 0x8035 } accept";
/// Errors of ICMP, without which path MTU discovery fails.
const ERRORS: &str = "meta protocol ip icmp type \
     { destination-unreachable, time-exceeded, parameter-problem } accept";
/// The same of ICMPv6, neighbour discovery (RFC 4861) and multicast listener discovery (RFC 3810).
const IPV6_WORKS: &str = "meta protocol ip6 icmpv6 type \
     { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, \
     nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, \
     mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept";

/// What a kernel takes that tracks connections on bridges (Linux 5.3, `CONFIG_NF_CONNTRACK_BRIDGE`).
pub(super) const TRACKING: &str = "table bridge pindah_check {
    chain check {
        type filter hook prerouting priority -150; policy accept;
        ct state established accept
    }
}
";

/// A transaction after which exactly this holds for the interface's tap.
pub(super) fn ruleset(interface: &Interface) -> String {
    let mut text = removal(&interface.tap);
    if interface.spoof_guard.enabled {
        add_chain(&mut text, "guard", interface, guard(interface));
    }
    let firewall = &interface.firewall;
    if !firewall.is_open() {
        let out = rules(firewall, Direction::Out);
        add_chain(&mut text, "from", interface, out);
        let inbound = rules(firewall, Direction::In);
        add_chain(&mut text, "to", interface, inbound);
    }
    text
}

/// A transaction after which nothing passes the tap.
pub(super) fn closed(interface: &Interface) -> String {
    let mut text = removal(&interface.tap);
    for map in ["guard", "to"] {
        add_chain(&mut text, map, interface, vec!["drop".to_owned()]);
    }
    text
}

/// A transaction after which nothing of the tap is left. What it removes it adds first: so it is
/// right whether or not it was there.
pub(super) fn removal(tap: &str) -> String {
    let mut text = format!("add table {TABLE}\n");
    for (map, hook, priority, side) in MAPS {
        let chain = format!("{map}_{tap}");
        let _ = write!(
            text,
            "add map {TABLE} {map} {{ type ifname : verdict; }}
add chain {TABLE} {map} {{ type filter hook {hook} priority {priority}; policy accept; }}
flush chain {TABLE} {map}
add rule {TABLE} {map} {side} vmap @{map}
add chain {TABLE} {chain}
add element {TABLE} {map} {{ \"{tap}\" : jump {chain} }}
delete element {TABLE} {map} {{ \"{tap}\" }}
flush chain {TABLE} {chain}
delete chain {TABLE} {chain}
"
        );
    }
    text
}

fn add_chain(text: &mut String, map: &str, interface: &Interface, rules: Vec<String>) {
    let tap = &interface.tap;
    let chain = format!("{map}_{tap}");
    let _ = writeln!(text, "add chain {TABLE} {chain}");
    for rule in rules {
        let _ = writeln!(text, "add rule {TABLE} {chain} {rule}");
    }
    let _ = writeln!(
        text,
        "add element {TABLE} {map} {{ \"{tap}\" : jump {chain} }}"
    );
}

/// Drops what is not from the guest.
fn guard(interface: &Interface) -> Vec<String> {
    let mac = &interface.mac;
    let mut rules = vec![
        format!("ether saddr != {mac} drop"),
        format!("meta protocol arp arp saddr ether != {mac} drop"),
    ];
    if interface.vlan.trunk.is_empty() {
        // A bridge that does not look at VLANs would let them through.
        rules.push("vlan id != 0 drop".to_owned());
        rules.push("ether type 8021ad drop".to_owned());
    }
    rules.extend(guard_addresses(&interface.spoof_guard));
    rules
}

fn guard_addresses(guard: &SpoofGuard) -> Vec<String> {
    if guard.addresses.is_empty() {
        return Vec::new();
    }
    let mut ipv4 = vec!["0.0.0.0".to_owned()];
    let mut ipv6 = vec!["::".to_owned(), "fe80::/10".to_owned()];
    let mut rules = vec!["meta protocol != { arp, ip, ip6, 0x8035 } drop".to_owned()];
    let mut targets = Vec::new();
    for address in &guard.addresses {
        match address {
            IpAddr::V4(address) => ipv4.push(address.to_string()),
            IpAddr::V6(address) => {
                ipv6.push(address.to_string());
                targets.push(format!("@th,64,128 {:#034x}", address.to_bits()));
            }
        }
    }
    let ipv4 = ipv4.join(", ");
    // Who asks for an address has none yet.
    rules.push("ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept".to_owned());
    rules.push("ip saddr 0.0.0.0 drop".to_owned());
    rules.push(format!(
        "meta protocol arp arp saddr ip != {{ {ipv4} }} drop"
    ));
    rules.push(format!("ip saddr != {{ {ipv4} }} drop"));
    rules.push(format!("ip6 saddr != {{ {} }} drop", ipv6.join(", ")));
    // The target of a neighbour advertisement (RFC 4861, section 4.4): a link-local address, or one
    // of its own.
    targets.push("@th,64,10 0x3fa".to_owned());
    let advert = "meta protocol ip6 icmpv6 type nd-neighbor-advert";
    rules.extend(
        targets
            .iter()
            .map(|target| format!("{advert} {target} accept")),
    );
    rules.push(format!("{advert} drop"));
    rules
}

/// What passes in a direction, in order.
fn rules(firewall: &Firewall, direction: Direction) -> Vec<String> {
    let mut rules = vec![NOT_IP.to_owned(), ERRORS.to_owned(), IPV6_WORKS.to_owned()];
    let dhcp = match direction {
        Direction::In => [(67, 68), (547, 546)],
        Direction::Out => [(68, 67), (546, 547)],
    };
    for ((from, to), protocol) in dhcp.iter().zip(["ip", "ip6"]) {
        let ports = format!("udp sport {from} udp dport {to}");
        rules.push(format!("meta protocol {protocol} {ports} accept"));
    }
    if firewall.stateful {
        rules.push("ct state established,related accept".to_owned());
    }
    let of = |rule: &&FirewallRule| rule.direction == direction;
    let denied = firewall.deny.iter().filter(of);
    rules.extend(denied.map(|rule| matching(rule, "drop")));
    let allowed = firewall.allow.iter().filter(of);
    rules.extend(allowed.map(|rule| matching(rule, "accept")));
    rules.push(match firewall.policy(direction) {
        Policy::Allow => "accept".to_owned(),
        Policy::Deny => "drop".to_owned(),
    });
    rules
}

fn matching(rule: &FirewallRule, verdict: &str) -> String {
    let mut words = Vec::new();
    words.extend(
        rule.remote
            .map(|remote| remote_match(remote, rule.direction)),
    );
    let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
    let ports = ports.join(", ");
    let protocol = match rule.protocol {
        Protocol::Any => String::new(),
        Protocol::Icmp => "meta l4proto { icmp, ipv6-icmp }".to_owned(),
        Protocol::Tcp if ports.is_empty() => "meta l4proto tcp".to_owned(),
        Protocol::Udp if ports.is_empty() => "meta l4proto udp".to_owned(),
        Protocol::Tcp => format!("tcp dport {{ {ports} }}"),
        Protocol::Udp => format!("udp dport {{ {ports} }}"),
    };
    words.push(protocol);
    words.push(verdict.to_owned());
    words.retain(|part| !part.is_empty());
    words.join(" ")
}

fn remote_match(remote: Cidr, direction: Direction) -> String {
    let family = if remote.is_ipv4() { "ip" } else { "ip6" };
    let end = match direction {
        Direction::In => "saddr",
        Direction::Out => "daddr",
    };
    format!("{family} {end} {remote}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn interface(extra: &serde_json::Value) -> Interface {
        let mut interface = json!({ "id": "net0", "network": "lan", "mac": "52:54:00:00:00:01",
            "tap": "ptxn0" });
        for (key, value) in extra.as_object().unwrap() {
            interface[key] = value.clone();
        }
        serde_json::from_value(interface).unwrap()
    }

    /// The rules of a chain, in order.
    fn chain(text: &str, name: &str) -> Vec<String> {
        let start = format!("add rule bridge pindah {name} ");
        let rules = text.lines().filter_map(|line| line.strip_prefix(&start));
        rules.map(str::to_owned).collect()
    }

    #[test]
    fn guest_speaks_from_its_mac_address_unless_its_guard_is_off() {
        let text = ruleset(&interface(&json!({})));
        assert_eq!(
            chain(&text, "guard_ptxn0"),
            [
                "ether saddr != 52:54:00:00:00:01 drop",
                "meta protocol arp arp saddr ether != 52:54:00:00:00:01 drop",
                "vlan id != 0 drop",
                "ether type 8021ad drop",
            ]
        );
        assert!(
            text.ends_with("add element bridge pindah guard { \"ptxn0\" : jump guard_ptxn0 }\n")
        );
        let trunk = ruleset(&interface(&json!({ "vlan": { "trunk": ["10-20"] } })));
        assert!(!chain(&trunk, "guard_ptxn0").contains(&"vlan id != 0 drop".to_owned()));
        let off = interface(&json!({ "spoof_guard": { "enabled": false } }));
        assert_eq!(ruleset(&off), removal("ptxn0"));
    }

    #[test]
    fn guest_with_addresses_speaks_for_these_only() {
        let addresses = json!(["10.0.0.5", "fd00::5"]);
        let interface = interface(&json!({ "spoof_guard": { "addresses": addresses } }));
        let rules = chain(&ruleset(&interface), "guard_ptxn0").join("\n");
        for expected in [
            "meta protocol arp arp saddr ip != { 0.0.0.0, 10.0.0.5 } drop",
            "ip saddr != { 0.0.0.0, 10.0.0.5 } drop",
            "ip6 saddr != { ::, fe80::/10, fd00::5 } drop",
            "nd-neighbor-advert @th,64,128 0xfd000000000000000000000000000005 accept",
            "nd-neighbor-advert drop",
        ] {
            assert!(rules.contains(expected), "{rules}");
        }
    }

    #[test]
    fn denied_is_dropped_before_allowed_passes_and_the_policy_is_last() {
        let firewall = Firewall {
            deny: vec!["in:tcp:22@10.0.0.0/8".parse().unwrap()],
            allow: vec![
                "in:tcp:80,8000-8100".parse().unwrap(),
                "in:icmp".parse().unwrap(),
                "in:any@fd00::/8".parse().unwrap(),
            ],
            outbound: Some(Policy::Deny),
            ..Firewall::default()
        };
        let firewall = serde_json::to_value(firewall).unwrap();
        let text = ruleset(&interface(&json!({ "firewall": firewall })));
        let inbound = chain(&text, "to_ptxn0");
        let start = inbound.iter().position(|rule| rule.starts_with("ct state"));
        assert_eq!(
            inbound[start.unwrap()..],
            [
                "ct state established,related accept",
                "ip saddr 10.0.0.0/8 tcp dport { 22 } drop",
                "tcp dport { 80, 8000-8100 } accept",
                "meta l4proto { icmp, ipv6-icmp } accept",
                "ip6 saddr fd00::/8 accept",
                "drop",
            ]
        );
        let outbound = chain(&text, "from_ptxn0");
        assert_eq!(outbound.last().unwrap(), "drop");
        assert!(outbound.contains(&"meta protocol ip udp sport 68 udp dport 67 accept".to_owned()));
    }

    #[test]
    fn firewall_without_state_asks_for_no_tracking() {
        let firewall = json!({ "stateful": false, "inbound": "deny", "deny": [], "allow": [] });
        let text = ruleset(&interface(&json!({ "firewall": firewall })));
        assert!(!text.contains("ct state"), "{text}");
        assert_eq!(chain(&text, "to_ptxn0").last().unwrap(), "drop");
        assert_eq!(chain(&text, "from_ptxn0").last().unwrap(), "accept");
    }
}
