//! What the installer has to know: from the answer file or from the screens, checked once.
//!
//! The file is TOML; `image/installer/answers.toml` has everything that it may say.

mod cluster;
mod disk;
mod end;
mod file;
mod mistake;
mod names;
mod network;
mod root;
mod size;

use std::net::IpAddr;
use std::path::Path;

pub use cluster::Cluster;
pub(crate) use cluster::{join_token, node_address};
pub use disk::{DiskWish, Pick};
pub use end::End;
pub use mistake::Mistake;
pub(crate) use names::{HOST_NAME_MUST, is_host_name, zone, zone_is_in};
pub use network::{Addressing, Network, Nic};
pub(crate) use network::{address, check_gateway, ip, name_servers, vlan};
pub use root::Root;
pub(crate) use root::{password as hash, ssh_key};

use file::AnswerFile;
use mistake::Mistakes;

/// Where a system keeps its time zones.
pub const ZONES: &str = "/usr/share/zoneinfo";

/// All answers, valid each for itself and together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The machine's name: one label in lower case.
    pub host_name: String,
    /// A time zone by its name in the tz database.
    pub time_zone: String,
    /// Which disk.
    pub disk: DiskWish,
    /// How the machine is reached.
    pub network: Network,
    /// Who may log in.
    pub root: Root,
    /// What it becomes part of.
    pub cluster: Cluster,
    /// What happens when all is done.
    pub end: End,
}

impl Answers {
    /// Reads an answer file's text. Time zones are looked up in `zones` if that has any.
    ///
    /// # Errors
    /// All mistakes that were found, in the order of the file.
    pub fn parse(text: &str, zones: &Path) -> Result<Self, Vec<Mistake>> {
        let file = AnswerFile::parse(text).map_err(|mistake| vec![mistake])?;
        let mut mistakes = Mistakes::new(text);
        let answers = file.validate(zones, &mut mistakes);
        mistakes.into_result().map(|()| answers)
    }

    /// The machine's own address, if the answers say it.
    pub fn own_address(&self) -> Option<IpAddr> {
        match self.network.addressing {
            Addressing::Dhcp => None,
            Addressing::Static { address, .. } => Some(address),
        }
    }

    /// Reads an answer file.
    ///
    /// # Errors
    /// One line a mistake, with the file's name, line and column.
    pub fn load(path: &Path, zones: &Path) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, zones).map_err(|mistakes| {
            let list = list(&path.display(), &mistakes);
            anyhow::anyhow!("{} cannot be used:\n{list}", path.display())
        })
    }
}

/// One line a mistake, each with `source` (a file or a URL), line and column.
pub fn list(source: &impl std::fmt::Display, mistakes: &[Mistake]) -> String {
    mistake::list(source, mistakes)
}

#[cfg(test)]
mod tests;
