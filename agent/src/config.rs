//! The node's configuration: a TOML file, checked once.
//!
//! Without a file everything has a default, and several agents share a machine if each has its own
//! state directory, listen address and bridge.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use crate::domain::{PoolName, Subnet};

/// Longest path of the state directory, in bytes: sockets below it must fit into a `sockaddr_un`.
const STATE_DIRECTORY_MAX: usize = 48;
/// Where the state is if nothing else is said.
pub const STATE_DIRECTORY: &str = "/var/lib/pindah";
/// Where the configuration is if nothing else is said.
pub const CONFIG_FILE: &str = "/etc/pindah/pindahd.toml";

/// Ports on which guests arrive if nothing else is said: what the image's firewall lets in.
pub const ARRIVAL_PORTS: RangeInclusive<u16> = 49152..=49215;

/// Why there is no valid configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Place and reason.
        message: String,
    },
    /// A value that cannot be.
    #[error("{field} = {value:?}: {must}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
        /// What it must be.
        must: &'static str,
    },
}

/// The file as a person writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// The node's name; absent: the host's name.
    pub node: Option<String>,
    /// Where the agent keeps everything; absent: [`STATE_DIRECTORY`].
    pub state_dir: Option<PathBuf>,
    /// Address and port of the API; absent: all addresses, port 7480.
    pub listen: Option<SocketAddr>,
    /// The VMM's program; absent: `pindah-vmm` beside the agent's own.
    pub vmm: Option<PathBuf>,
    /// The user that VMMs run as, a name or `UID:GID`; absent: `pindah-vmm` if there is such a user
    /// and the agent is root.
    pub vmm_user: Option<String>,
    /// How long a guest has for its shutdown, in seconds; absent: 60.
    pub stop_deadline_s: Option<u64>,
    /// Memory that guests may not take, in MiB; absent: 256.
    pub reserved_memory_mib: Option<u64>,
    /// The pool of disks that name none; absent: `local`.
    pub default_pool: Option<String>,
    /// How often guests and the node are measured, in milliseconds, at least 100; absent: 10000.
    /// For tests.
    pub metrics_interval_ms: Option<u64>,
    /// The node's own network for guests.
    pub network: NetworkFile,
    /// How guests move between nodes.
    pub migration: MigrationFile,
}

/// The `[migration]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationFile {
    /// This node's address in the network that guests move over; absent: that by which other nodes
    /// find it.
    pub address: Option<IpAddr>,
    /// How many guests may leave at a time, 1 to 16; absent: 1.
    pub at_once: Option<usize>,
    /// Ports on which guests arrive, `FIRST-LAST`; absent: [`ARRIVAL_PORTS`].
    pub ports: Option<String>,
}

/// The `[network]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkFile {
    /// Whether there is one; absent: yes.
    pub enabled: Option<bool>,
    /// The bridge's name; absent: `pindah0`.
    pub bridge: Option<String>,
    /// The bridge's address with the prefix length, 8 to 29; absent: `10.87.0.1/22`.
    pub address: Option<String>,
    /// Whether guests reach what the host reaches, by NAT; absent: yes.
    pub nat: Option<bool>,
    /// Whether the node gives addresses and resolves names; absent: yes.
    pub dhcp: Option<bool>,
}

/// The valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node's name.
    pub node: String,
    /// Where the agent keeps everything; absolute.
    pub state_dir: PathBuf,
    /// Address and port of the API.
    pub listen: SocketAddr,
    /// The VMM's program.
    pub vmm: PathBuf,
    /// The user that VMMs run as, if one is named.
    pub vmm_user: Option<String>,
    /// How long a guest has for its shutdown.
    pub stop_deadline: Duration,
    /// Memory that guests may not take, in MiB.
    pub reserved_memory_mib: u64,
    /// The pool of disks that name none.
    pub default_pool: PoolName,
    /// How often guests and the node are measured.
    pub metrics_interval: Duration,
    /// The node's own network for guests, if there is one.
    pub network: Option<NetworkConfig>,
    /// Where guests arrive, if not where other nodes find this one.
    pub migration_address: Option<IpAddr>,
    /// How many guests may leave at a time.
    pub migrations_at_once: usize,
    /// Ports on which guests arrive, one each.
    pub arrival_ports: RangeInclusive<u16>,
}

/// The node's own network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The bridge's name.
    pub bridge: String,
    /// The bridge's address, and the network that it is in.
    pub subnet: Subnet,
    /// NAT.
    pub nat: bool,
    /// DHCP and DNS.
    pub dhcp: bool,
}

impl ConfigFile {
    /// Reads `path`.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Parse`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })
    }

    /// Checks every value and fills in what is absent. `host_name` is the host's name, `program`
    /// the agent's own path.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn validate(self, host_name: &str, program: &Path) -> Result<Config, ConfigError> {
        let state_dir = self.state_dir.unwrap_or_else(|| STATE_DIRECTORY.into());
        let fits = state_dir.as_os_str().len() <= STATE_DIRECTORY_MAX;
        if !(state_dir.is_absolute() && fits) {
            return Err(ConfigError::Value {
                field: "state_dir",
                value: state_dir.display().to_string(),
                must: "must be an absolute path of at most 48 bytes",
            });
        }
        let listen = self.listen.unwrap_or_else(|| ([0, 0, 0, 0], 7480).into());
        let vmm = self
            .vmm
            .unwrap_or_else(|| program.with_file_name("pindah-vmm"));
        Ok(Config {
            node: node_name(self.node.as_deref().unwrap_or(host_name))?,
            state_dir,
            listen,
            vmm,
            vmm_user: self.vmm_user,
            stop_deadline: Duration::from_secs(self.stop_deadline_s.unwrap_or(60)),
            reserved_memory_mib: self.reserved_memory_mib.unwrap_or(256),
            default_pool: default_pool(self.default_pool)?,
            metrics_interval: metrics_interval(self.metrics_interval_ms)?,
            network: self.network.validate()?,
            migration_address: self.migration.address,
            migrations_at_once: at_once(self.migration.at_once)?,
            arrival_ports: arrival_ports(self.migration.ports)?,
        })
    }
}

fn node_name(name: &str) -> Result<String, ConfigError> {
    let name = name.split('.').next().unwrap_or_default();
    if crate::domain::is_label(name) {
        Ok(name.to_owned())
    } else {
        Err(ConfigError::Value {
            field: "node",
            value: name.to_owned(),
            must: "must be 1 to 63 lower-case letters, digits and hyphens, from a letter on",
        })
    }
}

fn at_once(number: Option<usize>) -> Result<usize, ConfigError> {
    match number {
        None => Ok(1),
        Some(number @ 1..=16) => Ok(number),
        Some(number) => Err(ConfigError::Value {
            field: "migration.at_once",
            value: number.to_string(),
            must: "must be 1 to 16",
        }),
    }
}

fn arrival_ports(text: Option<String>) -> Result<RangeInclusive<u16>, ConfigError> {
    let Some(text) = text else {
        return Ok(ARRIVAL_PORTS);
    };
    let ends = text.split_once('-');
    let ends = ends.and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match ends {
        Some((first, last)) if 0 < first && first <= last => Ok(first..=last),
        _ => Err(ConfigError::Value {
            field: "migration.ports",
            value: text,
            must: "must be two ports, the first not above the second, as \"49152-49215\"",
        }),
    }
}

fn default_pool(name: Option<String>) -> Result<PoolName, ConfigError> {
    let Some(name) = name else {
        return Ok(PoolName::local());
    };
    PoolName::try_from(name.clone()).map_err(|_| ConfigError::Value {
        field: "default_pool",
        value: name,
        must: "must be a pool's name: lower-case letters, digits and hyphens, from a letter on",
    })
}

fn metrics_interval(interval_ms: Option<u64>) -> Result<Duration, ConfigError> {
    match interval_ms {
        None => Ok(crate::metrics::INTERVAL),
        Some(interval_ms @ 100..=3_600_000) => Ok(Duration::from_millis(interval_ms)),
        Some(interval_ms) => Err(ConfigError::Value {
            field: "metrics_interval_ms",
            value: interval_ms.to_string(),
            must: "must be 100 to 3600000",
        }),
    }
}

impl NetworkFile {
    fn validate(self) -> Result<Option<NetworkConfig>, ConfigError> {
        if self.enabled == Some(false) {
            return Ok(None);
        }
        let bridge = self.bridge.unwrap_or_else(|| "pindah0".to_owned());
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if bridge.is_empty() || bridge.len() > 15 || !bridge.chars().all(valid) {
            return Err(ConfigError::Value {
                field: "network.bridge",
                value: bridge,
                must: "must be 1 to 15 letters, digits, hyphens and underscores",
            });
        }
        let text = self.address.unwrap_or_else(|| "10.87.0.1/22".to_owned());
        let subnet = Subnet::parse(&text).ok_or(ConfigError::Value {
            field: "network.address",
            value: text,
            must: Subnet::MUST,
        })?;
        Ok(Some(NetworkConfig {
            bridge,
            subnet,
            nat: self.nat.unwrap_or(true),
            dhcp: self.dhcp.unwrap_or(true),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(toml: &str) -> Result<Config, String> {
        let file: ConfigFile = toml::from_str(toml).map_err(|error| error.to_string())?;
        file.validate("host.example.org", Path::new("/usr/bin/pindahd"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn migrations_have_a_network_and_a_number_of_their_own() {
        let config = parse("").unwrap();
        assert_eq!(
            (config.migration_address, config.migrations_at_once),
            (None, 1)
        );
        let config = parse("[migration]\naddress = '10.0.1.11'\nat_once = 3").unwrap();
        assert_eq!(config.migration_address, Some([10, 0, 1, 11].into()));
        assert_eq!(config.migrations_at_once, 3);
        for (at_once, error) in [(0, "1 to 16"), (17, "1 to 16")] {
            let refused = parse(&format!("[migration]\nat_once = {at_once}")).unwrap_err();
            assert!(refused.contains(error), "{refused}");
        }
        assert!(parse("[migration]\naddress = 'lan'").is_err());
    }

    #[test]
    fn guests_arrive_on_a_range_of_ports() {
        assert_eq!(parse("").unwrap().arrival_ports, 49152..=49215);
        let config = parse("[migration]\nports = '5000-5000'").unwrap();
        assert_eq!(config.arrival_ports, 5000..=5000);
        for ports in ["5000", "5001-5000", "0-5000", "1-65536", "a-b"] {
            let refused = parse(&format!("[migration]\nports = '{ports}'")).unwrap_err();
            assert!(refused.contains("migration.ports"), "{refused}");
        }
    }

    #[test]
    fn empty_file_gives_a_node_that_works() {
        let config = parse("").unwrap();
        assert_eq!(config.node, "host");
        assert_eq!(config.vmm, Path::new("/usr/bin/pindah-vmm"));
        let network = config.network.unwrap();
        assert_eq!(network.bridge, "pindah0");
        assert_eq!(network.subnet.to_string(), "10.87.0.1/22");
    }

    #[test]
    fn wrong_values_are_refused_with_field_and_reason() {
        for (toml, expected) in [
            ("nod = 'x'", "unknown field `nod`"),
            ("node = 'Web_1'", "node = \"Web_1\": must be 1 to 63"),
            ("state_dir = 'x'", "must be an absolute path"),
            ("network.bridge = 'a/b'", "network.bridge = \"a/b\""),
            ("network.address = '10.0.0.0/24'", "must be a host's IPv4"),
            ("network.address = '10.0.0.1/30'", "prefix of 8 to 29"),
            ("metrics_interval_ms = 0", "must be 100 to 3600000"),
            ("listen = 'here'", "invalid socket address"),
        ] {
            let message = parse(toml).unwrap_err();
            assert!(message.contains(expected), "{toml} gives {message}");
        }
    }
}
