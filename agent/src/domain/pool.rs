//! A storage pool's record: what it is, never how it is doing.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use super::{FileName, Invalid, is_label};
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

/// An image, as a request names it: `POOL/FILE`, or `FILE` alone for the first of the pools
/// `local` and the node's default that has it. In a record the pool is always there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    /// The pool that it is in.
    pub pool: Option<PoolName>,
    /// Its name there.
    pub file: FileName,
}

impl PartialSchema for ImageRef {
    fn schema() -> RefOr<Schema> {
        let pattern = "^([a-z]([-a-z0-9]{0,61}[a-z0-9])?/)?[A-Za-z0-9][-+._A-Za-z0-9]{0,99}$";
        let text = ObjectBuilder::new().schema_type(Type::String);
        text.pattern(Some(pattern))
            .examples(["nas/debian.qcow2"])
            .into()
    }
}

impl ToSchema for ImageRef {}

impl ImageRef {
    /// The pool of one that is in a record.
    pub fn pool_or_local(&self) -> PoolName {
        self.pool.clone().unwrap_or_else(PoolName::local)
    }
}

impl TryFrom<String> for ImageRef {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        match text.split_once('/') {
            // What begins with a slash or a dot is a path, and none of ours.
            Some((pool, file)) if is_label(pool) => Ok(Self {
                pool: Some(PoolName::try_from(pool.to_owned())?),
                file: FileName::try_from(file.to_owned())?,
            }),
            _ => Ok(Self {
                pool: None,
                file: FileName::try_from(text)?,
            }),
        }
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.to_string()
    }
}

impl From<FileName> for ImageRef {
    fn from(file: FileName) -> Self {
        Self { pool: None, file }
    }
}

impl std::fmt::Display for ImageRef {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(pool) = &self.pool {
            write!(formatter, "{pool}/")?;
        }
        write!(formatter, "{}", self.file)
    }
}

/// Kinds of pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    /// A directory that is there already.
    Dir,
}

impl std::fmt::Display for PoolKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Dir => "dir",
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
}

impl PoolSource {
    /// Its kind.
    pub fn kind(&self) -> PoolKind {
        match self {
            Self::Dir { .. } => PoolKind::Dir,
        }
    }

    /// Whether all nodes have the same.
    pub fn is_shared(&self) -> bool {
        match self {
            Self::Dir { shared, .. } => *shared,
        }
    }
}

impl PoolSpec {
    /// The record: everything checked that can be without looking at a node.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn record(&self, id: Uuid, now_unix_ms: u64) -> Result<PoolRecord, Invalid> {
        let source = match self.kind {
            PoolKind::Dir => PoolSource::Dir {
                path: directory(self.path.as_deref())?,
                shared: self.shared,
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
    fn name_is_a_label() {
        for name in ["", "NAS", "../x", "a b", "-a"] {
            let spec = json!({ "name": name, "kind": "dir", "path": "/srv/nas" });
            assert!(record(spec).is_err(), "{name}");
        }
    }

    #[test]
    fn image_names_a_pool_or_none_and_never_a_path() {
        let parse = |text: &str| ImageRef::try_from(text.to_owned());
        let named = parse("nas/debian.qcow2").unwrap();
        assert_eq!(named.pool.as_ref().map(PoolName::as_str), Some("nas"));
        assert_eq!(named.to_string(), "nas/debian.qcow2");
        assert_eq!(parse("debian.qcow2").unwrap().pool, None);
        for text in [
            "",
            "/etc/shadow",
            "nas/",
            "nas/../x",
            "nas/a/b",
            "../a",
            "a/.b",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
