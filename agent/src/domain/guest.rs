//! A guest's record: what it is and what is wanted of it, never how it is doing.

use std::collections::BTreeSet;

use pindah_vmm_api::{Baseline, CpuFeatures, DiskFormat};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::invalid::within;
use super::{
    CloudInit, CpuLimits, DiskLimits, FileName, GuestName, ImageRef, Interface, Invalid, PoolName,
    PoolRecord,
};
use crate::store::Record;

/// A guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Never changes.
    pub uuid: Uuid,
    /// For people; may change.
    pub name: GuestName,
    /// Virtual CPUs.
    pub cpus: u8,
    /// What it may take of its node's processors.
    #[serde(default)]
    pub cpu_limits: CpuLimits,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// RAM that it is asked to keep to, in MiB; absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_target_mib: Option<u64>,
    /// CPU features that it may see.
    pub baseline: Baseline,
    /// Of these only what its cluster's nodes had in common when it was created.
    #[serde(default)]
    pub cpu_features: Option<CpuFeatures>,
    /// What runs first.
    pub boot: Boot,
    /// Disks, in slot order.
    pub disks: Vec<Disk>,
    /// Network interfaces, in slot order.
    pub interfaces: Vec<Interface>,
    /// What its cloud-init finds.
    #[serde(default)]
    pub cloud_init: Option<CloudInit>,
    /// Whether and when it starts with its node.
    pub autostart: Autostart,
    /// What becomes of it when it crashes.
    pub on_crash: CrashPolicy,
    /// Free labels.
    pub tags: BTreeSet<String>,
    /// Free text.
    pub notes: String,
    /// What it should be doing.
    pub wanted: Wanted,
    /// The node that may run it.
    pub node: String,
    /// The node that it is on its way to, while it moves.
    #[serde(default)]
    pub moving_to: Option<String>,
    /// Counts who may run it: each start and each step of a move adds one.
    pub epoch: u64,
    /// Its disks are being made: it cannot start, and goes if that fails.
    pub incomplete: bool,
    /// It is what others are copied from, and does not start.
    #[serde(default)]
    pub template: bool,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
}

impl Guest {
    /// The pools that its disks are in.
    pub fn disk_pools(&self) -> BTreeSet<&PoolName> {
        self.disks.iter().map(|disk| &disk.volume.pool).collect()
    }

    /// The images that it needs for each start.
    pub fn boot_images(&self) -> Vec<&ImageRef> {
        match &self.boot {
            Boot::Firmware => Vec::new(),
            Boot::Kernel { kernel, initrd, .. } => std::iter::once(kernel).chain(initrd).collect(),
        }
    }

    /// The pools that it needs to run: of its disks and of the images for its start.
    pub fn needed_pools(&self) -> BTreeSet<PoolName> {
        let images = self.boot_images().into_iter();
        let disks = self.disk_pools().into_iter().cloned();
        disks.chain(images.map(ImageRef::pool_or_local)).collect()
    }

    /// The pools that have something of it.
    pub fn pools(&self) -> BTreeSet<PoolName> {
        let spares = self.disks.iter().filter_map(|disk| disk.spare.clone());
        self.needed_pools().into_iter().chain(spares).collect()
    }

    /// A disk by its name.
    pub fn disk(&self, id: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.id == id)
    }

    /// Refuses RAM to which it cannot be asked to keep.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn check_memory_target(&self, target_mib: u64) -> Result<(), Invalid> {
        within(
            "target_mib",
            target_mib,
            MEMORY_MIN_MIB..=self.memory_mib,
            " MiB",
        )
    }

    /// What it is asked to give back of `memory_mib` of RAM, in MiB.
    pub fn balloon_mib(&self, memory_mib: u64) -> u64 {
        let target_mib = self.memory_target_mib.unwrap_or(memory_mib);
        memory_mib.saturating_sub(target_mib)
    }

    /// Whether it cannot move: it has disks, and all of them are in pools that only its node has,
    /// given which pools are shared. A pool that nobody knows may be.
    pub fn is_local(&self, pools: &[PoolRecord]) -> bool {
        let own = |name: &PoolName| {
            let record = pools.iter().find(|pool| pool.name == *name);
            name.is_local() || record.is_some_and(|pool| !pool.source.is_shared())
        };
        !self.disks.is_empty() && self.disk_pools().into_iter().all(own)
    }
}

impl Record for Guest {
    const KIND: &'static str = "guests";
    const SCHEMA: u32 = 1;
}

/// The guest that has a name: what makes names unique.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameOwner {
    /// The guest.
    pub uuid: Uuid,
}

impl Record for NameOwner {
    const KIND: &'static str = "guest-names";
    const SCHEMA: u32 = 1;
}

/// What runs first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Boot {
    /// The first disk's own boot loader.
    Firmware,
    /// A kernel from a pool's images.
    Kernel {
        /// The kernel's image.
        kernel: ImageRef,
        /// The initial RAM disk's image.
        initrd: Option<ImageRef>,
        /// The kernel's command line.
        cmdline: String,
    },
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// Its name in the guest: `disk0`, …
    pub id: String,
    /// Where it is kept.
    pub volume: Volume,
    /// Its format.
    #[schema(value_type = String, example = "qcow2")]
    pub format: DiskFormat,
    /// Size that the guest sees, in MiB.
    pub size_mib: u64,
    /// How much of its storage it may take.
    #[serde(default, skip_serializing_if = "DiskLimits::is_empty")]
    pub limits: DiskLimits,
    /// A pool that may have a copy of it which does not count, and goes: of a move that is under
    /// way, or that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare: Option<PoolName>,
    /// Format of that copy; absent: the disk's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "qcow2")]
    pub spare_format: Option<DiskFormat>,
    /// Size that it is growing to, in MiB, while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growing_to_mib: Option<u64>,
}

/// Least RAM, in MiB.
pub(super) const MEMORY_MIN_MIB: u64 = 16;
/// Largest disk, in MiB.
const SIZE_MAX_MIB: u64 = 64 << 20;

/// Refuses a size that no disk can have.
pub(super) fn check_disk_size(field: &str, mib: u64) -> Result<(), Invalid> {
    within(field, mib, 1..=SIZE_MAX_MIB, " MiB")
}

impl Disk {
    /// The disk as it would be in another format.
    #[must_use]
    pub fn in_format(&self, format: DiskFormat) -> Self {
        let mut disk = self.clone();
        if format != self.format {
            disk.format = format;
            disk.volume.file = self.volume.file.with_extension(format_name(format));
        }
        disk
    }

    /// The copy of it that does not count, if there is one.
    pub fn spare_copy(&self) -> Option<Self> {
        let pool = self.spare.clone()?;
        let mut copy = self.in_format(self.spare_format.unwrap_or(self.format));
        copy.volume.pool = pool;
        (copy.spare, copy.spare_format) = (None, None);
        Some(copy)
    }

    /// From now on the copy counts, and what was copied does not. Nothing happens without a copy.
    pub fn switch_to_spare(&mut self) {
        if let Some(mut copy) = self.spare_copy() {
            copy.spare = Some(self.volume.pool.clone());
            copy.spare_format = (copy.format != self.format).then_some(self.format);
            *self = copy;
        }
    }

    /// Refuses a size to which it cannot grow.
    ///
    /// # Errors
    /// [`Invalid`]: smaller than it is, or more than a disk can have.
    pub fn check_growth(&self, to_mib: u64) -> Result<(), Invalid> {
        check_disk_size("size_mib", to_mib)?;
        if to_mib > self.size_mib {
            return Ok(());
        }
        let must = format!(
            "must be more than the {} MiB that {} has: disks grow and do not shrink",
            self.size_mib, self.id
        );
        Err(Invalid::number("size_mib", to_mib, must))
    }
}

/// What a format is called, and its files end in.
pub fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

/// A file in a pool that belongs to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// The pool.
    pub pool: PoolName,
    /// The file, in the guest's own directory there.
    pub file: FileName,
}

/// Whether and when a guest starts with its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Autostart {
    /// It starts even if it was not running before.
    pub enabled: bool,
    /// Smaller ones start first.
    pub order: u16,
    /// How long the next one waits, in seconds.
    pub delay_s: u16,
}

/// What becomes of a guest that crashes, or whose process dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CrashPolicy {
    /// It starts again, after a second, then two, then four, up to a minute.
    #[default]
    Restart,
    /// It stays down, and says why.
    Stay,
}

/// What a guest should be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Run, or stand paused.
    Running,
    /// Be off.
    Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_that_changes_its_format_on_its_way_has_two_files_and_goes_back() {
        let text = r#"{"id": "disk0", "volume": {"pool": "nas", "file": "disk0.qcow2"},
            "format": "qcow2", "size_mib": 16}"#;
        let before: Disk = serde_json::from_str(text).unwrap();
        let mut disk = before.clone();
        assert_eq!(disk.spare_copy(), None);
        disk.spare = Some(PoolName::local());
        assert_eq!(
            disk.spare_copy().unwrap().volume.file.as_str(),
            "disk0.qcow2"
        );
        disk.spare_format = Some(DiskFormat::Raw);
        disk.switch_to_spare();
        assert_eq!(disk.volume.file.as_str(), "disk0.raw");
        assert_eq!(disk.spare_copy().unwrap(), before);
    }

    #[test]
    fn disk_grows_and_never_shrinks() {
        let disk: Disk = serde_json::from_str(
            r#"{"id": "disk0", "volume": {"pool": "local", "file": "disk0.raw"},
                "format": "raw", "size_mib": 8192}"#,
        )
        .unwrap();
        assert_eq!(disk.check_growth(8193), Ok(()));
        assert_eq!(disk.check_growth(SIZE_MAX_MIB), Ok(()));
        for (to_mib, expected) in [
            (
                8192,
                "size_mib = 8192: must be more than the 8192 MiB that disk0 has",
            ),
            (1, "size_mib = 1: must be more than the 8192 MiB"),
            (0, "size_mib = 0: must be 1 to 67108864 MiB"),
            (u64::MAX, "must be 1 to 67108864 MiB"),
        ] {
            let error = disk.check_growth(to_mib).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn guest_gives_back_what_is_beyond_its_target() {
        let spec: crate::domain::GuestSpec = serde_json::from_str(
            r#"{"name": "web", "memory_mib": 512, "disks": [{"size_mib": 1}]}"#,
        )
        .unwrap();
        let plan = spec.plan(Uuid::nil(), "n", &PoolName::local(), 0).unwrap();
        let mut guest = plan.guest;
        assert_eq!(guest.balloon_mib(512), 0);
        guest.memory_target_mib = Some(200);
        assert_eq!(guest.balloon_mib(512), 312);
        // It runs with less than it will have.
        assert_eq!(guest.balloon_mib(128), 0);
        assert!(guest.check_memory_target(512).is_ok());
        for refused in [0, 15, 513] {
            let error = guest.check_memory_target(refused).unwrap_err().to_string();
            assert!(error.contains("must be 16 to 512 MiB"), "{error}");
        }
    }
}
