//! The only door between a running machine and whatever carries it away: a snapshot, a migration.

use std::sync::Arc;

use pindah_vmm_api::{PauseReason, RunState};
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

/// Why a machine cannot be carried away.
#[derive(Debug, Error)]
pub enum MigratableError {
    /// The guest is off, has crashed, or has not begun.
    #[error("the guest is {state}")]
    Gone {
        /// What it is instead.
        state: RunState,
    },
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
