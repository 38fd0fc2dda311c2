//! Names of networks and of the host's interfaces: what fits the kernel and is safe in a path.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Invalid, is_label};

/// Longest name of a network: the bridge that is made for it has a prefix of three characters,
/// and the kernel takes 15.
const NETWORK_MAX: usize = 12;
/// Longest name of an interface (Linux `IFNAMSIZ`, without the end).
const LINK_MAX: usize = 15;

/// A network's name: a label, unique in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "lan", pattern = "^[a-z]([-a-z0-9]{0,10}[a-z0-9])?$")]
pub struct NetworkName(String);

impl NetworkName {
    /// That of each node's own network.
    pub fn of_node() -> Self {
        Self("node".to_owned())
    }

    /// Whether it is that of each node's own network.
    pub fn is_of_node(&self) -> bool {
        self.0 == "node"
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for NetworkName {
    fn default() -> Self {
        Self::of_node()
    }
}

impl TryFrom<String> for NetworkName {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if is_label(&text) && text.len() <= NETWORK_MAX {
            return Ok(Self(text));
        }
        let must = "must be 1 to 12 lower-case letters, digits and hyphens, from a letter on";
        Err(Invalid::text("name of a network", &text, must))
    }
}

impl From<NetworkName> for String {
    fn from(name: NetworkName) -> Self {
        name.0
    }
}

impl std::fmt::Display for NetworkName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(&self.0)
    }
}

/// Name of an interface of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "enp3s0", pattern = "^[A-Za-z0-9][-_.A-Za-z0-9]{0,14}$")]
pub struct LinkName(String);

impl LinkName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LinkName {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts && text.len() <= LINK_MAX && text.chars().all(valid) {
            return Ok(Self(text));
        }
        let must = "must be 1 to 15 letters, digits and -_., from a letter or digit on";
        Err(Invalid::text("name of an interface", &text, must))
    }
}

impl From<LinkName> for String {
    fn from(name: LinkName) -> Self {
        name.0
    }
}

impl std::fmt::Display for LinkName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}
