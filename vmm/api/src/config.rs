//! The configuration of one guest, as a TOML or JSON file gives it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{CpuFeatures, DiskLimits};

/// Everything that the VMM must know to build one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// The guest's name in logs and events.
    #[serde(default = "default_name")]
    pub name: String,
    /// Virtual CPUs.
    #[serde(default)]
    pub cpus: CpusConfig,
    /// Guest RAM.
    pub memory: MemoryConfig,
    /// What runs first. Empty: the first disk's own boot loader, through SeaBIOS.
    #[serde(default)]
    pub boot: BootConfig,
    /// virtio-blk devices, in slot order.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// virtio-net devices, in slot order.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// The 16550 serial port at 0x3f8.
    #[serde(default)]
    pub serial: SerialConfig,
    /// virtio-console's port 0 (`hvc0` in Linux); absent: no such device.
    #[serde(default)]
    pub console: Option<SerialConfig>,
    /// virtio-rng, fed from the host's `getrandom`.
    #[serde(default = "yes")]
    pub rng: bool,
    /// virtio-balloon; absent: no such device.
    #[serde(default)]
    pub balloon: Option<BalloonConfig>,
    /// What a reset that the guest asks for does.
    #[serde(default)]
    pub on_reset: ResetPolicy,
}

/// What the VMM does when the guest asks for a reset (i8042, ACPI reset register, triple fault).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ResetPolicy {
    /// The machine starts anew in the same process.
    #[default]
    Reset,
    /// The process ends with the exit code for "reset requested".
    Exit,
}

/// Virtual CPUs and their topology.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CpusConfig {
    /// Number of vCPUs, 1 to 64.
    #[serde(default = "one")]
    pub count: u8,
    /// Threads a core; `count` must be divisible by `threads_per_core * cores_per_socket`.
    #[serde(default = "one")]
    pub threads_per_core: u8,
    /// Cores a socket; absent: all in one socket.
    #[serde(default)]
    pub cores_per_socket: Option<u8>,
    /// CPU features that the guest may see: `host`, `x86-64-v1`, `x86-64-v2` or `x86-64-v3`.
    #[serde(default)]
    pub baseline: Baseline,
    /// Of these only what is in this set, as `pindah-vmm check --json` tells a host's: what
    /// several hosts have in common. Absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<CpuFeatures>,
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            count: 1,
            threads_per_core: 1,
            cores_per_socket: None,
            baseline: Baseline::default(),
            features: None,
        }
    }
}

/// A named set of CPU features (System V AMD64 psABI, section 3.1.1, micro-architecture levels).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Baseline {
    /// All that KVM supports on this host.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// x86-64: SSE2.
    #[serde(rename = "x86-64-v1")]
    V1,
    /// x86-64-v2: CMPXCHG16B, POPCNT, SSE4.2.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// x86-64-v3: AVX2, BMI, FMA, MOVBE.
    #[serde(rename = "x86-64-v3")]
    V3,
}

/// Guest RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// Size in MiB, 16 or more.
    pub size_mib: u64,
    /// What stands behind it on the host.
    #[serde(default)]
    pub backing: MemoryBacking,
    /// Huge page size in KiB for `hugetlb`: 2048 or 1048576.
    #[serde(default)]
    pub huge_page_kib: Option<u64>,
    /// Touch all of it before the guest starts.
    #[serde(default)]
    pub prefault: bool,
    /// Let KSM merge equal pages (`MADV_MERGEABLE`); anonymous memory only.
    #[serde(default)]
    pub mergeable: bool,
}

/// What stands behind guest RAM on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum MemoryBacking {
    /// Private anonymous memory: transparent huge pages and KSM work on it.
    #[default]
    Anonymous,
    /// A shared memfd.
    Memfd,
    /// A shared memfd of reserved huge pages.
    Hugetlb,
}

/// What runs first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// A bzImage or an ELF image; absent: firmware boot.
    #[serde(default)]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for `kernel`.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// How `kernel` is entered.
    #[serde(default)]
    pub protocol: BootProtocol,
    /// Firmware image; absent: Debian's SeaBIOS at `/usr/share/seabios/bios-256k.bin`.
    #[serde(default)]
    pub firmware: Option<PathBuf>,
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum BootProtocol {
    /// PVH where the image has the note, otherwise the 64-bit Linux protocol.
    #[default]
    Auto,
    /// The 64-bit Linux boot protocol (Linux `Documentation/arch/x86/boot.rst`).
    Linux,
    /// The PVH protocol (Xen `docs/misc/pvh.pandoc`).
    Pvh,
}

/// One virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Unique name of the device in this guest; absent: `disk0`, `disk1`, …
    #[serde(default)]
    pub id: Option<String>,
    /// Image file or block device.
    pub path: PathBuf,
    /// Image format; never guessed, as a raw disk's content belongs to the guest.
    pub format: DiskFormat,
    /// The guest may not write.
    #[serde(default)]
    pub read_only: bool,
    /// How the host caches.
    #[serde(default)]
    pub cache: DiskCache,
    /// Serial number that the guest sees, at most 20 bytes (virtio 1.2, 5.2.6).
    #[serde(default)]
    pub serial: Option<String>,
    /// Number of request queues, 1 to 16.
    #[serde(default = "one")]
    pub queues: u8,
    /// Size of each queue: a power of two, 2 to 1024.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
    /// What happens when the host fails a request.
    #[serde(default)]
    pub on_error: ErrorPolicy,
    /// How much of its storage it may take; absent: no limits.
    #[serde(default, skip_serializing_if = "DiskLimits::is_empty")]
    pub limits: DiskLimits,
}

/// Format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// Bytes as the guest sees them.
    Raw,
    /// QEMU's qcow2, version 2 or 3, with backing files.
    Qcow2,
}

/// How the host caches a disk image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskCache {
    /// `O_DIRECT`: the host's page cache is not used.
    #[default]
    Direct,
    /// Through the host's page cache; flushes still reach the disk.
    Buffered,
}

/// What happens when the host fails a guest's request (I/O error, disk full).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorPolicy {
    /// The guest gets the error.
    #[default]
    Report,
    /// The guest is paused and the request is tried again on resume.
    Pause,
}

/// One virtio-net device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Unique name of the device in this guest; absent: `net0`, `net1`, …
    #[serde(default)]
    pub id: Option<String>,
    /// Name of an existing tap, or one that is created and goes with the process.
    pub tap: String,
    /// MAC address, `52:54:00:…`; absent: derived from the guest's name and the device's id.
    #[serde(default)]
    pub mac: Option<String>,
    /// Number of queue pairs, 1 to 16.
    #[serde(default = "one")]
    pub queue_pairs: u8,
    /// Size of each queue: a power of two, 2 to 1024.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
    /// Whether the kernel's vhost-net moves the packets.
    #[serde(default)]
    pub vhost: VhostMode,
}

/// Whether the kernel's vhost-net moves a device's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum VhostMode {
    /// Where `/dev/vhost-net` is there.
    #[default]
    Auto,
    /// Always; an error where it is not there.
    On,
    /// Never.
    Off,
}

/// Where a serial port or console leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SerialConfig {
    /// Nowhere: output is dropped, but still kept for who attaches by the API.
    #[default]
    Off,
    /// The VMM's standard input and output.
    Stdio,
    /// Output is appended to a file.
    File(PathBuf),
    /// A Unix socket: what was written last is kept for who connects later.
    Socket(PathBuf),
}

/// virtio-balloon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Memory that the guest is asked to give back, in MiB.
    #[serde(default)]
    pub target_mib: u64,
    /// The guest may take memory back when it runs out.
    #[serde(default = "yes")]
    pub deflate_on_oom: bool,
    /// The guest reports free pages, and the host takes them.
    #[serde(default = "yes")]
    pub free_page_reporting: bool,
    /// How often the guest is asked for statistics, in seconds; 0: never.
    #[serde(default = "default_stats_interval_s")]
    pub stats_interval_s: u32,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self {
            target_mib: 0,
            deflate_on_oom: true,
            free_page_reporting: true,
            stats_interval_s: default_stats_interval_s(),
        }
    }
}

fn default_name() -> String {
    "guest".to_owned()
}

fn yes() -> bool {
    true
}

fn one() -> u8 {
    1
}

fn default_queue_size() -> u16 {
    256
}

fn default_stats_interval_s() -> u32 {
    10
}
