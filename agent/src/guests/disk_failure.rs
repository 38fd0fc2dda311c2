//! A guest that stands because its storage failed it, and how it goes on.
//!
//! A NAS forgets a node that it has not heard of for longer than its lease, the locks of that
//! node's disks with it, and may give them to another node. The kernel then fails whatever the
//! guest's VMM reads or writes there, so nothing of the guest's reaches a disk that it has no lock
//! on; the VMM lets the guest stand and keeps the request. In this order it goes on:
//!
//! 1. The VMM takes the locks anew. From here on nobody else's VMM gets them, and if somebody has
//!    them the guest stands.
//! 2. The guest's record is written as it is, which only a node with its lease can do: it must still
//!    be this node's, or what is here ends. Whoever claims it later finds the disks locked.
//! 3. The guest runs, and its VMM tries the request again.
//!
//! The kernel could do the first by itself (`nfs.recover_lost_locks=1`). It must not: it would write
//! what is on its way, old by then, to a disk that another node has had, written and let go of.

use std::time::Duration;

use pindah_vmm_api::{PauseReason, RunState};
use tokio::time::Instant;

use super::backoff::back_off;
use super::machine::Machine;
use super::{GuestError, GuestState, Guests};
use crate::causes::chain;
use crate::domain::{Guest, PlacementError};
use crate::store::{StoreError, Stored};

/// A guest that has run for so long is tried again soon when its storage fails once more.
const RAN_WELL: Duration = Duration::from_secs(60);

/// How often a guest's storage has failed it in a row.
#[derive(Default)]
pub(super) struct Failures {
    count: u32,
    last: Option<Instant>,
}

impl Failures {
    /// One more, at `now`. Returns how many that makes.
    pub(super) fn add(&mut self, now: Instant) -> u32 {
        let last = self.last.replace(now);
        let long_ago = last.is_none_or(|last| now - last > RAN_WELL + back_off(self.count));
        self.count = if long_ago { 1 } else { self.count + 1 };
        self.count
    }
}

/// Whether a guest that stands for this reason goes on by itself. One whose pool is full would
/// come to a stand again at once, until somebody has made room.
pub(super) fn passes(reason: &PauseReason) -> bool {
    matches!(
        reason,
        PauseReason::Device {
            no_space: false,
            ..
        }
    )
}

impl Guests {
    /// Lets a guest whose storage failed go on when it answers again. Returns at once.
    pub(super) fn go_on_later(&self, guest: &Guest, failures: u32) {
        let (guests, guest) = (self.clone(), guest.clone());
        tokio::spawn(async move { guests.try_until_it_goes_on(&guest, failures).await });
    }

    async fn try_until_it_goes_on(&self, guest: &Guest, mut failures: u32) {
        let machine = self.machine(guest.uuid);
        loop {
            tokio::time::sleep(back_off(failures)).await;
            self.resources().pools.wait_ready(guest).await;
            let _operation = machine.operate().await;
            if !self.still_stands(guest, &machine).await {
                return;
            }
            match self.let_go_on(guest).await {
                Ok(()) => {
                    tracing::info!("guest {} goes on: its storage answers", guest.name);
                    return;
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!("guest {} still stands: {}", guest.name, chain(&error));
                }
            }
        }
    }

    async fn let_go_on(&self, guest: &Guest) -> Result<(), GuestError> {
        self.require_rights(guest).await?;
        let client = self.client(guest.uuid);
        self.bring_to(guest, GuestState::Running, client.resume())
            .await
    }

    /// Nobody has stopped it or let it go on since.
    async fn still_stands(&self, guest: &Guest, machine: &Machine) -> bool {
        if machine.status().state != GuestState::Paused {
            return false;
        }
        let Ok(info) = self.client(guest.uuid).info().await else {
            // It may be held up; who ends is no longer paused.
            return true;
        };
        info.state == RunState::Paused && info.pause_reason.as_ref().is_some_and(passes)
    }

    /// Sees that a guest which stands may go on: one whose storage failed only with its disks'
    /// locks, and while it is this node's. The caller holds the guest's operation.
    ///
    /// # Errors
    /// [`GuestError::Vmm`]; [`GuestError::Placement`], and what is here ends;
    /// [`GuestError::Changed`], [`GuestError::Store`].
    pub(super) async fn require_rights(&self, guest: &Guest) -> Result<(), GuestError> {
        let client = self.client(guest.uuid);
        let info = client.info().await?;
        if !info.pause_reason.as_ref().is_some_and(passes) {
            return Ok(());
        }
        client.relock().await?;
        let ours = self.require_ours(guest).await;
        if let Err(error @ GuestError::Placement(PlacementError::Elsewhere { .. })) = &ours
            // What this node remembers without the cluster's majority may be old.
            && self.records().settled(Duration::ZERO).await
        {
            tracing::error!("guest {} ends here: {error}", guest.name);
            self.kill(guest);
        }
        ours
    }

    /// Refuses a guest that is another node's by now: its record must take being written as it is.
    /// One whose disks nobody else has needs no majority for that.
    async fn require_ours(&self, guest: &Guest) -> Result<(), GuestError> {
        let Stored { value, revision } = self.find(&guest.uuid.to_string()).await?;
        value.may_start_on(&self.resources().node)?;
        match self.swap_under_lease(&value, revision).await {
            Err(GuestError::Store(StoreError::NoMajority)) if self.is_local(&value).await? => {
                Ok(())
            }
            swapped => swapped.map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_count_until_the_guest_has_run_well() {
        let mut failures = Failures::default();
        let mut now = Instant::now();
        for count in 1..9 {
            assert_eq!(failures.add(now), count);
            now += back_off(count) + Duration::from_secs(1);
        }
        now += RAN_WELL;
        assert_eq!(failures.add(now), 1);
    }
}
