//! A guest's record: what it is and what is wanted of it, never how it is doing.

use std::collections::BTreeSet;

use pindah_vmm_api::{Baseline, DiskFormat};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::spec::LOCAL_POOL;
use super::{CloudInit, FileName, GuestName, Interface};
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
    /// RAM in MiB.
    pub memory_mib: u64,
    /// CPU features that it may see.
    pub baseline: Baseline,
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
    /// Counts who may run it: each start and each step of a move adds one.
    pub epoch: u64,
    /// Its disks are being made: it cannot start, and goes if that fails.
    pub incomplete: bool,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
}

impl Guest {
    /// Whether all its disks are in a pool that only its node has.
    pub fn is_local(&self) -> bool {
        let mut disks = self.disks.iter();
        disks.all(|disk| disk.volume.pool == LOCAL_POOL)
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
    /// A kernel from the pool's images.
    Kernel {
        /// The kernel's image.
        kernel: FileName,
        /// The initial RAM disk's image.
        initrd: Option<FileName>,
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
}

/// A file in a pool that belongs to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// The pool.
    pub pool: String,
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
