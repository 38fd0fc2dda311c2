//! What a client may send, and the answers that are not a resource of their own.

use serde::{Deserialize, Serialize};

/// Body of `PUT /api/v1/balloon`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BalloonTarget {
    /// Memory that the guest is asked to give back, in MiB.
    pub target_mib: u64,
}

/// Body of `PATCH /api/v1/disks/{id}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskResize {
    /// New size in bytes: a multiple of 512.
    pub size_bytes: u64,
}

/// Body of `POST /api/v1/vm/resume`; without one, the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ResumeRequest {
    /// Resume a guest whose last migration is in doubt although nothing tells that it does not
    /// run elsewhere. If it does, its disks' content is lost.
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST /api/v1/snapshot`. With it come two file descriptors by `SCM_RIGHTS`, both of
/// empty regular files open for reading and writing: first the state's, then the memory's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// What the guest does after the snapshot. After a failed one it goes on as before.
    #[serde(default)]
    pub then: AfterSnapshot,
}

/// What a guest does after its snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AfterSnapshot {
    /// It goes on if it ran before, and stays paused if not.
    #[default]
    Continue,
    /// It stays paused.
    Pause,
    /// The process ends: the snapshot is where the guest lives now.
    Exit,
}

/// What a snapshot took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SnapshotReport {
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Of that, what was written: pages that are not all zeroes.
    pub written_bytes: u64,
    /// Encoded state of the machine in bytes.
    pub state_bytes: u64,
    /// How long the guest stood still, in milliseconds; absent where it still does or did before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<u64>,
    /// How long all of it took, in milliseconds.
    pub total_ms: u64,
}
