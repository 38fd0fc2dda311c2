//! Why a migration did not come to its end.

use std::time::Duration;

use thiserror::Error;

use crate::migration::connection::ConnectionError;
use crate::migration::convergence::AbortReason;
use crate::migration::pages::EncodeError;
use crate::vm::migratable::MigratableError;
use crate::vm::state::VmStateError;

/// Why the guest did not move. But for [`Self::InDoubt`] and [`Self::Lost`] it goes on at the source
/// as before.
#[derive(Debug, Error)]
pub enum MigrationError {
    /// The connection to the destination.
    #[error("the connection to the destination")]
    Connection(#[from] ConnectionError),
    /// The destination cannot run the guest, or has changed its mind.
    #[error("the destination refuses: {0}")]
    Refused(String),
    /// The destination does not keep to the protocol.
    #[error("the destination sent {0}")]
    Unexpected(&'static str),
    /// The destination takes nothing any more.
    #[error("the destination has acknowledged nothing for {} s", .0.as_secs())]
    Stalled(Duration),
    /// The guest does not do its part.
    #[error(transparent)]
    Guest(#[from] MigratableError),
    /// Guest RAM cannot be read.
    #[error("guest memory cannot be sent")]
    Pages(#[from] EncodeError),
    /// The state has no encoding.
    #[error(transparent)]
    State(#[from] VmStateError),
    /// It took too long.
    #[error("given up after {} s: {reason}", .after.as_secs())]
    GivenUp {
        /// Why.
        reason: AbortReason,
        /// After how long.
        after: Duration,
    },
    /// Somebody cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The destination got everything and did not answer, and nothing tells whether it runs the
    /// guest: the guest stands still here.
    #[error("the guest may run at the destination ({after}), and stands still here: {why}")]
    InDoubt {
        /// What happened to the answer.
        after: String,
        /// Why it was not won back.
        why: String,
    },
    /// The guest ran at the destination, and what it had left behind cannot be fetched any more.
    /// It never runs here again.
    #[error(
        "the guest ran at the destination, which did not get all of its pages ({after}): it is lost"
    )]
    Lost {
        /// What happened.
        after: String,
    },
}
