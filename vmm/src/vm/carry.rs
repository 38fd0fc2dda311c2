//! The machine as [`Migratable`]: what snapshot and migration may do with it.

use std::io;
use std::sync::Arc;

use pindah_vmm_api::{PauseReason, RunState};

use super::Vm;
use super::migratable::{Migratable, MigratableError};
use super::ownership::OwnershipError;
use super::state::VmState;
use crate::devices::virtio::net::NetHandle;
use crate::memory::{DirtyLogError, DirtyRegion, GuestMemory};

impl Vm {
    /// The state, if RAM and devices hold what they should in it.
    fn require_begun(&self) -> Result<RunState, MigratableError> {
        match self.life.now().state {
            state @ (RunState::Created | RunState::Stopped | RunState::Crashed) => {
                Err(MigratableError::Gone { state })
            }
            state => Ok(state),
        }
    }

    /// Nothing has run yet.
    pub(super) fn require_new(&self) -> Result<(), MigratableError> {
        match self.life.now().state {
            RunState::Created => Ok(()),
            state => Err(MigratableError::Gone { state }),
        }
    }

    /// vhost-net's log, which comes before the bitmap that it is joined with is read.
    fn each_net(
        &self,
        action: &'static str,
        call: impl Fn(&NetHandle) -> io::Result<()>,
    ) -> Result<(), MigratableError> {
        self.handles
            .nets
            .iter()
            .try_for_each(|(net, _)| call(net))
            .map_err(|error| MigratableError::DirtyLog {
                action,
                source: Box::new(error),
            })
    }
}

/// Names what was tried with the dirty log.
pub(super) fn dirty_log(action: &'static str) -> impl FnOnce(DirtyLogError) -> MigratableError {
    move |error| MigratableError::DirtyLog {
        action,
        source: Box::new(error),
    }
}

impl Migratable for Vm {
    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.memory)
    }

    fn start_dirty_log(&self) -> Result<(), MigratableError> {
        self.dirty_log.start().map_err(dirty_log("started"))?;
        self.each_net("started", |net| net.start_log(&self.memory))
    }

    fn take_dirty(&self) -> Result<Vec<DirtyRegion>, MigratableError> {
        self.each_net("read", NetHandle::take_log)?;
        self.dirty_log.take().map_err(dirty_log("read"))
    }

    fn stop_dirty_log(&self) -> Result<(), MigratableError> {
        self.each_net("stopped", NetHandle::stop_log)?;
        self.dirty_log.stop().map_err(dirty_log("stopped"))
    }

    fn pause(&self, reason: PauseReason) -> Result<bool, MigratableError> {
        let _transition = self.life.begin();
        if self.life.now().is_lost() {
            return Err(MigratableError::Lost);
        }
        let ran = self.require_begun()? == RunState::Running;
        self.stop(reason);
        Ok(ran)
    }

    fn save(&self) -> Result<VmState, MigratableError> {
        let _transition = self.life.begin();
        if self.require_begun()? == RunState::Running {
            return Err(MigratableError::NotPaused);
        }
        self.save_state()
            .map_err(|error| MigratableError::Save(Box::new(error)))
    }

    fn resume(&self) -> Result<(), MigratableError> {
        let _transition = self.life.begin();
        self.require_begun()?;
        if self.life.now().given_up {
            return Err(MigratableError::Ownership(Box::new(
                OwnershipError::GivenUp,
            )));
        }
        self.start();
        Ok(())
    }
}
