//! A request for a new pool, and the record that follows from it.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Invalid, PoolKind, PoolName, PoolRecord, PoolSource, Secret, iscsi, nfs};

/// Longest path of a pool, in bytes.
const PATH_MAX: usize = 255;

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
    /// `nfs`: the server's name or address.
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
    /// `nfs`: the files that are exported are images, and nothing is written there: no disk can be
    /// kept in it.
    #[serde(default)]
    pub read_only: bool,
    /// `nfs`: the protocol's version, 3 or 4; 3 for a read-only pool only. Absent: 4, that is 4.2
    /// or 4.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u8>,
    /// `iscsi`: the target's portals, names or addresses, with their ports unless that is 3260.
    /// Where multipathd runs all are used at once, elsewhere the first that can be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 8, example = json!(["10.0.0.9:3260", "10.0.1.9:3260"]))]
    pub portals: Vec<String>,
    /// `iscsi`: the target's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "iqn.2026-01.org.example:vm")]
    pub target: Option<String>,
    /// `iscsi`: the LUN; absent: the only disk that the target has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lun: Option<u16>,
    /// `iscsi`: the LVM volume group on the LUN, which is made if the LUN is blank; absent:
    /// `pindah-` and the pool's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group: Option<String>,
    /// `iscsi`: the user to log in as by CHAP; absent: nobody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_user: Option<String>,
    /// `iscsi`: that user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub chap_password: Option<Secret>,
}

impl PoolSpec {
    /// One of this name and kind, about which nothing else is said.
    pub fn new(name: PoolName, kind: PoolKind) -> Self {
        Self {
            name,
            kind,
            path: None,
            shared: false,
            server: None,
            export: None,
            options: None,
            read_only: false,
            version: None,
            portals: Vec::new(),
            target: None,
            lun: None,
            volume_group: None,
            chap_user: None,
            chap_password: None,
        }
    }

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
                read_only: self.read_only,
                version: nfs::version(self.version, self.read_only)?,
            },
            PoolKind::Iscsi => PoolSource::Iscsi {
                portals: iscsi::portals(&self.portals)?,
                target: iscsi::target(self.target.as_deref())?,
                lun: iscsi::lun(self.lun)?,
                volume_group: iscsi::volume_group(self.volume_group.as_deref(), &self.name)?,
                chap_user: iscsi::chap(self.chap_user.as_deref(), self.chap_password.as_ref())?,
            },
        };
        Ok(PoolRecord {
            id,
            name: self.name.clone(),
            source,
            chap_password: self.chap_password.clone(),
            deleting: false,
            created_unix_ms: now_unix_ms,
        })
    }

    /// What another kind of pool would have.
    fn refuse_foreign_fields(&self) -> Result<(), Invalid> {
        let fields = [
            ("path", self.path.is_some(), PoolKind::Dir),
            ("shared", self.shared, PoolKind::Dir),
            ("server", self.server.is_some(), PoolKind::Nfs),
            ("export", self.export.is_some(), PoolKind::Nfs),
            ("options", self.options.is_some(), PoolKind::Nfs),
            ("read_only", self.read_only, PoolKind::Nfs),
            ("version", self.version.is_some(), PoolKind::Nfs),
            ("portals", !self.portals.is_empty(), PoolKind::Iscsi),
            ("target", self.target.is_some(), PoolKind::Iscsi),
            ("lun", self.lun.is_some(), PoolKind::Iscsi),
            ("volume_group", self.volume_group.is_some(), PoolKind::Iscsi),
            ("chap_user", self.chap_user.is_some(), PoolKind::Iscsi),
            (
                "chap_password",
                self.chap_password.is_some(),
                PoolKind::Iscsi,
            ),
        ];
        let mut fields = fields.into_iter();
        match fields.find(|(_, given, kind)| *given && *kind != self.kind) {
            None => Ok(()),
            Some((field, ..)) => {
                let must = "must be absent: pools of this kind have none";
                Err(Invalid::text(field, &self.kind.to_string(), must))
            }
        }
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
    fn kind_has_its_own_fields_and_no_others() {
        let nfs = json!({ "name": "nas", "kind": "nfs", "server": "nas", "export": "/srv/vm" });
        let source = PoolSource::Nfs {
            server: "nas".to_owned(),
            export: "/srv/vm".to_owned(),
            options: String::new(),
            read_only: false,
            version: None,
        };
        assert!(source.is_shared());
        assert_eq!(record(nfs.clone()).unwrap().source, source);
        for (field, value, expected) in [
            ("path", json!("/srv"), "path = \"nfs\": must be absent"),
            ("server", json!(null), "server = null: must say the server"),
            ("export", json!(null), "export = null: must say the export"),
            ("options", json!("soft"), "options = \"soft\""),
            ("version", json!(3), "version = 3: must be 4 for a pool"),
            ("version", json!(2), "version = 2: must be 3 or 4"),
            ("shared", json!(true), "shared = \"nfs\": must be absent"),
            (
                "target",
                json!("iqn.x:y"),
                "target = \"nfs\": must be absent",
            ),
        ] {
            let mut spec = nfs.clone();
            spec[field] = value;
            let message = record(spec).unwrap_err();
            assert!(message.contains(expected), "{field} gives {message}");
        }
    }

    #[test]
    fn pool_for_reading_may_be_of_version_3_and_holds_no_disks() {
        let spec = json!({ "name": "iso", "kind": "nfs", "server": "nas", "export": "/iso",
            "read_only": true, "version": 3 });
        let source = record(spec).unwrap().source;
        assert!(!source.holds_disks());
        assert!(source.is_shared());
    }

    #[test]
    fn target_needs_a_portal_and_a_name_only() {
        let spec = json!({ "name": "san", "kind": "iscsi", "portals": ["10.0.0.9"],
            "target": "iqn.2026-01.org.example:vm" });
        let source = PoolSource::Iscsi {
            portals: vec!["10.0.0.9:3260".to_owned()],
            target: "iqn.2026-01.org.example:vm".to_owned(),
            lun: None,
            volume_group: "pindah-san".to_owned(),
            chap_user: None,
        };
        assert_eq!(record(spec.clone()).unwrap().source, source);
        for (field, value, expected) in [
            ("portals", json!([]), "portals = []: must say the portal"),
            (
                "portals",
                json!(["10.0.0.9", "10.0.0.9:3260"]),
                "portals[1] = \"10.0.0.9:3260\": must be another one than portals[0]",
            ),
            ("target", json!("vm"), "target = \"vm\": must be a name"),
            ("lun", json!(20_000), "lun = 20000: must be 0 to 16383"),
            ("volume_group", json!("-a"), "volume_group = \"-a\""),
            (
                "chap_user",
                json!("a"),
                "chap_password = null: must be there",
            ),
            (
                "chap_password",
                json!("p"),
                "chap_user = null: must be there",
            ),
            ("path", json!("/srv"), "path = \"iscsi\": must be absent"),
        ] {
            let mut spec = spec.clone();
            spec[field] = value;
            let message = record(spec).unwrap_err();
            assert!(message.contains(expected), "{field} gives {message}");
        }
    }

    #[test]
    fn name_is_a_label() {
        for name in ["", "NAS", "../x", "a b", "-a"] {
            let spec = json!({ "name": name, "kind": "dir", "path": "/srv/nas" });
            assert!(record(spec).is_err(), "{name}");
        }
    }
}
