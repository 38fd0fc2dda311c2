//! The answer file as a person writes it.

use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::mistake::{Mistake, Mistakes};
use super::names::{self, HOST_NAME_MUST};
use super::{Answers, Cluster, DiskWish, End, Network, Root};

type Text = Option<Spanned<String>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AnswerFile {
    host_name: Text,
    time_zone: Text,
    end: Text,
    disk: DiskFile,
    network: NetworkFile,
    root: RootFile,
    cluster: Option<Spanned<ClusterFile>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DiskFile {
    pub path: Text,
    pub serial: Text,
    pub model: Text,
    pub min_size: Text,
    pub max_size: Text,
    pub pick: Text,
    pub erase: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NetworkFile {
    pub nic: Text,
    pub mac: Text,
    pub vlan: Option<Spanned<i64>>,
    pub address: Text,
    pub gateway: Text,
    pub dns: Vec<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RootFile {
    pub password: Text,
    pub password_hash: Text,
    pub ssh_keys: Vec<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClusterFile {
    pub mode: Text,
    pub address: Text,
    pub token: Text,
    pub witness: bool,
}

impl AnswerFile {
    pub(super) fn parse(text: &str) -> Result<Self, Mistake> {
        toml::from_str(text).map_err(|error| Mistake::of_toml(text, &error))
    }

    /// The answers, of which those that are in `mistakes` mean nothing.
    pub(super) fn validate(self, zones: &Path, mistakes: &mut Mistakes<'_>) -> Answers {
        if self.host_name.is_none() {
            let message = "host_name is missing: write, at the top, host_name = \"node1\" \
                           for example";
            mistakes.add(0..0, message);
        }
        let host_name = mistakes.read(self.host_name, |name| {
            let named = || format!("host_name = {name:?}: {HOST_NAME_MUST}");
            names::is_host_name(name)
                .then(|| name.to_owned())
                .ok_or_else(named)
        });
        let time_zone = mistakes.read(self.time_zone, |zone| names::zone(zones, zone));
        Answers {
            host_name: host_name.unwrap_or_default(),
            time_zone: time_zone.unwrap_or_else(|| "UTC".to_owned()),
            end: mistakes.read(self.end, End::parse).unwrap_or_default(),
            disk: DiskWish::validate(self.disk, mistakes),
            network: Network::validate(self.network, mistakes),
            root: Root::validate(self.root, mistakes),
            cluster: Cluster::validate(self.cluster, mistakes),
        }
    }
}
