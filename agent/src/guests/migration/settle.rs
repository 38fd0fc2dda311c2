//! The end of a move that does not end by itself: who has the guest is asked, and written down.

use std::time::Duration;

use pindah_vmm_api::{PauseReason, RunState};
use reqwest::Method;
use tokio::time::Instant;

use super::source::Outcome;
use super::{Arrival, LEASE_MARGIN, Settlement};
use crate::causes::chain;
use crate::domain::{Guest, PlacementError};
use crate::guests::machine::Operation;
use crate::guests::stop::has_ended;
use crate::guests::{GuestError, GuestState, Guests};
use crate::supervisor::GuestProcess;

/// How long one answer, or one failure, waits for the next question.
const RETRY: Duration = Duration::from_secs(1);
/// How long a guest's process may take to end when it has left.
const LEAVE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a guest that goes on here is asked to: a NAS may keep the locks of a host that is gone
/// for as long.
const RESUME_DEADLINE: Duration = Duration::from_secs(120);

impl Guests {
    /// Finds out who has the guest that this node sent to `to`, and brings what is here to its
    /// end: a guest that runs there leaves nothing here, one that never will goes on here. Waits
    /// for as long as that cannot be known. `came`: it has run there, as both VMMs say.
    pub(super) async fn settle(&self, guest: &Guest, to: &str, came: bool) -> Settlement {
        let settlement = self.ask_until_settled(guest, to, came).await;
        match settlement {
            Settlement::Runs => self.leave(guest).await,
            Settlement::Never => self.go_on(guest).await,
        }
        settlement
    }

    async fn ask_until_settled(&self, guest: &Guest, to: &str, came: bool) -> Settlement {
        let mut gone_since = None;
        loop {
            match self.ask_once(guest, to, came, &mut gone_since).await {
                Ok(Some(settlement)) => return settlement,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(
                        "guest {}: on its way to {to}: {}",
                        guest.name,
                        chain(&error)
                    );
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn ask_once(
        &self,
        guest: &Guest,
        to: &str,
        came: bool,
        gone_since: &mut Option<Instant>,
    ) -> Result<Option<Settlement>, GuestError> {
        // What this node remembers without the cluster's majority may be old.
        if !self.records().settled(Duration::ZERO).await {
            *gone_since = None;
            return Ok(None);
        }
        let now = match self.find(&guest.uuid.to_string()).await {
            Ok(now) => now.value,
            // Who deletes it has ended it first.
            Err(GuestError::NotFound(_)) => return Ok(Some(Settlement::Runs)),
            Err(error) => return Err(error),
        };
        if now.node != self.resources().node {
            return Ok(Some(Settlement::Runs));
        }
        if now.moving_to.as_deref() != Some(to) {
            return Ok(Some(Settlement::Never));
        }
        let arrival = Arrival {
            guest: guest.uuid,
            epoch: now.epoch,
        };
        let settlement = match self.ask_destination(to, arrival).await {
            Ok(Settlement::Runs) => return Ok(Some(Settlement::Runs)),
            Ok(Settlement::Never) => Settlement::Never,
            Err(error) => {
                if self.links()?.peers.is_alive(to).await? {
                    *gone_since = None;
                    return Err(error);
                }
                let since = gone_since.get_or_insert_with(Instant::now);
                if since.elapsed() < LEASE_MARGIN {
                    return Ok(None);
                }
                // Where it ran its agent has died, and it may run on without.
                if came {
                    Settlement::Runs
                } else {
                    Settlement::Never
                }
            }
        };
        let settled = self.change_place(guest.uuid, |guest| match settlement {
            Settlement::Runs => guest.finish_move(to),
            Settlement::Never => guest.abort_move(to),
        });
        match settled.await {
            // What that has led to shows in the record.
            Err(GuestError::Placement(PlacementError::NotMoving { .. })) => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Ok(Some(settlement)),
        }
    }

    /// The guest's own VMM says that it never gave the guest away.
    pub(super) async fn give_up_move(&self, guest: &Guest, to: &str) {
        let arrival = Arrival {
            guest: guest.uuid,
            epoch: guest.epoch,
        };
        // What waits there in vain ends by itself as well, later.
        if let Err(error) = self.ask_destination(to, arrival).await {
            tracing::info!("guest {}: {}", guest.name, chain(&error));
        }
        loop {
            match self
                .change_place(guest.uuid, |guest| guest.abort_move(to))
                .await
            {
                Ok(_) | Err(GuestError::Placement(_) | GuestError::NotFound(_)) => break,
                Err(error) => {
                    tracing::warn!("guest {}: {}", guest.name, chain(&error));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        self.show_state(guest).await;
    }

    /// What the destination's agent says has become of the guest.
    async fn ask_destination(&self, to: &str, arrival: Arrival) -> Result<Settlement, GuestError> {
        let peers = &self.links()?.peers;
        let asked = peers.ask(to, Method::POST, "/arrivals/settle", Some(&arrival));
        Ok(asked.await?)
    }

    /// The guest runs elsewhere: what is here ends.
    async fn leave(&self, guest: &Guest) {
        let machine = self.machine(guest.uuid);
        if !has_ended(&machine, LEAVE_DEADLINE).await {
            // In doubt it stands still until it is told.
            self.kill(guest);
            has_ended(&machine, LEAVE_DEADLINE).await;
        }
        self.forget(guest).await;
    }

    /// The guest is this node's alone. In doubt it stands still, and its locks may be held by what
    /// is about to end.
    async fn go_on(&self, guest: &Guest) {
        if !self.status(guest.uuid).state.has_process() {
            // It ended on its way; whether it starts again is said by what is wanted.
            tokio::spawn(self.restart_later(guest.uuid, 1));
            return;
        }
        let client = self.client(guest.uuid);
        let deadline = Instant::now() + RESUME_DEADLINE;
        loop {
            let Ok(info) = client.info().await else { break };
            let in_doubt = info.pause_reason == Some(PauseReason::InDoubt);
            if info.state != RunState::Paused || !in_doubt {
                break;
            }
            match client.resume().await {
                Ok(()) => break,
                Err(error) if Instant::now() < deadline => {
                    tracing::warn!("guest {}: {}", guest.name, chain(&error));
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => {
                    tracing::error!("guest {} stays paused: {}", guest.name, chain(&error));
                    break;
                }
            }
        }
        self.show_state(guest).await;
    }

    /// What the guest's VMM says it does.
    async fn show_state(&self, guest: &Guest) {
        let machine = self.machine(guest.uuid);
        let Ok(info) = self.client(guest.uuid).info().await else {
            return;
        };
        match info.state {
            RunState::Running => self.set_state(guest, &machine, GuestState::Running, None),
            RunState::Paused => {
                let reason = info.pause_reason.as_ref();
                let reason = reason.and_then(crate::guests::ending::pause_text);
                self.set_state(guest, &machine, GuestState::Paused, reason.as_deref());
            }
            _ => {}
        }
    }

    /// Brings to its end what an agent before us began: the guest was leaving this node, and its
    /// process, if there is one, is adopted already. Whether it is here afterwards.
    pub(in crate::guests) async fn finish_move_of(&self, guest: &Guest) -> bool {
        let Some(to) = guest.moving_to.clone() else {
            return guest.node == self.resources().node;
        };
        tracing::info!(
            "guest {} was moving to {to} when the agent ended",
            guest.name
        );
        if self.status(guest.uuid).state.has_process()
            && let Outcome::Failed(reason) = self.outcome(guest.uuid).await
        {
            tracing::info!("guest {} goes on here: {reason}", guest.name);
            self.give_up_move(guest, &to).await;
            return true;
        }
        self.settle(guest, &to, false).await == Settlement::Never
    }

    /// The VMM here that waits for the guest, or has it by now: one that an agent before us began.
    pub(in crate::guests) fn adopt_arrival(
        &self,
        guest: &Guest,
        process: GuestProcess,
        operation: Operation,
    ) {
        self.show_arrival(guest);
        self.resources().pools.note_attached(guest);
        let (guests, guest) = (self.clone(), guest.clone());
        tokio::spawn(async move { guests.await_guest(guest, process, operation).await });
    }

    /// Whether the guest whose process has just ended here is another node's now. Waits until that
    /// is known.
    pub(in crate::guests) async fn has_left(&self, guest: &Guest) -> bool {
        let now = match self.find(&guest.uuid.to_string()).await {
            Ok(now) => now.value,
            Err(_) => return false,
        };
        match &now.moving_to {
            // What this node remembers without the cluster's majority may be old.
            _ if now.node != self.resources().node => self.records().settled(Duration::ZERO).await,
            None => false,
            Some(to) => self.ask_until_settled(&now, to, false).await == Settlement::Runs,
        }
    }
}
