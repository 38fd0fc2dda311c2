//! How a move is going, in figures.

use pindah_vmm_api::MigrationStatus;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a move is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveProgress {
    /// Since it began, in milliseconds.
    pub elapsed_ms: u64,
    /// The passes over memory so far, the present one included.
    pub round: u32,
    /// What was sent so far, in bytes.
    pub sent_bytes: u64,
    /// What is still to be sent in this pass, in bytes of the guest's memory.
    pub remaining_bytes: u64,
    /// What the destination acknowledges, in bytes a second.
    pub rate_bytes_per_s: u64,
    /// How fast the guest writes, in bytes a second of whole pages.
    pub dirty_bytes_per_s: u64,
    /// How long the guest would stand if it was stopped now, in microseconds.
    pub predicted_downtime_us: u64,
}

impl From<&MigrationStatus> for MoveProgress {
    fn from(status: &MigrationStatus) -> Self {
        Self {
            elapsed_ms: status.elapsed_ms,
            round: status.round,
            sent_bytes: status.sent_bytes,
            remaining_bytes: status.remaining_bytes,
            rate_bytes_per_s: status.rate_bytes_per_s,
            dirty_bytes_per_s: status.dirty_bytes_per_s,
            predicted_downtime_us: status.predicted_downtime_us,
        }
    }
}
