//! A request for a new guest, and the record that follows from it.

use std::collections::BTreeSet;

use pindah_vmm_api::{Baseline, DiskFormat};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::guest::{MEMORY_MIN_MIB, check_disk_size};
use super::invalid::within;
use super::mac::{derived_mac, parse_mac};
use super::{
    Autostart, Boot, CloudInit, CpuLimits, CrashPolicy, Disk, DiskLimits, FileName, Guest,
    GuestName, ImageRef, Interface, InterfaceSpec, Invalid, PoolName, Volume, Wanted, format_name,
};

/// Most disks of a guest.
const DISKS_MAX: usize = 16;
/// Most interfaces of a guest.
const INTERFACES_MAX: usize = 8;
/// Longest kernel command line, in bytes (Linux `COMMAND_LINE_SIZE` on x86, without the end).
const CMDLINE_MAX: usize = 2047;

/// A new guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestSpec {
    /// Its name: unique.
    pub name: GuestName,
    /// Virtual CPUs, 1 to 64.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 64)]
    pub cpus: u8,
    /// What it may take of its node's processors.
    #[serde(default)]
    pub cpu_limits: CpuLimits,
    /// RAM in MiB, 16 to 1048576.
    #[schema(minimum = 16, maximum = 1_048_576)]
    pub memory_mib: u64,
    /// CPU features that it may see: `host`, `x86-64-v1`, `x86-64-v2`, `x86-64-v3`; absent: what
    /// the cluster's nodes have in common, on a node that is alone what the host has.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "host", pattern = "^(host|x86-64-v[123])$")]
    pub baseline: Option<Baseline>,
    /// A kernel to boot; absent: the first disk's own boot loader.
    #[serde(default)]
    pub kernel: Option<KernelSpec>,
    /// Disks, in slot order.
    #[serde(default)]
    #[schema(max_items = 16)]
    pub disks: Vec<DiskSpec>,
    /// Network interfaces, in slot order; absent: one on the node's own network.
    #[serde(default = "one_interface")]
    #[schema(max_items = 8)]
    pub interfaces: Vec<InterfaceSpec>,
    /// What its cloud-init finds at the first boot.
    #[serde(default)]
    pub cloud_init: Option<CloudInit>,
    /// Whether and when it starts with its node.
    #[serde(default)]
    pub autostart: Autostart,
    /// What becomes of it when it crashes.
    #[serde(default)]
    pub on_crash: CrashPolicy,
    /// Free labels.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// Free text.
    #[serde(default)]
    pub notes: String,
    /// Start it when it is there.
    #[serde(default)]
    pub start: bool,
}

fn one() -> u8 {
    1
}

fn one_interface() -> Vec<InterfaceSpec> {
    vec![InterfaceSpec::default()]
}

/// A kernel to boot, from the images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelSpec {
    /// A bzImage or an ELF image.
    pub image: ImageRef,
    /// An initial RAM disk.
    #[serde(default)]
    pub initrd: Option<ImageRef>,
    /// Its command line.
    #[serde(default)]
    #[schema(pattern = "^[ -~]{0,2047}$")]
    pub cmdline: String,
}

/// A disk of a new guest: empty, or a copy of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Size in MiB, 1 to 67108864; absent: the image's.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 67_108_864)]
    pub size_mib: Option<u64>,
    /// The image to copy.
    #[serde(default)]
    pub image: Option<ImageRef>,
    /// The pool to keep it in; absent: the node's default, `local` if nothing else is set.
    #[serde(default)]
    pub pool: Option<PoolName>,
    /// Format to keep it in: `qcow2` grows as it is written, `raw` is faster; absent: `qcow2`, or
    /// `raw` in a pool that holds nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "qcow2", pattern = "^(qcow2|raw)$")]
    pub format: Option<DiskFormat>,
    /// How much of its storage it may take.
    #[serde(default, skip_serializing_if = "DiskLimits::is_empty")]
    pub limits: DiskLimits,
}

/// A record, and the images from which its disks are to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The record, incomplete.
    pub guest: Guest,
    /// For each disk the image, if it is a copy. A size of 0 stands for the image's.
    pub sources: Vec<Option<ImageRef>>,
}

impl GuestSpec {
    /// What is to be made on `node`, whose disks go to `default_pool` if nothing else is said:
    /// everything checked that can be without looking at the node.
    ///
    /// # Errors
    /// [`Invalid`], naming the field.
    pub fn plan(
        &self,
        uuid: Uuid,
        node: &str,
        default_pool: &PoolName,
        now_unix_ms: u64,
    ) -> Result<Plan, Invalid> {
        check_cpus(self.cpus)?;
        self.cpu_limits.check()?;
        check_memory(self.memory_mib)?;
        check_texts(&self.tags, &self.notes)?;
        if let Some(cloud_init) = &self.cloud_init {
            cloud_init.check()?;
        }
        if self.kernel.is_none() && self.disks.is_empty() {
            let must = "must have at least one disk to boot from, or the guest a kernel";
            return Err(Invalid::text("disks", "", must));
        }
        let guest = Guest {
            uuid,
            name: self.name.clone(),
            cpus: self.cpus,
            cpu_limits: self.cpu_limits,
            memory_mib: self.memory_mib,
            memory_target_mib: None,
            baseline: self.baseline.unwrap_or_default(),
            cpu_features: None,
            boot: self.boot()?,
            disks: self.plan_disks(default_pool)?,
            interfaces: self.plan_interfaces(uuid)?,
            cloud_init: self.cloud_init.clone(),
            autostart: self.autostart.clone(),
            on_crash: self.on_crash,
            tags: self.tags.clone(),
            notes: self.notes.clone(),
            wanted: Wanted::Stopped,
            node: node.to_owned(),
            moving_to: None,
            epoch: 0,
            incomplete: true,
            template: false,
            created_unix_ms: now_unix_ms,
        };
        let sources = self.disks.iter().map(|disk| disk.image.clone()).collect();
        Ok(Plan { guest, sources })
    }

    fn boot(&self) -> Result<Boot, Invalid> {
        let Some(kernel) = &self.kernel else {
            return Ok(Boot::Firmware);
        };
        let printable = kernel.cmdline.chars().all(|c| (' '..='~').contains(&c));
        if kernel.cmdline.len() > CMDLINE_MAX || !printable {
            let must = "must be at most 2047 printable ASCII characters";
            return Err(Invalid::text("kernel.cmdline", &kernel.cmdline, must));
        }
        Ok(Boot::Kernel {
            kernel: kernel.image.clone(),
            initrd: kernel.initrd.clone(),
            cmdline: kernel.cmdline.clone(),
        })
    }

    fn plan_disks(&self, default_pool: &PoolName) -> Result<Vec<Disk>, Invalid> {
        at_most("disks", self.disks.len(), DISKS_MAX)?;
        let disks = self.disks.iter().enumerate();
        disks
            .map(|(index, disk)| plan_disk(index, disk, default_pool))
            .collect()
    }

    fn plan_interfaces(&self, uuid: Uuid) -> Result<Vec<Interface>, Invalid> {
        at_most("interfaces", self.interfaces.len(), INTERFACES_MAX)?;
        let mut planned: Vec<Interface> = Vec::new();
        for (index, interface) in self.interfaces.iter().enumerate() {
            let mac = match &interface.mac {
                Some(mac) => parse_mac(&format!("interfaces[{index}].mac"), mac)?,
                None => derived_mac(uuid, index),
            };
            if planned.iter().any(|other| other.mac == mac) {
                let field = format!("interfaces[{index}].mac");
                return Err(Invalid::text(field, &mac, "must differ from the others"));
            }
            let planned_one = Interface {
                id: format!("net{index}"),
                network: interface.network.clone(),
                mac,
                tap: tap_name(uuid, index),
                vlan: interface.vlan.clone(),
                rate_limit: interface.rate_limit,
                spoof_guard: interface.spoof_guard.clone(),
                firewall: interface.firewall.clone(),
            };
            planned_one.check(&format!("interfaces[{index}]"))?;
            planned.push(planned_one);
        }
        Ok(planned)
    }
}

fn at_most(field: &str, count: usize, most: usize) -> Result<(), Invalid> {
    if count <= most {
        return Ok(());
    }
    let value = format!("{count} of them");
    Err(Invalid::number(
        field,
        value,
        format!("must be at most {most}"),
    ))
}

fn plan_disk(index: usize, disk: &DiskSpec, default_pool: &PoolName) -> Result<Disk, Invalid> {
    let field = format!("disks[{index}].size_mib");
    match (disk.size_mib, &disk.image) {
        (Some(size), _) => check_disk_size(&field, size)?,
        (None, Some(_)) => {}
        (None, None) => {
            let must = "must say a size, or the disk name an image";
            return Err(Invalid::number(field, "null", must));
        }
    }
    disk.limits.check(&format!("disks[{index}].limits"))?;
    let format = disk.format.unwrap_or(DiskFormat::Qcow2);
    let file = FileName::try_from(format!("disk{index}.{}", format_name(format)))?;
    let pool = disk.pool.as_ref().unwrap_or(default_pool).clone();
    Ok(Disk {
        id: format!("disk{index}"),
        volume: Volume { pool, file },
        format,
        size_mib: disk.size_mib.unwrap_or(0),
        limits: disk.limits,
        spare: None,
        spare_format: None,
        growing_to_mib: None,
    })
}

/// Refuses a number of vCPUs that no guest can have.
pub(super) fn check_cpus(cpus: u8) -> Result<(), Invalid> {
    within("cpus", cpus.into(), 1..=64, "")
}

/// Refuses a size of RAM that no guest can have.
pub(super) fn check_memory(mib: u64) -> Result<(), Invalid> {
    within("memory_mib", mib, MEMORY_MIN_MIB..=1 << 20, " MiB")
}

/// Refuses labels and text that do not fit.
pub(super) fn check_texts(tags: &BTreeSet<String>, notes: &str) -> Result<(), Invalid> {
    at_most("tags", tags.len(), 32)?;
    for tag in tags {
        let valid = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if tag.is_empty() || tag.len() > 63 || !tag.chars().all(valid) {
            let must = "must be 1 to 63 letters, digits and -_.: each";
            return Err(Invalid::text("tags", tag, must));
        }
    }
    check_notes(notes)
}

/// Refuses text that does not fit.
pub(crate) fn check_notes(notes: &str) -> Result<(), Invalid> {
    let printable = |c: char| c == '\n' || c == '\t' || !c.is_control();
    if notes.len() > 16 << 10 || !notes.chars().all(printable) {
        let must = "must be at most 16 KiB of text without control characters";
        return Err(Invalid::text("notes", notes, must));
    }
    Ok(())
}

/// At most 15 bytes, as the kernel wants it.
pub(super) fn tap_name(uuid: Uuid, index: usize) -> String {
    // 40 bits of it: two guests of one node with the same ones are not to be expected.
    let short = uuid.as_u128() >> 88;
    format!("pt{short:010x}n{index}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn plan(extra: &serde_json::Value) -> Result<Plan, String> {
        let mut body = json!({ "name": "web", "memory_mib": 512, "disks": [{ "size_mib": 1 }] });
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        let spec: GuestSpec = serde_json::from_value(body).map_err(|error| error.to_string())?;
        let uuid = Uuid::from_u128(0xA1A2_A3A4_B1B2_41C2_8182_D3D4_D5D6_D7FF);
        spec.plan(uuid, "node1", &PoolName::local(), 7)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn least_request_gives_a_guest_with_a_disk_and_an_interface() {
        let plan = plan(&json!({})).unwrap();
        assert_eq!(plan.guest.disks[0].volume.file.as_str(), "disk0.qcow2");
        let interface = &plan.guest.interfaces[0];
        assert_eq!(interface.mac, "52:54:00:d5:d6:ff".replace("d5:d6", "d6:d7"));
        assert_eq!(interface.tap, "pta1a2a3a4b1n0");
        assert!(plan.guest.incomplete);
        assert_eq!(plan.sources, [None]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_field_and_reason() {
        let many: Vec<_> = (0..17).map(|_| json!({ "size_mib": 1 })).collect();
        for (extra, expected) in [
            (
                json!({ "name": "../x" }),
                "name = \"../x\": must be 1 to 63",
            ),
            (
                json!({ "memory_mib": 15 }),
                "memory_mib = 15: must be 16 to 1048576 MiB",
            ),
            (json!({ "memory_mib": -1 }), "invalid value"),
            (json!({ "memory_mib": "512M" }), "invalid type"),
            (json!({ "cpus": 0 }), "cpus = 0: must be 1 to 64"),
            (json!({ "disks": [] }), "must have at least one disk"),
            (
                json!({ "disks": many }),
                "disks = 17 of them: must be at most 16",
            ),
            (
                json!({ "disks": [{}] }),
                "disks[0].size_mib = null: must say a size",
            ),
            (
                json!({ "disks": [{ "size_mib": 0 }] }),
                "disks[0].size_mib = 0",
            ),
            (
                json!({ "disks": [{ "size_mib": 1, "limits": { "iops": 1 } }] }),
                "disks[0].limits.iops = 1: must be 10 to 1000000",
            ),
            (
                json!({ "disks": [{ "image": "/etc/shadow" }] }),
                "file name = \"/etc/shadow\"",
            ),
            (
                json!({ "interfaces": [{ "mac": "01:00:00:00:00:01" }] }),
                "unicast address",
            ),
            (
                json!({ "interfaces": [{ "mac": "52:54:00:00:01" }] }),
                "six octets",
            ),
            (
                json!({ "interfaces": [{ "mac": "52:54:00:00:00:01" }, { "mac": "52:54:00:00:00:01" }] }),
                "interfaces[1].mac = \"52:54:00:00:00:01\": must differ",
            ),
            (json!({ "tags": ["a b"] }), "tags = \"a b\""),
            (
                json!({ "notes": "\u{1b}[2J" }),
                "without control characters",
            ),
            (
                json!({ "kernel": { "image": "k", "cmdline": "a\nb" } }),
                "printable ASCII",
            ),
            (json!({ "surprise": 1 }), "unknown field `surprise`"),
        ] {
            let message = plan(&extra).unwrap_err();
            assert!(message.contains(expected), "{extra} gives {message}");
        }
    }

    proptest! {
        #[test]
        fn names_of_taps_fit_the_kernel_and_macs_are_ours(number in any::<u128>()) {
            let uuid = Uuid::from_u128(number);
            for index in 0..INTERFACES_MAX {
                prop_assert!(tap_name(uuid, index).len() <= 15);
                let mac = derived_mac(uuid, index);
                prop_assert!(parse_mac("mac", &mac).is_ok());
            }
        }
    }
}
