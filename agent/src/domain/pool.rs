//! A storage pool's record: what it is, never how it is doing.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Invalid, is_label, nfs};
use crate::store::Record;

/// Longest path of a pool, in bytes.
const PATH_MAX: usize = 255;

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
}

impl std::fmt::Display for PoolKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Dir => "dir",
            Self::Nfs => "nfs",
        })
    }
}

/// A new pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// Its name: unique.
    pub name: PoolName,
    /// What it is.
    pub kind: PoolKind,
    /// `dir`: its directory on every node, absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "/srv/nas")]
    pub path: Option<PathBuf>,
    /// `dir`: the directory is the same one on all nodes, as on a NAS that is mounted there.
    #[serde(default)]
    pub shared: bool,
    /// `nfs`: the server's name or address. It must speak version 4.1 or newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10.0.0.9")]
    pub server: Option<String>,
    /// `nfs`: what it exports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/srv/vm")]
    pub export: Option<String>,
    /// `nfs`: mount options of nfs(5), separated by commas, beside those that are always set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "nconnect=4")]
    pub options: Option<String>,
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
    },
}

impl PoolSource {
    /// Its kind.
    pub fn kind(&self) -> PoolKind {
        match self {
            Self::Dir { .. } => PoolKind::Dir,
            Self::Nfs { .. } => PoolKind::Nfs,
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
            _ => None,
        }
    }

    /// Whether all nodes have the same.
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Dir { shared, .. } => *shared,
            Self::Nfs { .. } => true,
        }
    }
}

impl PoolSpec {
    /// The record: everything checked that can be without looking at a node.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn record(&self, id: Uuid, now_unix_ms: u64) -> Result<PoolRecord, Invalid> {
        self.refuse_foreign_fields()?;
        let source = match self.kind {
            PoolKind::Dir => PoolSource::Dir {
                path: directory(self.path.as_deref())?,
                shared: self.shared,
            },
            PoolKind::Nfs => PoolSource::Nfs {
                server: nfs::server(self.server.as_deref())?,
                export: nfs::export(self.export.as_deref())?,
                options: nfs::options(self.options.as_deref())?,
            },
        };
        Ok(PoolRecord {
            id,
            name: self.name.clone(),
            source,
            deleting: false,
            created_unix_ms: now_unix_ms,
        })
    }
}

impl PoolSpec {
    /// What another kind of pool would have.
    fn refuse_foreign_fields(&self) -> Result<(), Invalid> {
        let (dir, nfs) = (self.kind == PoolKind::Dir, self.kind == PoolKind::Nfs);
        let fields = [
            ("path", self.path.is_some(), dir),
            ("server", self.server.is_some(), nfs),
            ("export", self.export.is_some(), nfs),
            ("options", self.options.is_some(), nfs),
        ];
        let mut fields = fields.into_iter();
        match fields.find(|(_, given, taken)| *given && !taken) {
            None => Ok(()),
            Some((field, ..)) => {
                let must = "must be absent: pools of this kind have none";
                Err(Invalid::text(field, &self.kind.to_string(), must))
            }
        }
    }
}

/// Whether one is in the other.
pub(crate) fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// An absolute path without detours, to something that can hold files.
fn directory(path: Option<&Path>) -> Result<PathBuf, Invalid> {
    let Some(path) = path else {
        let must = "must say the directory of a pool of the kind dir";
        return Err(Invalid::number("path", "null", must));
    };
    let text = path.to_str().unwrap_or_default();
    let plain = |part: &Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let straight = path.components().all(|part| plain(&part));
    let printable = !text.is_empty() && !text.chars().any(char::is_control);
    let refuse = |must: &str| Err(Invalid::text("path", &path.display().to_string(), must));
    if !(path.is_absolute() && straight && printable && text.len() <= PATH_MAX) {
        return refuse("must be an absolute path of at most 255 bytes, without ..");
    }
    let system = ["/proc", "/sys", "/dev", "/etc", "/boot"];
    if path == Path::new("/") || system.iter().any(|one| path.starts_with(one)) {
        return refuse("must be a directory of its own, not the system's");
    }
    // Without double and trailing slashes.
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(spec: serde_json::Value) -> Result<PoolRecord, String> {
        let spec: PoolSpec = serde_json::from_value(spec).map_err(|error| error.to_string())?;
        let record = spec.record(Uuid::nil(), 7);
        record.map_err(|error| error.to_string())
    }

    #[test]
    fn directory_is_absolute_and_straight() {
        let spec = json!({ "name": "nas", "kind": "dir", "path": "/srv//nas/", "shared": true });
        let source = PoolSource::Dir {
            path: "/srv/nas".into(),
            shared: true,
        };
        assert_eq!(record(spec).unwrap().source, source);
        for (path, expected) in [
            (json!(null), "path = null: must say"),
            (json!(""), "absolute path"),
            (json!("srv/nas"), "absolute path"),
            (json!("/srv/../etc"), "without .."),
            (json!("/srv/\u{1b}[2J"), "absolute path"),
            (json!(format!("/{}", "a".repeat(300))), "255 bytes"),
            (json!("/"), "not the system's"),
            (json!("/etc/pool"), "not the system's"),
            (json!("/dev/shm"), "not the system's"),
        ] {
            let spec = json!({ "name": "nas", "kind": "dir", "path": path });
            let message = record(spec).unwrap_err();
            assert!(message.contains(expected), "{path} gives {message}");
        }
    }

    #[test]
    fn kind_has_its_own_fields_and_no_others() {
        let nfs = json!({ "name": "nas", "kind": "nfs", "server": "nas", "export": "/srv/vm" });
        let source = PoolSource::Nfs {
            server: "nas".to_owned(),
            export: "/srv/vm".to_owned(),
            options: String::new(),
        };
        assert!(source.is_shared());
        assert_eq!(record(nfs.clone()).unwrap().source, source);
        for (field, value, expected) in [
            ("path", json!("/srv"), "path = \"nfs\": must be absent"),
            ("server", json!(null), "server = null: must say the server"),
            ("export", json!(null), "export = null: must say the export"),
            ("options", json!("soft"), "options = \"soft\""),
        ] {
            let mut spec = nfs.clone();
            spec[field] = value;
            let message = record(spec).unwrap_err();
            assert!(message.contains(expected), "{field} gives {message}");
        }
    }

    #[test]
    fn pools_overlap_where_one_is_in_the_other() {
        let nfs = |server: &str, export: &str| PoolSource::Nfs {
            server: server.to_owned(),
            export: export.to_owned(),
            options: String::new(),
        };
        let dir = |path: &str| PoolSource::Dir {
            path: path.into(),
            shared: true,
        };
        assert!(dir("/a/b").overlap(&dir("/a")).is_some());
        assert!(dir("/a").overlap(&dir("/a/b")).is_some());
        assert!(dir("/a").overlap(&dir("/ab")).is_none());
        assert!(nfs("n", "/a").overlap(&nfs("n", "/a")).is_some());
        assert!(nfs("n", "/a").overlap(&nfs("m", "/a")).is_none());
        assert!(dir("/a").overlap(&nfs("n", "/a")).is_none());
    }

    #[test]
    fn name_is_a_label() {
        for name in ["", "NAS", "../x", "a b", "-a"] {
            let spec = json!({ "name": name, "kind": "dir", "path": "/srv/nas" });
            assert!(record(spec).is_err(), "{name}");
        }
    }
}
