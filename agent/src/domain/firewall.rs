//! What may come to a guest's interface and go from it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Cidr, Invalid};

/// Most rules of an interface.
const RULES_MAX: usize = 256;
/// Most ranges of ports in a rule.
const PORTS_MAX: usize = 64;

/// An interface's firewall. What is denied is dropped, else what is allowed passes, else the
/// direction's policy decides. ARP, IPv6's neighbour discovery, DHCP and the errors of ICMP pass
/// always.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Firewall {
    /// Answers to what has passed pass too. Needs connection tracking on bridges in the node's kernel.
    pub stateful: bool,
    /// What becomes of the rest that comes to the guest; absent: it is denied if something is
    /// allowed, else it passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound: Option<Policy>,
    /// What becomes of the rest that comes from the guest; absent: as with `inbound`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound: Option<Policy>,
    /// What is dropped.
    pub deny: Vec<FirewallRule>,
    /// What passes.
    pub allow: Vec<FirewallRule>,
}

impl Default for Firewall {
    fn default() -> Self {
        Self {
            stateful: true,
            inbound: None,
            outbound: None,
            deny: Vec::new(),
            allow: Vec::new(),
        }
    }
}

/// What becomes of what no rule names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
}

/// A direction, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the guest.
    In,
    /// From the guest.
    Out,
}

/// A protocol over IP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// All of them.
    #[default]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FirewallRule {
    /// To or from the guest.
    pub direction: Direction,
    /// Which protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Destination ports of TCP or UDP; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, example = json!(["80", "8000-8100"]))]
    pub ports: Vec<PortRange>,
    /// Addresses at the other end; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.0.0.0/8")]
    pub remote: Option<Cidr>,
}

/// Ports in a row, as text: `80` or `8000-8100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl Firewall {
    /// Whether it lets everything pass.
    pub fn is_open(&self) -> bool {
        let drops = |direction| self.policy(direction) == Policy::Deny;
        self.deny.is_empty() && !drops(Direction::In) && !drops(Direction::Out)
    }

    /// What becomes of what no rule names.
    pub fn policy(&self, direction: Direction) -> Policy {
        let said = match direction {
            Direction::In => self.inbound,
            Direction::Out => self.outbound,
        };
        let lists = self.allow.iter().any(|rule| rule.direction == direction);
        said.unwrap_or(if lists { Policy::Deny } else { Policy::Allow })
    }

    /// Refuses what cannot be.
    pub(super) fn check(&self, field: &str) -> Result<(), Invalid> {
        for (name, rules) in [("deny", &self.deny), ("allow", &self.allow)] {
            let field = format!("{field}.{name}");
            if rules.len() > RULES_MAX {
                let must = format!("must be at most {RULES_MAX} rules");
                return Err(Invalid::number(field, rules.len(), must));
            }
            for rule in rules {
                rule.check(&field)?;
            }
        }
        Ok(())
    }
}

impl FirewallRule {
    fn check(&self, field: &str) -> Result<(), Invalid> {
        let refuse = |must: &str| Err(Invalid::text(field, &self.to_string(), must));
        let has_ports = matches!(self.protocol, Protocol::Tcp | Protocol::Udp);
        if !self.ports.is_empty() && !has_ports {
            return refuse("must be tcp or udp to have ports");
        }
        if self.ports.len() > PORTS_MAX {
            return refuse("must have at most 64 ranges of ports");
        }
        let mut ports = self.ports.clone();
        ports.sort_by_key(|range| range.first);
        if ports.windows(2).any(|pair| pair[0].last >= pair[1].first) {
            return refuse("must name each port once");
        }
        Ok(())
    }
}

impl TryFrom<String> for PortRange {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(Self { first, last }),
            _ => {
                let must = "must be a port, 1 to 65535, or a range, as in 8000-8100";
                Err(Invalid::text("port", &text, must))
            }
        }
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last {
            write!(formatter, "{}", self.first)
        } else {
            write!(formatter, "{}-{}", self.first, self.last)
        }
    }
}

/// As a person writes it: `in:tcp:80,443@10.0.0.0/8`, with less of it `out:udp` or `in`.
impl std::str::FromStr for FirewallRule {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (left, remote) = match text.split_once('@') {
            Some((left, remote)) => (left, Some(Cidr::try_from(remote.to_owned())?)),
            None => (text, None),
        };
        let mut words = left.split(':');
        let direction = match words.next() {
            Some("in") => Some(Direction::In),
            Some("out") => Some(Direction::Out),
            _ => None,
        };
        let protocol = match words.next() {
            None | Some("any") => Some(Protocol::Any),
            Some("tcp") => Some(Protocol::Tcp),
            Some("udp") => Some(Protocol::Udp),
            Some("icmp") => Some(Protocol::Icmp),
            Some(_) => None,
        };
        let ports = words.next();
        let (Some(direction), Some(protocol), None) = (direction, protocol, words.next()) else {
            let must = "must be (in|out)[:(tcp|udp|icmp|any)[:PORTS]][@ADDRESSES], as in \
                        in:tcp:80,443@10.0.0.0/8";
            return Err(Invalid::text("rule", text, must));
        };
        let ports = ports.into_iter().flat_map(|ports| ports.split(','));
        let ports: Result<_, _> = ports
            .map(|port| PortRange::try_from(port.to_owned()))
            .collect();
        let rule = Self {
            direction,
            protocol,
            ports: ports?,
            remote,
        };
        rule.check("rule")?;
        Ok(rule)
    }
}

impl std::fmt::Display for FirewallRule {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = match self.direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        let protocol = match self.protocol {
            Protocol::Any => "any",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
        };
        write!(formatter, "{direction}:{protocol}")?;
        let ports: Vec<String> = self.ports.iter().map(ToString::to_string).collect();
        if !ports.is_empty() {
            write!(formatter, ":{}", ports.join(","))?;
        }
        match &self.remote {
            Some(remote) => write!(formatter, "@{remote}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_is_read_as_it_is_shown() {
        for text in [
            "in:tcp:80,443,8000-8100@10.0.0.0/8",
            "out:udp:53@fd00::/8",
            "in:icmp",
            "out:any@192.168.1.1/32",
        ] {
            let rule: FirewallRule = text.parse().unwrap();
            assert_eq!(rule.to_string(), text);
            let json = serde_json::to_string(&rule).unwrap();
            assert_eq!(serde_json::from_str::<FirewallRule>(&json).unwrap(), rule);
        }
        let all: FirewallRule = "in".parse().unwrap();
        assert_eq!(all.to_string(), "in:any");
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_reason() {
        for (text, expected) in [
            ("", "must be (in|out)"),
            ("tcp:80", "must be (in|out)"),
            ("in:sctp", "must be (in|out)"),
            ("in:tcp:80:81", "must be (in|out)"),
            ("in:tcp:0", "port = \"0\""),
            ("in:tcp:90-80", "port = \"90-80\""),
            ("in:tcp:80,70-90", "must name each port once"),
            ("in:icmp:8", "must be tcp or udp to have ports"),
            ("in:tcp:80@10.0.0.1/8", "must be a range's first address"),
            ("in:tcp:80@; flush ruleset", "address range"),
        ] {
            let message = text.parse::<FirewallRule>().unwrap_err().to_string();
            assert!(message.contains(expected), "{text} gives {message}");
        }
    }

    #[test]
    fn direction_in_which_something_is_allowed_denies_the_rest() {
        let mut firewall = Firewall::default();
        assert!(firewall.is_open());
        firewall.allow.push("in:tcp:80".parse().unwrap());
        assert_eq!(firewall.policy(Direction::In), Policy::Deny);
        assert_eq!(firewall.policy(Direction::Out), Policy::Allow);
        firewall.inbound = Some(Policy::Allow);
        assert!(firewall.is_open());
    }
}
