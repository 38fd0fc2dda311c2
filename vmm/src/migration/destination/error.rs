//! Why a guest does not come.

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::migration::connection::ConnectionError;
use crate::migration::pages::DecodeError;
use crate::vm::migratable::MigratableError;
use crate::vm::state::VmStateError;

/// Why the guest does not run here, and never will.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// Nobody came.
    #[error("no source came within {} s", .0.as_secs())]
    Nobody(Duration),
    /// The listening socket fails.
    #[error("cannot accept connections")]
    Accept(#[source] io::Error),
    /// The connection to the source, before it has given the guest away.
    #[error("the connection to the source")]
    Connection(#[from] ConnectionError),
    /// The guest cannot run on this machine.
    #[error("this machine is not the guest's: {0}")]
    Unlike(String),
    /// The source has changed its mind.
    #[error("the source gave up: {0}")]
    Cancelled(String),
    /// The source does not keep to the protocol.
    #[error("the source sent {0}")]
    Unexpected(&'static str),
    /// The pages are malformed.
    #[error("the source's pages")]
    Pages(#[from] DecodeError),
    /// The state does not decode.
    #[error(transparent)]
    State(#[from] VmStateError),
    /// The machine does not take the guest.
    #[error(transparent)]
    Machine(#[from] MigratableError),
    /// Not all bytes came that were sent.
    #[error("{came} bytes of pages came of {sent}")]
    Missing {
        /// What the source says.
        sent: u64,
        /// What came.
        came: u64,
    },
    /// RAM is not what it was at the source.
    #[error("guest memory has checksum {ours:#018x} instead of {theirs:#018x}")]
    Checksum {
        /// Here.
        ours: u64,
        /// At the source.
        theirs: u64,
    },
}
