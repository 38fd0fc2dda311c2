//! A guest as the API shows it: its record, and how it is doing.

use std::collections::BTreeSet;

use pindah_vmm_api::Baseline;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::{Autostart, Boot, CrashPolicy, Disk, Guest, GuestName, Interface, Wanted};
use crate::guests::{GuestState, Guests};
use crate::metrics::GuestUsage;

/// A guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GuestView {
    /// Never changes.
    pub uuid: Uuid,
    /// Its name.
    pub name: GuestName,
    /// What it does.
    pub state: GuestState,
    /// Why, if there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when, in milliseconds since the Unix epoch; 0: since before the agent started.
    pub since_unix_ms: u64,
    /// What it should be doing.
    pub wanted: Wanted,
    /// The node that runs it.
    pub node: String,
    /// Its process on that node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How often it has crashed since somebody started it.
    pub crashes: u32,
    /// Its disks are still being made.
    pub incomplete: bool,
    /// Virtual CPUs.
    pub cpus: u8,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// CPU features that it may see.
    #[schema(value_type = String, example = "host")]
    pub baseline: Baseline,
    /// What runs first.
    pub boot: Boot,
    /// Disks, in slot order.
    pub disks: Vec<Disk>,
    /// Network interfaces, in slot order.
    pub interfaces: Vec<Interface>,
    /// Addresses that it got by DHCP.
    pub addresses: Vec<String>,
    /// Whether it has a seed for cloud-init, which may hold secrets and is not shown.
    pub cloud_init: bool,
    /// Whether and when it starts with its node.
    pub autostart: Autostart,
    /// What becomes of it when it crashes.
    pub on_crash: CrashPolicy,
    /// Free labels.
    pub tags: BTreeSet<String>,
    /// Free text.
    pub notes: String,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// What it takes.
    #[serde(default)]
    pub usage: GuestUsage,
}

impl GuestView {
    /// The guest now.
    pub fn of(guest: Guest, guests: &Guests) -> Self {
        let status = guests.status(guest.uuid);
        let addresses = guests.addresses(&guest);
        Self {
            uuid: guest.uuid,
            name: guest.name,
            state: status.state,
            reason: status.reason,
            since_unix_ms: status.since_unix_ms,
            wanted: guest.wanted,
            node: guest.node,
            pid: status.pid,
            crashes: status.crashes,
            incomplete: guest.incomplete,
            cpus: guest.cpus,
            memory_mib: guest.memory_mib,
            baseline: guest.baseline,
            boot: guest.boot,
            disks: guest.disks,
            interfaces: guest.interfaces,
            addresses: addresses.iter().map(ToString::to_string).collect(),
            cloud_init: guest.cloud_init.is_some(),
            autostart: guest.autostart,
            on_crash: guest.on_crash,
            tags: guest.tags,
            notes: guest.notes,
            created_unix_ms: guest.created_unix_ms,
            usage: guests.usage(guest.uuid),
        }
    }
}
