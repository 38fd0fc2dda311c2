//! A guest's record: what it is and what is wanted of it, never how it is doing.

use std::collections::BTreeSet;

use pindah_vmm_api::{Baseline, CpuFeatures, DiskFormat};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{CloudInit, CpuLimits, FileName, GuestName, ImageRef, Interface, PoolName, PoolRecord};
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
    /// A pool that may have a copy of it which does not count, and goes: of a move that is under
    /// way, or that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare: Option<PoolName>,
    /// Format of that copy; absent: the disk's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "qcow2")]
    pub spare_format: Option<DiskFormat>,
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
}
