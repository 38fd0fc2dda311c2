//! What `lsblk`, `blkid` and `sfdisk` say of the disks.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Disk;
use crate::program::{self, ProgramError};
use crate::size;

const COLUMNS: &str = "NAME,PATH,SIZE,MODEL,SERIAL,TYPE,MOUNTPOINTS,RO,RM,TRAN,LOG-SEC";
/// Where live-boot has the medium.
const MEDIUM: &str = "/run/live/medium";

#[derive(Debug, Deserialize)]
struct Lsblk {
    blockdevices: Vec<Device>,
}

/// A block device, and what is made of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Device {
    path: String,
    size: u64,
    model: Option<String>,
    serial: Option<String>,
    r#type: String,
    mountpoints: Vec<Option<String>>,
    ro: bool,
    rm: bool,
    tran: Option<String>,
    #[serde(rename = "log-sec")]
    sector: Option<u16>,
    children: Vec<Device>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sfdisk {
    partitiontable: Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Table {
    sectorsize: Option<u64>,
    partitions: Vec<Entry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    node: String,
    size: u64,
    name: Option<String>,
}

/// All disks of the machine, and the loop devices that have a file.
///
/// # Errors
/// `lsblk` fails.
pub fn list() -> Result<Vec<Disk>, ProgramError> {
    let text = program::run("lsblk", &["--json", "--bytes", "--output", COLUMNS], b"")?;
    let mut disks = disks(&text)?;
    for disk in &mut disks {
        describe(disk);
    }
    Ok(disks)
}

fn disks(text: &str) -> Result<Vec<Disk>, ProgramError> {
    let answer = serde_json::from_str(text);
    let Lsblk { blockdevices } = answer.map_err(|source| ProgramError::Answer {
        program: "lsblk".to_owned(),
        source,
    })?;
    let devices = blockdevices.into_iter();
    let devices = devices.filter(|device| {
        let kind = matches!(&*device.r#type, "disk" | "loop");
        // zram, floppies without a medium and the like are not disks.
        kind && device.size > 0 && !device.path.contains("/zram")
    });
    let disks = devices.map(|device| Disk {
        used_by: used_by(&device),
        removable: device.rm || device.tran.as_deref() == Some("usb"),
        is_loop: device.r#type == "loop",
        model: device.model.unwrap_or_default().trim().to_owned(),
        serial: device.serial.unwrap_or_default().trim().to_owned(),
        size_bytes: device.size,
        sector_bytes: device.sector.unwrap_or(512),
        read_only: device.ro,
        path: device.path,
        ..Disk::default()
    });
    Ok(disks.collect())
}

/// What holds the device or a part of it, and how to end that.
fn used_by(device: &Device) -> Option<String> {
    let path = &device.path;
    let mut mounts = device.mountpoints.iter().flatten();
    if mounts.clone().any(|mount| mount == MEDIUM) {
        return Some(format!(
            "{path} is the medium that this machine was started from"
        ));
    }
    if let Some(mount) = mounts.next() {
        return Some(match &**mount {
            "[SWAP]" => format!("{path} is swap (swapoff {path})"),
            mount => format!("{path} is mounted at {mount} (umount {mount})"),
        });
    }
    device.children.iter().find_map(|child| {
        let (kind, name) = (&*child.r#type, &child.path);
        used_by(child).or(match kind {
            "part" => None,
            "lvm" => Some(format!(
                "{path} carries the LVM volume {name} (vgchange -an)"
            )),
            "crypt" => Some(format!("{path} carries {name} (cryptsetup close {name})")),
            raid if raid.starts_with("raid") => Some(format!(
                "{path} is part of the RAID {name} (mdadm --stop {name})"
            )),
            kind => Some(format!("{path} carries {name} ({kind})")),
        })
    })
}

/// Fills in what is on the disk.
fn describe(disk: &mut Disk) {
    let found = probe(&disk.path);
    if found.contains_key("PTTYPE") {
        let arguments = ["--json", &disk.path];
        let table = program::run("sfdisk", &arguments, b"").unwrap_or_default();
        let table: Sfdisk = serde_json::from_str(&table).unwrap_or_default();
        let Table {
            sectorsize,
            partitions,
        } = table.partitiontable;
        let sector = sectorsize.unwrap_or(512);
        disk.content = partitions
            .iter()
            .map(|entry| entry_line(entry, sector, &probe(&entry.node)))
            .collect();
        disk.partition_names = partitions.into_iter().filter_map(|it| it.name).collect();
    }
    if disk.content.is_empty()
        && let Some(what) = found.get("TYPE").or(found.get("PTTYPE"))
    {
        let kind = if found.contains_key("TYPE") {
            ""
        } else {
            "an empty partition table, "
        };
        disk.content = vec![format!("{kind}{what}{}", label(&found))];
    }
}

fn entry_line(entry: &Entry, sector: u64, found: &BTreeMap<String, String>) -> String {
    let number = entry.node.rsplit(|c: char| !c.is_ascii_digit()).next();
    let name = entry.name.as_ref().filter(|name| !name.is_empty());
    let name = name.map(|name| format!(" {name}")).unwrap_or_default();
    let kind = found.get("TYPE").map_or("unknown content", |kind| kind);
    let (number, bytes) = (number.unwrap_or_default(), size::text(entry.size * sector));
    format!("partition {number}{name}: {bytes}, {kind}{}", label(found))
}

fn label(found: &BTreeMap<String, String>) -> String {
    let label = found.get("LABEL");
    label.map(|label| format!(" {label:?}")).unwrap_or_default()
}

/// What the device itself says, past all caches.
fn probe(path: &str) -> BTreeMap<String, String> {
    let arguments = ["--probe", "--output", "export", path];
    let text = program::run("blkid", &arguments, b"").unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines
        .map(|(key, value)| (key.to_owned(), value.replace('\\', "")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As util-linux 2.41 prints it.
    const LSBLK: &str = r#"{"blockdevices": [
        {"name":"sda","path":"/dev/sda","size":320072933376,"model":"LOGICAL VOLUME  ","serial":"P1",
         "type":"disk","mountpoints":[null],"ro":false,"rm":false,"tran":null,"children":[
            {"name":"sda1","path":"/dev/sda1","size":1073741824,"model":null,"serial":null,
             "type":"part","mountpoints":[null],"ro":false,"rm":false,"tran":null,"children":[
                {"name":"pve-root","path":"/dev/mapper/pve-root","size":1,"type":"lvm",
                 "mountpoints":[null],"ro":false,"rm":false}]}]},
        {"name":"sdb","path":"/dev/sdb","size":8053063680,"model":"DT 101","serial":"X","type":"disk",
         "mountpoints":["/usr/lib/live/mount/medium","/run/live/medium"],"ro":false,"rm":true,"tran":"usb"},
        {"name":"sdc","path":"/dev/sdc","size":1000,"type":"disk","mountpoints":[null],"rm":false,
         "ro":true,"children":[{"path":"/dev/sdc1","type":"part","mountpoints":["[SWAP]"]}]},
        {"name":"sdd","path":"/dev/sdd","size":1000,"type":"disk","mountpoints":[],"rm":false,
         "ro":false,"children":[{"path":"/dev/md0","type":"raid1","mountpoints":["/srv"]}]},
        {"name":"sr0","path":"/dev/sr0","size":300000,"type":"rom","mountpoints":[null]},
        {"name":"loop1","path":"/dev/loop1","size":0,"type":"loop","mountpoints":[null]}
    ]}"#;

    #[test]
    fn disks_are_told_from_what_is_none_and_users_are_named() {
        let disks = disks(LSBLK).unwrap();
        let paths: Vec<&str> = disks.iter().map(|disk| &*disk.path).collect();
        assert_eq!(paths, ["/dev/sda", "/dev/sdb", "/dev/sdc", "/dev/sdd"]);
        let used: Vec<&str> = disks
            .iter()
            .map(|it| it.used_by.as_deref().unwrap())
            .collect();
        assert_eq!(
            used,
            [
                "/dev/sda1 carries the LVM volume /dev/mapper/pve-root (vgchange -an)",
                "/dev/sdb is the medium that this machine was started from",
                "/dev/sdc1 is swap (swapoff /dev/sdc1)",
                "/dev/md0 is mounted at /srv (umount /srv)",
            ]
        );
        assert_eq!(disks[0].model, "LOGICAL VOLUME");
        assert!(disks[1].removable && disks[2].read_only);
    }

    #[test]
    fn partition_is_described_by_what_is_known() {
        let entry = Entry {
            node: "/dev/nvme0n1p2".into(),
            size: 2097152,
            name: Some("EFI".into()),
        };
        let found = [("TYPE", "vfat"), ("LABEL", "BOOT")].map(|(a, b)| (a.into(), b.into()));
        let line = entry_line(&entry, 512, &found.into());
        assert_eq!(line, "partition 2 EFI: 1.0 GiB, vfat \"BOOT\"");
        let line = entry_line(
            &Entry {
                name: None,
                ..entry
            },
            512,
            &BTreeMap::new(),
        );
        assert_eq!(line, "partition 2: 1.0 GiB, unknown content");
    }
}
