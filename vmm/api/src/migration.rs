//! Live migration: what a client asks for, how it is going, and what it was.

use serde::{Deserialize, Serialize};

/// Body of `POST /api/v1/migrate`. With it come file descriptors by `SCM_RIGHTS`, in this order:
/// the connected TCP sockets to the destination (control, then `data_connections` of data, then
/// with `mode: "hybrid"` one more for pages that are waited for), and with `encryption: "tls"`
/// three PEM files: the certificates of the authorities to trust, our
/// certificate with its chain, and its private key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// What becomes of a guest that writes faster than the link carries.
    #[serde(default)]
    pub mode: MigrationMode,
    /// Number of data connections, 1 to 4. One fills any link that one core can fill.
    #[serde(default = "one")]
    pub data_connections: u8,
    /// Whether the connections are encrypted and both sides prove who they are.
    #[serde(default)]
    pub encryption: Encryption,
    /// Name or IP address that the destination's certificate must carry; needed with TLS.
    #[serde(default)]
    pub server_name: Option<String>,
    /// The guest is stopped only when it is predicted to stand no longer than this, in
    /// milliseconds; or, on hosts that need more than half of that for what is no page, than that
    /// and half of this.
    #[serde(default = "default_downtime_target")]
    pub downtime_target_ms: u64,
    /// The migration is given up, and the guest goes on here, if it has not come to the switchover
    /// by then, in seconds.
    #[serde(default = "default_timeout")]
    pub timeout_s: u64,
    /// Never send more than this, in bytes a second; absent: as the link allows.
    #[serde(default)]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// How pages are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// Most memory for the versions of pages that the destination holds, from which differences
    /// are made on slow links, in MiB; absent: half the guest's RAM. 0 switches differences off.
    #[serde(default)]
    pub delta_cache_mib: Option<u64>,
    /// Compare a checksum of all guest RAM between both sides while the guest stands: for tests,
    /// since the guest stands for as long as that takes. Not done where pages stay behind
    /// (`mode: "hybrid"`).
    #[serde(default)]
    pub verify_memory: bool,
}

impl Default for MigrateRequest {
    fn default() -> Self {
        Self {
            mode: MigrationMode::default(),
            data_connections: one(),
            encryption: Encryption::default(),
            server_name: None,
            downtime_target_ms: default_downtime_target(),
            timeout_s: default_timeout(),
            bandwidth_bytes_per_s: None,
            compression: Compression::default(),
            delta_cache_mib: None,
            verify_memory: false,
        }
    }
}

fn one() -> u8 {
    1
}

fn default_downtime_target() -> u64 {
    25
}

fn default_timeout() -> u64 {
    600
}

/// What becomes of a guest that writes faster than the link carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum MigrationMode {
    /// Its vCPUs are held until it writes less. All of its memory is at the destination before it
    /// runs there.
    #[default]
    Precopy,
    /// It runs at the destination before all of its memory is there: after one full pass, pages
    /// that it has written since are fetched as it touches them, and all others meanwhile. It
    /// never stands for long and is never held.
    ///
    /// The risk: until the last page is there the guest needs both hosts and the link. If one of
    /// them fails in that time the guest is lost, as by a power failure; what it has written to
    /// its disks is there.
    Hybrid,
}

/// Whether connections are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// Mutual TLS 1.3.
    #[default]
    Tls,
    /// Nothing: whoever is on the link reads the guest's memory, and may write it.
    Plaintext,
}

/// How pages are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// By what link and core are measured to do; off where it does not pay.
    #[default]
    Auto,
    /// Never.
    None,
    /// LZ4.
    Lz4,
    /// Zstandard, level 1.
    Zstd,
}

/// Where a migration is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum MigrationPhase {
    /// The two sides agree, and the destination tries on what it will get.
    #[default]
    Prepare,
    /// Memory is sent while the guest runs.
    Precopy,
    /// The guest stands; the rest is sent.
    Switchover,
    /// The guest runs at the destination, which fetches the pages that were left behind.
    Postcopy,
    /// The guest runs at the destination, and all of its memory is there.
    Completed,
    /// It was given up before the point of no return; the guest goes on at the source.
    Failed,
    /// The destination got everything and then did not answer: the guest stands still here,
    /// because it may run there.
    InDoubt,
    /// The guest ran at the destination, and what it had left behind cannot be fetched any more:
    /// it stands still there and here for good.
    Lost,
}

/// How a migration is going: `GET /api/v1/migrate`, and an event each second.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MigrationStatus {
    /// Where it is.
    pub phase: MigrationPhase,
    /// Since the request, in milliseconds.
    pub elapsed_ms: u64,
    /// The passes over memory so far, the present one included.
    pub round: u32,
    /// Bytes of guest RAM that are still to be sent in this pass, or to be fetched.
    pub remaining_bytes: u64,
    /// Bytes that went over the wire so far.
    pub sent_bytes: u64,
    /// What the destination acknowledges, in bytes a second.
    pub rate_bytes_per_s: u64,
    /// How fast the guest writes, in bytes a second of whole pages.
    pub dirty_bytes_per_s: u64,
    /// How long the guest would stand if it was stopped now, in microseconds.
    pub predicted_downtime_us: u64,
    /// Until the switchover, in milliseconds, if it goes on like this; absent when it cannot be
    /// told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_ms: Option<u64>,
    /// Share of their time for which vCPUs are held, in per cent.
    #[serde(default)]
    pub throttle_percent: u8,
    /// Why it failed, is in doubt, or lost the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Bytes of guest RAM by how they went, and what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PageStatistics {
    /// Pages that were never touched, or that the balloon holds: not sent.
    pub untouched_pages: u64,
    /// Pages of zeroes: a few bytes a run.
    pub zero_pages: u64,
    /// Pages that had not changed since the version that the destination holds: not sent.
    pub unchanged_pages: u64,
    /// Pages sent as the difference from that version.
    pub delta_pages: u64,
    /// Pages sent compressed.
    pub compressed_pages: u64,
    /// Pages sent as they are.
    pub raw_pages: u64,
    /// Bytes that all of them took on the wire, before encryption.
    pub wire_bytes: u64,
}

/// One pass over memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RoundReport {
    /// Pages that were dirty when it began.
    pub pages: u64,
    /// Bytes that it put on the wire.
    pub wire_bytes: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
}

/// The steps of the switchover, in microseconds, each from the end of the one before. What the
/// destination tells of itself is measured there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SwitchoverReport {
    /// Disks take no new requests, and those in flight are done. The guest still runs.
    pub quiesce_us: u64,
    /// The vCPUs stand, devices are parked.
    pub pause_us: u64,
    /// The last dirty pages are known and on their way.
    pub last_pages_us: u64,
    /// The state is saved and encoded.
    pub save_us: u64,
    /// Ownership is given up, and state and COMMIT are on their way.
    pub commit_us: u64,
    /// Until the destination's answer is here.
    pub answer_us: u64,
    /// At the destination: from COMMIT to all pages in place.
    pub drain_us: u64,
    /// At the destination: ownership and the disks' metadata.
    pub ownership_us: u64,
    /// At the destination: the state is set.
    pub restore_us: u64,
    /// At the destination: until the vCPUs run.
    pub resume_us: u64,
}

/// The time in which a guest runs at the destination and its last pages are fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PostcopyReport {
    /// From COMMIT to the last page, at the destination, in microseconds.
    pub duration_us: u64,
    /// Pages that were left behind.
    pub pages: u64,
    /// Those that somebody touched before they had come, and waited for.
    pub demanded_pages: u64,
    /// How long they were waited for, in microseconds: as many for longer as for less.
    pub fault_median_us: u64,
    /// The longest of these times, in microseconds.
    pub fault_max_us: u64,
}

/// A migration that is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MigrationReport {
    /// From the request to the destination's word that it has all, in milliseconds.
    pub total_ms: u64,
    /// From the pause here to the destination's word that it runs, in microseconds: what the
    /// guest stood, and the way of that word.
    pub downtime_us: u64,
    /// Bytes that went over the wire.
    pub sent_bytes: u64,
    /// What became of the pages.
    pub pages: PageStatistics,
    /// The passes over memory; the last one was made while the guest stood, unless pages stayed
    /// behind.
    pub rounds: Vec<RoundReport>,
    /// The switchover.
    pub switchover: SwitchoverReport,
    /// Size of the state without RAM, in bytes.
    pub state_bytes: u64,
    /// The most that vCPUs were held, in per cent of their time.
    pub throttle_percent: u8,
    /// What followed, if pages stayed behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postcopy: Option<PostcopyReport>,
}
