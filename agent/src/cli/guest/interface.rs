//! `pindah guest interface list|set`, and the flags of an interface.

use clap::{Args, Subcommand};
use reqwest::{Method, header};

use super::{choice, path, segment};
use crate::api::{Data, GuestEdited, GuestView};
use crate::cli::output::{Output, table};
use crate::client::Client;
use crate::domain::{
    Direction, FirewallRule, Interface, InterfaceEdit, InterfaceSpec, NetworkName, Policy,
    RateLimit, Vlan, VlanRange,
};

/// A guest's network interfaces.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum InterfaceCommand {
    /// List a guest's interfaces.
    List {
        /// Name or UUID.
        guest: String,
    },
    /// Change an interface; a running guest gets it at once.
    Set(Box<SetArguments>),
}

/// What is to change.
#[derive(Debug, Args)]
pub(in crate::cli) struct SetArguments {
    /// Name or UUID.
    guest: String,
    /// Which interface: net0, …
    interface: String,
    #[command(flatten)]
    flags: InterfaceFlags,
}

/// What an interface has.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network interface")]
pub(super) struct InterfaceFlags {
    /// The network that it is connected to [default: node, the node's own].
    #[arg(long)]
    network: Option<String>,
    /// MAC address.
    #[arg(long)]
    mac: Option<String>,
    /// The VLAN of its untagged frames, 1 to 4094; none: what is untagged on the network.
    #[arg(long, value_name = "VLAN|none", value_parser = parse_vlan)]
    vlan: Option<Given<u16>>,
    /// VLANs that it has with their tags, as in 10,20-29; none: no others than --vlan.
    #[arg(long, value_name = "VLANS|none", value_parser = parse_trunk)]
    trunk: Option<Given<Vec<VlanRange>>>,
    /// How fast it may be, in bits a second: in and out alike as in 10M, or each as in 10M/2M or
    /// none/2M.
    #[arg(long, value_name = "RATE[/RATE]|none", value_parser = parse_rates)]
    rate_limit: Option<RateLimit>,
    /// Whether what is not from its own addresses is dropped [default: true].
    #[arg(long, value_name = "true|false")]
    spoof_guard: Option<bool>,
    /// An IP address that it has; with these it sends from no others. May be repeated.
    #[arg(long, value_name = "ADDRESS|none")]
    address: Vec<String>,
    /// What passes, as in in:tcp:80,443 or in:icmp@10.0.0.0/8: (in|out)[:(tcp|udp|icmp|any)[:PORTS]]
    /// [@ADDRESSES]. The rest in that direction is denied, unless --inbound or --outbound say
    /// otherwise. May be repeated.
    #[arg(long, value_name = "RULE|none")]
    allow: Vec<String>,
    /// What is dropped, even if it is allowed. May be repeated.
    #[arg(long, value_name = "RULE|none")]
    deny: Vec<String>,
    /// What becomes of the rest that comes in: allow, deny, or auto, which denies it if something is
    /// allowed.
    #[arg(long, value_name = "POLICY", value_parser = parse_policy)]
    inbound: Option<Given<Policy>>,
    /// What becomes of the rest that goes out.
    #[arg(long, value_name = "POLICY", value_parser = parse_policy)]
    outbound: Option<Given<Policy>>,
    /// Whether answers to what has passed pass too [default: true].
    #[arg(long, value_name = "true|false")]
    stateful: Option<bool>,
}

/// What a flag says of something that may be absent.
#[derive(Clone, Debug)]
pub(super) struct Given<T>(Option<T>);

fn parse_vlan(text: &str) -> Result<Given<u16>, String> {
    match text {
        "none" => Ok(Given(None)),
        text => {
            let id = text
                .parse()
                .map_err(|_| "must be 1 to 4094, or none".to_owned());
            Ok(Given(Some(id?)))
        }
    }
}

fn parse_trunk(text: &str) -> Result<Given<Vec<VlanRange>>, String> {
    if text == "none" {
        return Ok(Given(None));
    }
    let ranges = text
        .split(',')
        .map(|one| VlanRange::try_from(one.to_owned()));
    let ranges: Result<_, _> = ranges.collect();
    ranges
        .map(|ranges| Given(Some(ranges)))
        .map_err(|error| error.to_string())
}

fn parse_policy(text: &str) -> Result<Given<Policy>, String> {
    match text {
        "auto" => Ok(Given(None)),
        text => choice(text).map(|policy| Given(Some(policy))),
    }
}

fn parse_rates(text: &str) -> Result<RateLimit, String> {
    let (rx, tx) = text.split_once('/').unwrap_or((text, text));
    Ok(RateLimit {
        rx_kbit_per_s: parse_rate(rx)?,
        tx_kbit_per_s: parse_rate(tx)?,
    })
}

/// In kbit/s.
fn parse_rate(text: &str) -> Result<Option<u64>, String> {
    if text == "none" {
        return Ok(None);
    }
    let (number, kbit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1),
        Some((at, 'm' | 'M')) => (&text[..at], 1000),
        Some((at, 'g' | 'G')) => (&text[..at], 1_000_000),
        _ => return Err("must be a rate with its unit, as in 512K, 10M or 1G".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{number:?} is no whole number"))?;
    let rate = number.checked_mul(kbit).ok_or("is too large")?;
    Ok(Some(rate))
}

/// The values, or nothing if the only one is `none`.
fn list<T, E>(texts: &[String], parse: impl Fn(&str) -> Result<T, E>) -> Result<Option<Vec<T>>, E> {
    match texts {
        [] => Ok(None),
        [none] if none == "none" => Ok(Some(Vec::new())),
        texts => texts
            .iter()
            .map(|text| parse(text))
            .collect::<Result<_, _>>()
            .map(Some),
    }
}

impl InterfaceFlags {
    /// All flags.
    pub(super) const NAMES: [&str; 12] = [
        "network",
        "mac",
        "vlan",
        "trunk",
        "rate_limit",
        "spoof_guard",
        "address",
        "allow",
        "deny",
        "inbound",
        "outbound",
        "stateful",
    ];

    /// The interface with what is given.
    pub(super) fn apply(self, mut interface: InterfaceSpec) -> anyhow::Result<InterfaceSpec> {
        if let Some(network) = self.network {
            interface.network = NetworkName::try_from(network)?;
            if interface.network.is_of_node() {
                interface.vlan = Vlan::default();
            }
        }
        if let Some(mac) = self.mac {
            interface.mac = Some(mac);
        }
        if let Some(vlan) = self.vlan {
            interface.vlan.access = vlan.0;
        }
        if let Some(trunk) = self.trunk {
            interface.vlan.trunk = trunk.0.unwrap_or_default();
        }
        set(&mut interface.rate_limit, self.rate_limit);
        set(&mut interface.spoof_guard.enabled, self.spoof_guard);
        let addresses = list(&self.address, str::parse)?;
        set(&mut interface.spoof_guard.addresses, addresses);
        let firewall = &mut interface.firewall;
        set(
            &mut firewall.allow,
            list(&self.allow, str::parse::<FirewallRule>)?,
        );
        set(
            &mut firewall.deny,
            list(&self.deny, str::parse::<FirewallRule>)?,
        );
        set(&mut firewall.inbound, self.inbound.map(|policy| policy.0));
        set(&mut firewall.outbound, self.outbound.map(|policy| policy.0));
        set(&mut firewall.stateful, self.stateful);
        Ok(interface)
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// What must be sent so that `before` becomes `after`.
fn difference(before: &InterfaceSpec, after: InterfaceSpec) -> InterfaceEdit {
    fn changed<T: PartialEq>(before: &T, after: T) -> Option<T> {
        (*before != after).then_some(after)
    }
    InterfaceEdit {
        network: changed(&before.network, after.network),
        mac: changed(&before.mac, after.mac).flatten(),
        vlan: changed(&before.vlan, after.vlan),
        rate_limit: changed(&before.rate_limit, after.rate_limit),
        spoof_guard: changed(&before.spoof_guard, after.spoof_guard),
        firewall: changed(&before.firewall, after.firewall),
    }
}

impl InterfaceCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List { guest } => {
                let guest: GuestView = client.get(&path(&guest, "")?).await?;
                output.show(&guest.interfaces, |interfaces| {
                    let head = [
                        "NAME", "NETWORK", "MAC", "VLAN", "RATE", "GUARD", "FIREWALL",
                    ];
                    table(&head, interfaces.iter().map(row))
                })
            }
            Self::Set(arguments) => arguments.run(client, output).await,
        }
    }
}

impl SetArguments {
    async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let id = segment(&self.interface)?.to_owned();
        let (guest, etag) = client
            .get_tagged::<GuestView>(&path(&self.guest, "")?)
            .await?;
        let interface = guest.interfaces.iter().find(|interface| interface.id == id);
        let interface = interface
            .ok_or_else(|| anyhow::anyhow!("guest {} has no interface {id}", guest.name))?;
        let before = InterfaceSpec {
            network: interface.network.clone(),
            mac: Some(interface.mac.clone()),
            vlan: interface.vlan.clone(),
            rate_limit: interface.rate_limit,
            spoof_guard: interface.spoof_guard.clone(),
            firewall: interface.firewall.clone(),
        };
        let edit = difference(&before, self.flags.apply(before.clone())?);
        let path = path(&self.guest, &format!("/interfaces/{id}"))?;
        let request = client
            .request(Method::PATCH, &path)
            .header(header::IF_MATCH, etag)
            .json(&edit);
        let edited: Data<GuestEdited> = client.send(request).await?.json().await?;
        output.show(&edited.data.guest, |guest| {
            format!("{id} of {} is changed", guest.name)
        })
    }
}

fn row(interface: &Interface) -> Vec<String> {
    let guard = &interface.spoof_guard;
    let addresses: Vec<String> = guard.addresses.iter().map(ToString::to_string).collect();
    let guard = match (guard.enabled, addresses.is_empty()) {
        (false, _) => "off".to_owned(),
        (true, true) => "MAC".to_owned(),
        (true, false) => format!("MAC, {}", addresses.join(" ")),
    };
    vec![
        interface.id.clone(),
        interface.network.to_string(),
        interface.mac.clone(),
        interface.vlan.to_string(),
        interface.rate_limit.to_string(),
        guard,
        firewall(interface),
    ]
}

fn firewall(interface: &Interface) -> String {
    let firewall = &interface.firewall;
    if firewall.is_open() {
        return "open".to_owned();
    }
    let mut words: Vec<String> = Vec::new();
    words.extend(firewall.deny.iter().map(|rule| format!("deny {rule}")));
    words.extend(firewall.allow.iter().map(|rule| format!("allow {rule}")));
    for (name, direction) in [("in", Direction::In), ("out", Direction::Out)] {
        if firewall.policy(direction) == Policy::Deny {
            words.push(format!("else deny {name}"));
        }
    }
    if !firewall.stateful {
        words.push("stateless".to_owned());
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: InterfaceFlags,
    }

    fn apply(line: &str, to: InterfaceSpec) -> Result<InterfaceSpec, String> {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.flags.apply(to).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn flags_set_what_they_name_and_none_takes_it_away() {
        let line = "--network lan --vlan 20 --trunk 30,40-49 --rate-limit 10M/512K \
                    --allow in:tcp:80,443 --allow in:icmp --outbound deny --address 10.0.0.5";
        let set = apply(line, InterfaceSpec::default()).unwrap();
        assert_eq!(set.vlan.to_string(), "VLAN 20, 30,40-49 tagged");
        assert_eq!(set.rate_limit.to_string(), "10000 in, 512 kbit/s out");
        assert_eq!(set.firewall.allow.len(), 2);
        assert_eq!(set.firewall.outbound, Some(Policy::Deny));
        assert_eq!(difference(&set, set.clone()), InterfaceEdit::default());

        let line = "--vlan none --trunk none --rate-limit none --allow none --outbound auto \
                    --address none";
        let cleared = apply(line, set.clone()).unwrap();
        let network = set.network.clone();
        assert_eq!(
            cleared,
            InterfaceSpec {
                network,
                ..InterfaceSpec::default()
            }
        );
        let faster = apply("--rate-limit none/1G", set.clone()).unwrap();
        let edit = difference(&set, faster);
        assert_eq!(edit.rate_limit.unwrap().tx_kbit_per_s, Some(1_000_000));
        assert_eq!((edit.vlan, edit.firewall), (None, None));
    }

    #[test]
    fn wrong_flags_are_refused_with_the_reason() {
        for (line, expected) in [
            ("--vlan x", "must be 1 to 4094, or none"),
            ("--trunk 20-10", "must be a VLAN"),
            ("--rate-limit 10", "with its unit"),
            ("--rate-limit x0M", "no whole number"),
            ("--allow tcp:80", "must be (in|out)"),
            ("--deny in:tcp:99999", "port = \"99999\""),
            ("--address x", "invalid IP address"),
            ("--inbound maybe", "unknown variant"),
        ] {
            let message = apply(line, InterfaceSpec::default()).unwrap_err();
            assert!(message.contains(expected), "{line} gives {message}");
        }
    }
}
