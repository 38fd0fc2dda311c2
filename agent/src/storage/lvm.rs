//! Debian's `lvm`, on one device and with settings of ours on each command line: what the host's
//! own lvm.conf says of its own volumes stays as it is.
//!
//! `--devices` lets it look at this device alone, so that neither the host's volume groups nor those
//! that guests have made within their disks are seen. `system_id_source` keeps a group from becoming
//! one host's, and backups of metadata in `/etc` would be one host's view of what all change.
//! `multipath_component_detection` would leave out a disk because multipathd has had it once.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::process::Command;

use super::program::{Complaint, Program};

const LVM: Program = Program {
    name: "lvm",
    package: "lvm2",
};
const CONFIG: &str = "devices { scan_lvs=0 multipath_component_detection=0 } \
    global { system_id_source=\"none\" event_activation=0 } \
    activation { monitoring=0 } backup { backup=0 archive=0 }";
/// Sizes as bytes, and all of it as JSON.
const REPORT: [&str; 5] = ["--reportformat", "json", "--units", "b", "--nosuffix"];

/// A volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub name: String,
    pub tags: Vec<String>,
    /// In bytes.
    pub size: u64,
    /// In bytes.
    pub free: u64,
}

/// A logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogicalVolume {
    pub name: String,
    pub tags: Vec<String>,
    /// In bytes.
    pub size: u64,
}

/// The command `arguments` of lvm(8) on a device.
fn command(device: &Path, arguments: &[&str]) -> Command {
    let (name, rest) = arguments.split_first().unwrap_or((&"version", &[]));
    let mut command = LVM.command(&[name, "--devices"]);
    command.arg(device).args(["--config", CONFIG]).args(rest);
    // What it inherits is none of its business.
    command.env("LVM_SUPPRESS_FD_WARNINGS", "1");
    command
}

/// Runs `arguments` on a device to its end: nobody cuts short what writes metadata.
///
/// # Errors
/// [`Complaint`].
pub(super) async fn run(device: &Path, arguments: &[&str]) -> Result<String, Complaint> {
    let telling = |line: &str| !line.starts_with("WARNING");
    LVM.run(command(device, arguments), telling).await
}

/// The volume group on a device, if there is one.
///
/// # Errors
/// One line.
pub(super) async fn group(device: &Path) -> Result<Option<Group>, String> {
    let columns = "vg_name,vg_tags,vg_size,vg_free";
    let arguments = [&["vgs"], &REPORT[..], &["-o", columns]].concat();
    let text = run(device, &arguments).await;
    let rows: Vec<GroupRow> = rows(&text.map_err(|complaint| complaint.reason)?, "vg")?;
    let group = rows.into_iter().next().map(|row| {
        Ok(Group {
            size: number(&row.size)?,
            free: number(&row.free)?,
            tags: tags(&row.tags),
            name: row.name,
        })
    });
    group.transpose()
}

/// The logical volumes of a group.
///
/// # Errors
/// One line.
pub(super) async fn volumes(device: &Path, group: &str) -> Result<Vec<LogicalVolume>, String> {
    let columns = "lv_name,lv_tags,lv_size";
    let arguments = [&["lvs"], &REPORT[..], &["-o", columns, group]].concat();
    let text = run(device, &arguments).await;
    let rows: Vec<VolumeRow> = rows(&text.map_err(|complaint| complaint.reason)?, "lv")?;
    let volume = |row: VolumeRow| {
        Ok(LogicalVolume {
            size: number(&row.size)?,
            tags: tags(&row.tags),
            name: row.name,
        })
    };
    rows.into_iter().map(volume).collect()
}

#[derive(Deserialize)]
struct GroupRow {
    #[serde(rename = "vg_name")]
    name: String,
    #[serde(rename = "vg_tags")]
    tags: String,
    #[serde(rename = "vg_size")]
    size: String,
    #[serde(rename = "vg_free")]
    free: String,
}

#[derive(Deserialize)]
struct VolumeRow {
    #[serde(rename = "lv_name")]
    name: String,
    #[serde(rename = "lv_tags")]
    tags: String,
    #[serde(rename = "lv_size")]
    size: String,
}

/// The rows `kind` of a report (lvmreport(7)).
fn rows<T: DeserializeOwned>(text: &str, kind: &str) -> Result<Vec<T>, String> {
    let parsed: Result<serde_json::Value, _> = serde_json::from_str(text);
    let rows = parsed.and_then(|report| serde_json::from_value(report["report"][0][kind].clone()));
    rows.map_err(|error| format!("lvm's report cannot be read: {error}"))
}

fn tags(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

fn number(text: &str) -> Result<u64, String> {
    let number = text.trim().parse();
    number.map_err(|_| format!("lvm's report has {text:?} in the place of a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_s_own_settings_and_devices_are_left_alone() {
        let command = command(Path::new("/dev/sdb"), &["vgs", "-o", "vg_name"]);
        let arguments = command.as_std().get_args();
        let arguments: Vec<_> = arguments.map(|one| one.to_str().unwrap()).collect();
        let expected = [
            "vgs",
            "--devices",
            "/dev/sdb",
            "--config",
            CONFIG,
            "-o",
            "vg_name",
        ];
        assert_eq!(arguments, expected);
    }

    #[test]
    fn report_is_read_as_lvm_2_03_writes_it() {
        let text = r#"  {
      "report": [
          {
              "vg": [
                  {"vg_name":"t_vg", "vg_tags":"pindah,x", "vg_size":"264241152", "vg_free":"4194304"}
              ]
          }
      ]
  }"#;
        let rows: Vec<GroupRow> = rows(text, "vg").unwrap();
        assert_eq!(rows[0].name, "t_vg");
        assert_eq!(number(&rows[0].free), Ok(4 << 20));
        assert!(super::rows::<VolumeRow>(text, "lv").is_err());
        assert!(super::rows::<VolumeRow>("", "lv").is_err());
    }
}
