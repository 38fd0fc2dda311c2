//! A storage pool's record: what it is, never how it is doing.

use std::path::{Path, PathBuf};

use pindah_vmm_api::DiskFormat;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Invalid, is_label};
use crate::store::Record;

/// The unit that a volume group gives space in, in MiB: LVM's default extent.
pub(crate) const EXTENT_MIB: u64 = 4;

/// A pool's name: a label, unique in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "nas", pattern = "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")]
pub struct PoolName(String);

impl PoolName {
    /// The pool that every node has, of its own.
    pub fn local() -> Self {
        Self("local".to_owned())
    }

    /// Whether it is that one.
    pub fn is_local(&self) -> bool {
        self.0 == "local"
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PoolName {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if is_label(&text) {
            return Ok(Self(text));
        }
        let must = "must be 1 to 63 lower-case letters, digits and hyphens, from a letter on";
        Err(Invalid::text("pool", &text, must))
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> Self {
        name.0
    }
}

impl std::fmt::Display for PoolName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(&self.0)
    }
}

/// Kinds of pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    /// A directory that is there already.
    Dir,
    /// What an NFS server exports; each node mounts it.
    Nfs,
    /// A LUN of an iSCSI target, with an LVM volume group on it; each node logs in.
    Iscsi,
}

impl std::fmt::Display for PoolKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Dir => "dir",
            Self::Nfs => "nfs",
            Self::Iscsi => "iscsi",
        })
    }
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRecord {
    /// Tells it from one that had its name before: written into its directory, too.
    pub id: Uuid,
    /// Its name.
    pub name: PoolName,
    /// Where it is.
    pub source: PoolSource,
    /// What the user in its source proves who he is by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_password: Option<Secret>,
    /// Somebody deletes it: nothing new goes there.
    #[serde(default)]
    pub deleting: bool,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
}

impl Record for PoolRecord {
    const KIND: &'static str = "pools";
    const SCHEMA: u32 = 1;
}

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("…")
    }
}

/// Where a pool is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PoolSource {
    /// In a directory.
    Dir {
        /// Which; the same path on every node.
        #[schema(value_type = String, example = "/srv/nas")]
        path: PathBuf,
        /// Whether that is one directory, or one on each node.
        shared: bool,
    },
    /// On an NFS server.
    Nfs {
        /// Its name or address.
        server: String,
        /// What it exports.
        export: String,
        /// Further options of nfs(5).
        #[serde(default)]
        options: String,
        /// Its files are images, which no node writes.
        #[serde(default)]
        read_only: bool,
        /// The protocol's version: 3 or 4; absent: 4.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u8>,
    },
    /// On a LUN of an iSCSI target.
    Iscsi {
        /// The target's portals, all to the same LUNs: names or addresses, and ports.
        #[schema(example = json!(["10.0.0.9:3260", "10.0.1.9:3260"]))]
        portals: Vec<String>,
        /// The target's name.
        #[schema(example = "iqn.2026-01.org.example:vm")]
        target: String,
        /// The LUN; once the pool is made it is always there.
        lun: Option<u16>,
        /// The LVM volume group on it.
        #[schema(example = "pindah-san")]
        volume_group: String,
        /// The user that nodes log in as by CHAP.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chap_user: Option<String>,
    },
}

impl PoolSource {
    /// Its kind.
    pub fn kind(&self) -> PoolKind {
        match self {
            Self::Dir { .. } => PoolKind::Dir,
            Self::Nfs { .. } => PoolKind::Nfs,
            Self::Iscsi { .. } => PoolKind::Iscsi,
        }
    }

    /// What it would share with another pool there, as a sentence's end; `None`: nothing.
    pub fn overlap(&self, other: &Self) -> Option<String> {
        match (self, other) {
            (Self::Dir { path, .. }, Self::Dir { path: taken, .. }) => {
                overlap(path, taken).then(|| taken.display().to_string())
            }
            (
                Self::Nfs { server, export, .. },
                Self::Nfs {
                    server: other,
                    export: taken,
                    ..
                },
            ) if server == other => {
                let both = overlap(Path::new(export), Path::new(taken));
                both.then(|| format!("{server}:{taken}"))
            }
            (
                Self::Iscsi {
                    target,
                    lun,
                    volume_group,
                    ..
                },
                Self::Iscsi {
                    target: other,
                    lun: taken,
                    volume_group: group,
                    ..
                },
            ) => {
                let same_lun = target == other && (lun.is_none() || lun == taken);
                let both = same_lun || volume_group == group;
                both.then(|| format!("volume group {group} of target {other}"))
            }
            _ => None,
        }
    }

    /// Whether all nodes have the same.
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Dir { shared, .. } => *shared,
            Self::Nfs { .. } | Self::Iscsi { .. } => true,
        }
    }

    /// Whether guests' disks can be kept there.
    pub fn holds_disks(&self) -> bool {
        !matches!(
            self,
            Self::Nfs {
                read_only: true,
                ..
            }
        )
    }

    /// Writes down the LUN that was found, if there is one.
    pub fn set_lun(&mut self, found: Option<u16>) {
        if let Self::Iscsi { lun, .. } = self {
            *lun = found;
        }
    }

    /// Size of a disk there of which `wanted_mib` are wanted, in MiB.
    pub fn disk_size_mib(&self, wanted_mib: u64) -> u64 {
        match self {
            Self::Iscsi { .. } => wanted_mib.next_multiple_of(EXTENT_MIB),
            Self::Dir { .. } | Self::Nfs { .. } => wanted_mib,
        }
    }

    /// The only format that disks there can have; `None`: any.
    pub fn disk_format(&self) -> Option<DiskFormat> {
        matches!(self, Self::Iscsi { .. }).then_some(DiskFormat::Raw)
    }
}

/// Whether one is in the other.
pub(crate) fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_overlap_where_one_is_in_the_other() {
        let nfs = |server: &str, export: &str| PoolSource::Nfs {
            server: server.to_owned(),
            export: export.to_owned(),
            options: String::new(),
            read_only: false,
            version: None,
        };
        let dir = |path: &str| PoolSource::Dir {
            path: path.into(),
            shared: true,
        };
        let iscsi = |target: &str, lun: Option<u16>, group: &str| PoolSource::Iscsi {
            portals: vec!["san:3260".to_owned()],
            target: target.to_owned(),
            lun,
            volume_group: group.to_owned(),
            chap_user: None,
        };
        assert!(dir("/a/b").overlap(&dir("/a")).is_some());
        assert!(dir("/a").overlap(&dir("/a/b")).is_some());
        assert!(dir("/a").overlap(&dir("/ab")).is_none());
        assert!(nfs("n", "/a").overlap(&nfs("n", "/a")).is_some());
        assert!(nfs("n", "/a").overlap(&nfs("m", "/a")).is_none());
        assert!(dir("/a").overlap(&nfs("n", "/a")).is_none());
        let taken = iscsi("iqn.a", Some(1), "a");
        assert!(iscsi("iqn.a", Some(1), "b").overlap(&taken).is_some());
        assert!(iscsi("iqn.a", None, "b").overlap(&taken).is_some());
        assert!(iscsi("iqn.a", Some(2), "b").overlap(&taken).is_none());
        assert!(iscsi("iqn.b", Some(1), "a").overlap(&taken).is_some());
    }

    #[test]
    fn record_of_an_earlier_version_is_a_pool_for_disks() {
        let text = r#"{ "id": "00000000-0000-0000-0000-000000000000", "name": "nas",
            "source": { "kind": "nfs", "server": "nas", "export": "/srv/vm" },
            "created_unix_ms": 7 }"#;
        let record: PoolRecord = serde_json::from_str(text).unwrap();
        assert!(record.source.holds_disks());
        assert_eq!(record.source.disk_format(), None);
    }

    #[test]
    fn secret_is_kept_and_not_shown() {
        let secret = Secret::from("swordfish".to_owned());
        assert_eq!(format!("{secret:?}"), "…");
        assert_eq!(serde_json::to_string(&secret).unwrap(), r#""swordfish""#);
    }
}
