//! What a guest is and how it is doing.

use serde::{Deserialize, Serialize};

use crate::{DiskFormat, DiskLimits, PauseReason};

/// One guest, as `GET /api/v1/vm` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmInfo {
    /// The guest's name.
    pub name: String,
    /// What it does now.
    pub state: RunState,
    /// Why it stands still, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_reason: Option<PauseReason>,
    /// Version of the VMM that runs it.
    pub vmm_version: String,
    /// The VMM's process id.
    pub pid: u32,
    /// When the VMM started the guest, in milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Guest RAM in MiB, what the balloon holds included.
    pub memory_mib: u64,
    /// Its devices, in slot order.
    pub devices: Vec<DeviceInfo>,
}

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// It is built and has not run yet.
    Created,
    /// Its vCPUs run.
    Running,
    /// It stands still and can go on.
    Paused,
    /// It is off; the process ends.
    Stopped,
    /// It cannot go on; the process ends.
    Crashed,
}

impl std::fmt::Display for RunState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
        })
    }
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeviceInfo {
    /// virtio-blk.
    Disk {
        /// Its id.
        id: String,
        /// Size that the guest sees, in bytes.
        size_bytes: u64,
        /// Image format.
        format: DiskFormat,
        /// The guest may not write.
        read_only: bool,
        /// How much of its storage it may take.
        #[serde(default, skip_serializing_if = "DiskLimits::is_empty")]
        limits: DiskLimits,
    },
    /// virtio-net.
    Net {
        /// Its id.
        id: String,
        /// MAC address, `52:54:00:12:34:56`.
        mac: String,
        /// The tap on the host.
        tap: String,
        /// Whether the kernel's vhost-net moves the packets.
        vhost: bool,
    },
    /// 16550 serial port or virtio-console: something to attach to.
    Console {
        /// `serial` or `console`.
        id: String,
    },
    /// virtio-balloon.
    Balloon {
        /// Memory that the guest is asked to give back, in MiB.
        target_mib: u64,
        /// Memory that it has given back, in MiB.
        actual_mib: u64,
    },
    /// virtio-rng.
    Rng,
}
