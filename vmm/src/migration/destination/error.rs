//! Why a guest does not come.

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::memory::userfault::UserfaultError;
use crate::migration::connection::ConnectionError;
use crate::migration::left::LeftError;
use crate::migration::pages::DecodeError;
use crate::vm::migratable::MigratableError;
use crate::vm::state::VmStateError;

/// Why the guest does not run here, and never will, but for [`Self::Lost`].
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
    /// Pages cannot come when they are touched.
    #[error("no hybrid mode on this machine: {0}")]
    NoPostcopy(String),
    /// Pages that are left behind, and are none.
    #[error("the source's word of pages that it leaves behind")]
    Left(#[from] LeftError),
    /// Pages that are left behind cannot be taken away here.
    #[error("cannot drop pages that are out of date")]
    Drop(#[source] io::Error),
    /// Not all pages that are left behind were named, or more.
    #[error("{named} pages were to be left behind of {left}")]
    LeftCount {
        /// What COMMIT says.
        left: u64,
        /// What was said before.
        named: u64,
    },
    /// Pages that stayed behind do not come, before the guest has begun to run.
    #[error("the guest's pages cannot be fetched: {0}")]
    Unfetched(String),
    /// The guest ran here, and what it has left behind cannot be fetched any more.
    #[error("the guest stands still for good, since not all of its pages came: {0}")]
    Lost(String),
    /// RAM is not what it was at the source.
    #[error("guest memory has checksum {ours:#018x} instead of {theirs:#018x}")]
    Checksum {
        /// Here.
        ours: u64,
        /// At the source.
        theirs: u64,
    },
}

impl From<UserfaultError> for ReceiveError {
    fn from(error: UserfaultError) -> Self {
        Self::NoPostcopy(crate::causes::chain(&error))
    }
}
