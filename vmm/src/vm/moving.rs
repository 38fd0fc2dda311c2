//! The machine at both ends of a live migration.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pindah_vmm_api::{EventKind, PauseReason, RunState, VmConfig};

use super::Vm;
use super::carry::dirty_log;
use super::lifecycle::Request;
use super::migratable::{MigratableError, MigrationDestination, MigrationSource};
use super::ownership::OwnershipError;
use super::state::VmState;
use crate::devices::virtio::block::BlockHandle;
use crate::memory::GuestMemory;

fn ownership(error: OwnershipError) -> MigratableError {
    MigratableError::Ownership(Box::new(error))
}

impl MigrationSource for Vm {
    fn config(&self) -> &VmConfig {
        &self.config
    }

    fn clear_dirty(
        &self,
        region: u32,
        first_page: u64,
        pages: u32,
        bitmap: &[u64],
    ) -> Result<(), MigratableError> {
        self.dirty_log
            .clear(region, first_page, pages, bitmap)
            .map_err(dirty_log("cleared"))
    }

    fn touched(&self, region: u32, first_page: u64, pages: u32) -> Vec<u64> {
        self.page_map
            .touched(&self.memory, region, first_page, pages)
    }

    fn quiesce(&self, deadline: Instant) -> Result<(), MigratableError> {
        self.handles
            .disks
            .iter()
            .try_for_each(|disk| disk.quiesce(deadline))
            .map_err(|error| MigratableError::Busy(Box::new(error)))
    }

    fn unquiesce(&self) {
        for disk in &self.handles.disks {
            disk.unquiesce();
        }
    }

    fn pause_reason(&self) -> Option<PauseReason> {
        self.life.now().pause_reason.clone()
    }

    fn hold(&self, time: Duration) -> bool {
        if self.life.now().state != RunState::Running {
            return true;
        }
        let mut all = true;
        for vcpu in &self.vcpus {
            all &= vcpu.hold(time);
        }
        all
    }

    fn give_up(&self) {
        let _transition = self.life.begin();
        self.life.now().given_up = true;
        self.ownership.give_up();
    }

    fn take_back(&self, patience: Duration) -> Result<(), MigratableError> {
        let _transition = self.life.begin();
        self.ownership.take(patience).map_err(ownership)?;
        self.life.now().set_taken();
        Ok(())
    }

    fn win_back(&self, patience: Duration) -> Result<(), MigratableError> {
        let _transition = self.life.begin();
        self.ownership.win_back(patience).map_err(ownership)?;
        self.life.now().set_taken();
        Ok(())
    }

    fn leave(&self) {
        self.requester.send(Request::Leave);
    }

    fn doubt(&self) {
        self.life.now().set_paused(PauseReason::InDoubt);
    }

    fn lose(&self) {
        let reason = PauseReason::PostcopyLost;
        self.life.now().set_paused(reason.clone());
        self.events.publish(EventKind::Paused { reason });
    }
}

impl Vm {
    /// Nothing passes the machine's network cards until [`MigrationDestination::start`].
    ///
    /// # Errors
    /// vhost-net cannot be switched.
    pub fn silence(&self) -> std::io::Result<()> {
        let mut nets = self.handles.nets.iter();
        nets.try_for_each(|(net, _)| net.set_silent(true))
    }
}

impl MigrationDestination for Vm {
    fn config(&self) -> &VmConfig {
        &self.config
    }

    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.memory)
    }

    fn restore(&self, state: &VmState, clock_ahead_ns: i64) -> Result<(), MigratableError> {
        let _transition = self.life.begin();
        self.require_new()?;
        self.restore_saved(state, clock_ahead_ns)
            .map_err(|error| MigratableError::Restore(Box::new(error)))
    }

    fn take(&self) -> Result<(), MigratableError> {
        let _transition = self.life.begin();
        self.require_new()?;
        self.ownership.take(Duration::ZERO).map_err(ownership)?;
        self.handles
            .disks
            .iter()
            .try_for_each(BlockHandle::reload)
            .map_err(|error| MigratableError::Restore(Box::new(error)))
    }

    fn give_back(&self) {
        self.ownership.give_up();
    }

    fn start(&self, paused: Option<PauseReason>) -> Result<(), MigratableError> {
        let _transition = self.life.begin();
        self.require_new()?;
        for (net, _) in &self.handles.nets {
            if let Err(error) = net.set_silent(false) {
                tracing::error!(net = net.id(), %error, "stays silent");
            }
        }
        match paused {
            // The locks are this machine's own: whatever became of those of the one before.
            Some(reason) => self.life.now().set_paused(reason),
            None => Vm::start(self),
        }
        Ok(())
    }

    fn announce(&self) {
        for (net, _) in &self.handles.nets {
            let mac = net.mac();
            if let Err(error) = net.send_frame(&rarp(mac.bytes())) {
                tracing::warn!(net = net.id(), %error, "cannot announce the guest");
            }
            net.announce();
        }
    }

    fn has_ended(&self) -> bool {
        matches!(self.life.now().state, RunState::Stopped | RunState::Crashed)
    }

    fn dismiss(&self) {
        self.requester.send(Request::Dismiss);
    }

    fn lose(&self) {
        // Who waits for a page does not answer.
        for vcpu in &self.vcpus {
            drop(vcpu.begin_pause());
        }
        let reason = PauseReason::PostcopyLost;
        self.life.now().set_paused(reason.clone());
        self.events.publish(EventKind::Paused { reason });
    }
}

/// A RARP request for one's own address, which teaches switches where it is (RFC 903): to all,
/// from `mac`.
fn rarp(mac: [u8; 6]) -> [u8; 60] {
    const ETHERTYPE_RARP: [u8; 2] = [0x80, 0x35];
    // Ethernet, IPv4, their lengths, request reverse.
    const HEADER: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&ETHERTYPE_RARP);
    frame[14..22].copy_from_slice(&HEADER);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}
