//! The only door between a running machine and whatever carries it away: a snapshot, a migration.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pindah_vmm_api::{PauseReason, RunState, VmConfig};
use thiserror::Error;

use super::state::{VmState, VmStateError};
use crate::memory::{DirtyRegion, GuestMemory};
use crate::state::StateError;

/// A machine that can be carried away. A fake one tests snapshot and migration without KVM.
///
/// ```text
/// memory ─► start_dirty_log ─► take_dirty … ─► pause ─► take_dirty ─► save ─► resume | gone
///                                                └────── stop_dirty_log ───────┘
/// ```
pub trait Migratable: Send + Sync {
    /// Guest RAM. The mapping lives as long as the handle; its bytes are at rest only between
    /// [`Self::pause`] and [`Self::resume`].
    fn memory(&self) -> Arc<GuestMemory>;

    /// From now on pages that are written are recorded. At most one log at a time; the first
    /// [`Self::take_dirty`] says which pages were written since this call.
    ///
    /// # Errors
    /// [`MigratableError::DirtyLog`]; nothing is recorded then.
    fn start_dirty_log(&self) -> Result<(), MigratableError>;

    /// Pages written since the last call by the guest, our devices, the kernel or vhost on a
    /// device's behalf. Only between [`Self::start_dirty_log`] and [`Self::stop_dirty_log`].
    ///
    /// # Errors
    /// [`MigratableError::DirtyLog`]; pages may be lost to the caller, who must start anew.
    fn take_dirty(&self) -> Result<Vec<DirtyRegion>, MigratableError>;

    /// Ends recording; nothing happens if there is none.
    ///
    /// # Errors
    /// [`MigratableError::DirtyLog`]; the guest runs on, slower.
    fn stop_dirty_log(&self) -> Result<(), MigratableError>;

    /// Stops the vCPUs and parks the devices with nothing in flight. On return guest RAM is at
    /// rest. Returns whether the guest ran before, and only then tells subscribers `reason`;
    /// pausing a paused one is no error.
    ///
    /// # Errors
    /// [`MigratableError`]; the guest is then as it was before.
    fn pause(&self, reason: PauseReason) -> Result<bool, MigratableError>;

    /// State of everything but RAM. Only while paused.
    ///
    /// # Errors
    /// [`MigratableError`]; the guest stays paused and can be resumed.
    fn save(&self) -> Result<VmState, MigratableError>;

    /// Goes on. Resuming a guest that runs is no error.
    ///
    /// # Errors
    /// [`MigratableError`]; the guest stays paused.
    fn resume(&self) -> Result<(), MigratableError>;
}

/// What a live migration may do besides, at the source.
///
/// ```text
/// start_dirty_log ─► (take_dirty, clear_dirty …) ─► quiesce ─► pause ─► take_dirty, save
///   ─► give_up ─► leave | take_back, resume
/// ```
pub trait MigrationSource: Migratable {
    /// What the machine was built from.
    fn config(&self) -> &VmConfig;

    /// Protects pages anew, so that [`Migratable::take_dirty`] reports the next write to them.
    /// Call just before they are read. `bitmap` has a bit a page from `first_page` on, which
    /// counts from the start of region `region` and is a multiple of 64.
    ///
    /// # Errors
    /// [`MigratableError::DirtyLog`].
    fn clear_dirty(
        &self,
        region: u32,
        first_page: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), MigratableError>;

    /// Which of `pages` pages from `first_page` of region `region` on may hold something: the
    /// others were never written, or the balloon has given them back. One bit a page, least
    /// significant first.
    fn touched(&self, region: u32, first_page: u64, pages: u32) -> Vec<u64>;

    /// Devices take no new requests from the guest, which runs on, and those in flight are done.
    /// Ends with [`Self::unquiesce`], or when the guest is resumed.
    ///
    /// # Errors
    /// [`MigratableError::Busy`] if the storage is not done by then; the devices are quiesced all
    /// the same.
    fn quiesce(&self, deadline: Instant) -> Result<(), MigratableError>;

    /// Devices take requests again. Does nothing if they do.
    fn unquiesce(&self);

    /// Why the guest stands, if it does.
    fn pause_reason(&self) -> Option<PauseReason>;

    /// Holds all vCPUs for so long, beginning now, if the guest runs. Returns at once; false if
    /// some vCPU was not in the guest since it was last held, and is not held again.
    fn hold(&self, time: Duration) -> bool;

    /// Gives up the right to run the guest. Only while paused; from then on it may run only after
    /// [`Self::take_back`].
    fn give_up(&self);

    /// Takes back the right to run the guest, which the destination has said that it does not
    /// use, waiting no longer than `patience` for what it still holds.
    ///
    /// # Errors
    /// [`MigratableError::Ownership`]: the guest must not run here.
    fn take_back(&self, patience: Duration) -> Result<(), MigratableError>;

    /// Wins back the right to run the guest from a destination that does not answer, if there is
    /// a record that decides whose it is.
    ///
    /// # Errors
    /// [`MigratableError::Ownership`]: the guest may run elsewhere, and must not run here.
    fn win_back(&self, patience: Duration) -> Result<(), MigratableError>;

    /// The guest runs elsewhere: the machine ends.
    fn leave(&self);

    /// Makes it known that the guest stands because it may run elsewhere.
    fn doubt(&self);

    /// Makes it known that the guest stands for good: it ran elsewhere, and is lost there.
    fn lose(&self);
}

/// What a live migration may do with the machine that is to receive the guest. It is built and
/// has not run.
///
/// ```text
/// restore (dry run) ─► memory is filled ─► take ─► restore ─► start
/// ```
pub trait MigrationDestination: Send + Sync {
    /// What the machine was built from.
    fn config(&self) -> &VmConfig;

    /// Guest RAM, all zeroes at first.
    fn memory(&self) -> Arc<GuestMemory>;

    /// Sets the state of everything but RAM. May be called again, which is quicker: the guest has
    /// not run in between. The state is hostile. This host's wall clock is `clock_ahead_ns`
    /// nanoseconds ahead of that by which the state was saved.
    ///
    /// # Errors
    /// [`MigratableError::Restore`]; the machine must not run unless it is restored again.
    fn restore(&self, state: &VmState, clock_ahead_ns: i64) -> Result<(), MigratableError>;

    /// Takes the right to run the guest, and forgets what is cached of its disks. Before the final
    /// [`Self::restore`]. Does not wait for the right: the source has given it up before COMMIT. If
    /// somebody has it now, that may be the source, which heard no answer and won it back; whoever
    /// waited would get it when that guest ends, and run an older one on its disks.
    ///
    /// # Errors
    /// [`MigratableError::Ownership`].
    fn take(&self) -> Result<(), MigratableError>;

    /// Gives up what [`Self::take`] took: the guest will not run here.
    fn give_back(&self);

    /// Lets the guest run, or stand still, for the reason for which it did so before it moved; its
    /// network cards are no longer silent.
    ///
    /// # Errors
    /// [`MigratableError`]; it does not run.
    fn start(&self, paused: Option<PauseReason>) -> Result<(), MigratableError>;

    /// Lets the network know where the guest is: a RARP frame from each card, and a word to its
    /// driver (virtio 1.2, 5.1.6.5.4).
    fn announce(&self);

    /// Whether the guest, which has run here, was switched off or has crashed.
    fn has_ended(&self) -> bool;

    /// The guest will not run here: the machine ends.
    fn dismiss(&self);

    /// The guest, which runs, cannot go on for want of pages that are not here: its vCPUs stop,
    /// and it stands for good. Waits for nobody: vCPUs and devices may wait for such a page.
    fn lose(&self);
}

/// Why a machine cannot be carried away.
#[derive(Debug, Error)]
pub enum MigratableError {
    /// The guest is off, has crashed, or has not begun.
    #[error("the guest is {state}")]
    Gone {
        /// What it is instead.
        state: RunState,
    },
    /// A part of the guest's memory is lost.
    #[error("the guest is lost: not all of its memory came with its last migration")]
    Lost,
    /// [`Migratable::save`] without [`Migratable::pause`].
    #[error("the guest is not paused")]
    NotPaused,
    /// KVM or vhost refuses the dirty log.
    #[error("the dirty log cannot be {action}")]
    DirtyLog {
        /// `started`, `read` or `stopped`.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The vCPUs or a device do not stop, or do not start again.
    #[error("the guest cannot be {action}")]
    Transition {
        /// `paused` or `resumed`.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Requests of a disk are still in flight.
    #[error("a disk is busy")]
    Busy(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Somebody else has the right to run the guest, or may have it.
    #[error("the guest may run elsewhere")]
    Ownership(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A part of the machine does not take the state.
    #[error("the guest's state does not fit this host")]
    Restore(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A part of the machine does not give its state.
    #[error("the guest's state cannot be saved")]
    Save(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<StateError> for MigratableError {
    fn from(error: StateError) -> Self {
        Self::Save(Box::new(error))
    }
}

impl From<VmStateError> for MigratableError {
    fn from(error: VmStateError) -> Self {
        Self::Save(Box::new(error))
    }
}
