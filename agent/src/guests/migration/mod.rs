//! A guest's way to another node.
//!
//! ```text
//!  source's agent                        store                      destination's agent
//!   preflight ───────────────────────────────────────────────────────► is there room?
//!   on A ─► on A, moving to B ──────────► swap
//!   prepare ─────────────────────────────────────────────────────────► receiving VMM: address
//!   POST /migrate at the guest's VMM ════ pages, state, COMMIT ═══════► it runs
//!                                         swap ◄──────────── on B ─────┘
//!   settle ──────────────────────────────────────────────────────────► runs | never
//! ```
//!
//! The record decides who may run the guest. From *moving to B* on, B's VMM may once it has COMMIT;
//! a B that loses its lease before the record says *on B* ends it at once. A takes the guest back
//! only when its own VMM says that it never gave it away, when B's agent says *never*, which is
//! final, or when B's lease has been gone for [`LEASE_MARGIN`]. What an agent left unfinished when
//! it ended is brought to its end by the next one, from the record and the processes alone.

mod destination;
mod drain;
mod foretell;
mod link_speed;
mod preflight;
mod settle;
mod source;
mod undrain;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pindah_vmm_api::MigrationMode;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

pub use preflight::{Offer, Plan};

use super::{GuestError, Guests};
use crate::domain::{Guest, PlacementError};
use crate::peer::Peers;

/// How long a destination's lease must have been seen gone before the guest is taken back: what
/// its agent needs to notice the same, and to end the guest there.
const LEASE_MARGIN: Duration = Duration::from_secs(10);

/// Where and how guests move.
#[derive(Clone)]
pub struct MigrationLinks {
    /// The other nodes.
    pub peers: Peers,
    /// Where guests arrive.
    pub address: IpAddr,
    /// On which of its ports.
    pub ports: RangeInclusive<u16>,
    /// A directory with `ca.pem`, `cert.pem` and `key.pem`.
    pub keys: PathBuf,
    /// How many may leave at a time.
    pub turns: Arc<Semaphore>,
}

/// How a guest is to move.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct MoveRequest {
    /// The node that it moves to; absent: the one with the most free memory that can take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What becomes of a guest that writes faster than the link carries: `precopy` holds it,
    /// `hybrid` lets it run at the destination before all of its memory is there, and loses it if
    /// the link or this node fails meanwhile.
    #[schema(value_type = String, example = "precopy", pattern = "^(precopy|hybrid)$")]
    #[param(
        value_type = String,
        example = "precopy",
        pattern = "^(precopy|hybrid)$",
        required = false
    )]
    pub mode: MigrationMode,
    /// Stop the guest only when it is predicted to stand no longer than this, in milliseconds, 1
    /// to 60000; absent: 25.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 60_000)]
    pub downtime_target_ms: Option<u64>,
    /// Give up when the switchover has not come by then, in seconds, 1 to 86400; absent: 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 86_400)]
    pub timeout_s: Option<u64>,
    /// Send no more than this, in bytes a second, 64 KiB to 1 TiB; absent: as the link allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 65_536, maximum = 1_099_511_627_776u64)]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Move it although something that it uses stays behind: an interface on a node's own network
    /// keeps its address, which leads nowhere at the destination.
    #[param(required = false)]
    pub force: bool,
}

/// A guest that comes, as its source's agent tells its destination's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Arrival {
    /// Which guest.
    pub guest: Uuid,
    /// Its record's epoch since it is on its way.
    pub epoch: u64,
}

/// A guest that begins to come, and its machine as it is: its record may say what it is to be after
/// its next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ArrivalOrder {
    /// Which guest.
    pub guest: Uuid,
    /// Its record's epoch since it is on its way.
    pub epoch: u64,
    /// Its virtual CPUs.
    pub cpus: u8,
    /// Its RAM in MiB.
    pub memory_mib: u64,
}

/// Where a guest's VMM finds the one that waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Receiver {
    /// Its address.
    #[schema(value_type = String, example = "192.168.1.12")]
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// What becomes of a guest that comes; final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Settlement {
    /// It runs at its destination, and its record says so.
    Runs,
    /// It will never run there.
    Never,
}

impl Guests {
    pub(in crate::guests) fn links(&self) -> Result<&MigrationLinks, GuestError> {
        let resources = self.resources();
        let alone = || GuestError::Alone(resources.node.clone());
        resources.migration.as_ref().ok_or_else(alone)
    }

    /// Changes the record under this node's lease; anew if somebody changed something else
    /// meanwhile.
    pub(in crate::guests) async fn change_place(
        &self,
        uuid: Uuid,
        change: impl Fn(&mut Guest) -> Result<(), PlacementError>,
    ) -> Result<Guest, GuestError> {
        loop {
            let stored = self.find(&uuid.to_string()).await?;
            let mut guest = stored.value;
            change(&mut guest)?;
            match self.swap_under_lease(&guest, stored.revision).await {
                Ok(_) => return Ok(guest),
                Err(GuestError::Changed(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
