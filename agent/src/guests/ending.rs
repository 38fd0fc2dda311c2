//! The end of a guest's process: seen, understood, and answered by policy.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use pindah_vmm_api::{EventKind as VmmEvent, Initiator, PauseReason};
use tokio::time::Instant;
use uuid::Uuid;

use super::backoff::{FORGIVEN_AFTER, back_off};
use super::disk_failure::{Failures, passes};
use super::machine::Machine;
use super::{GuestState, Guests};
use crate::causes::chain;
use crate::domain::{CrashPolicy, Guest, Wanted};
use crate::supervisor::{Direct, GuestProcess};

/// The VMM's exit code when its guest has moved.
const MIGRATED: i32 = 5;
/// How long the last events are waited for when the process has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a guest is off that nobody stopped.
pub(super) const SHUT_ITSELF_DOWN: &str = "the guest shut itself down";

/// How a guest's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// The guest shut down by itself.
    ShutDown,
    /// Somebody beside the agent asked for it: a signal.
    SwitchedOff,
    /// The guest has moved to another node.
    Moved,
    /// It should not have ended.
    Crashed(String),
}

impl Guests {
    /// Watches a process to its end. Returns at once.
    pub(super) fn watch(&self, guest: &Guest, process: GuestProcess) {
        let guests = self.clone();
        let guest = guest.clone();
        tokio::spawn(async move {
            let started = Instant::now();
            let end = guests.follow(&guest, process).await;
            guests.ended(&guest, end, started).await;
        });
    }

    /// Events set the state; the end of the process ends this.
    async fn follow(&self, guest: &Guest, mut process: GuestProcess) -> End {
        let machine = self.machine(guest.uuid);
        let mut last = None;
        let code = {
            let mut events = std::pin::pin!(self.follow_events(guest, &machine, &mut last));
            tokio::select! {
                code = process.ended() => {
                    // Its last words may still be on their way to us.
                    let _ = tokio::time::timeout(LAST_WORDS, events).await;
                    code
                }
                () = &mut events => process.ended().await,
            }
        };
        let code = match code {
            Ok(code) => code,
            Err(error) => {
                tracing::error!("guest {}: cannot watch its VMM: {error}", guest.name);
                None
            }
        };
        match (last, code) {
            (Some(end), _) => end,
            (None, Some(0)) => End::ShutDown,
            (None, Some(MIGRATED)) => End::Moved,
            (None, Some(code)) => {
                let words = Direct::last_words(&self.directory(guest.uuid));
                End::Crashed(format!("its VMM ended with code {code}: {words}"))
            }
            (None, None) => match Direct::switched_off_by(&self.directory(guest.uuid)) {
                Some(Initiator::Guest) => End::ShutDown,
                Some(Initiator::Host) => End::SwitchedOff,
                None => End::Crashed("its VMM was killed".to_owned()),
            },
        }
    }

    async fn follow_events(&self, guest: &Guest, machine: &Machine, last: &mut Option<End>) {
        let client = self.client(guest.uuid);
        let events = match client.events().await {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!("guest {}: no events: {}", guest.name, chain(&error));
                return;
            }
        };
        let mut failures = Failures::default();
        // What happened before the stream began shows in the state.
        if let Ok(info) = client.info().await
            && info.state == pindah_vmm_api::RunState::Paused
        {
            let reason = info.pause_reason.as_ref();
            self.stands(guest, machine, reason, &mut failures);
        }
        let mut events = std::pin::pin!(events);
        while let Some(Ok(event)) = events.next().await {
            self.take_event(guest, machine, event.kind, last, &mut failures);
        }
    }

    fn stands(
        &self,
        guest: &Guest,
        machine: &Machine,
        reason: Option<&PauseReason>,
        failures: &mut Failures,
    ) {
        let text = reason.and_then(pause_text);
        self.set_state(guest, machine, GuestState::Paused, text.as_deref());
        if reason.is_some_and(passes) {
            self.go_on_later(guest, failures.add(Instant::now()));
        }
    }

    fn take_event(
        &self,
        guest: &Guest,
        machine: &Machine,
        event: VmmEvent,
        last: &mut Option<End>,
        failures: &mut Failures,
    ) {
        let stopping = machine.status().state == GuestState::Stopping;
        match event {
            VmmEvent::Paused { reason } if !stopping => {
                self.stands(guest, machine, Some(&reason), failures);
            }
            VmmEvent::Resumed if !stopping => {
                self.set_state(guest, machine, GuestState::Running, None);
            }
            VmmEvent::ShutDown {
                by: Initiator::Guest,
            } => *last = Some(End::ShutDown),
            VmmEvent::ShutDown {
                by: Initiator::Host,
            } => *last = Some(End::SwitchedOff),
            VmmEvent::MigrationCompleted { .. } => *last = Some(End::Moved),
            VmmEvent::Crashed { reason, .. } => *last = Some(End::Crashed(reason)),
            _ => {}
        }
    }

    async fn ended(&self, guest: &Guest, end: End, started: Instant) {
        if end == End::Moved || self.has_left(guest).await {
            tracing::info!("guest {} has left", guest.name);
            self.forget(guest).await;
            return;
        }
        let machine = self.machine(guest.uuid);
        let asked = machine.status().state == GuestState::Stopping;
        if end == End::ShutDown && !asked {
            // First: an agent that is killed from here on leaves it to the next one to know.
            self.want_logged(guest, Wanted::Stopped).await;
        }
        self.clean_up(guest).await;
        let reason = match &end {
            _ if asked => None,
            End::ShutDown => Some(SHUT_ITSELF_DOWN.to_owned()),
            End::SwitchedOff => Some("its VMM was told to end".to_owned()),
            End::Crashed(reason) => Some(reason.clone()),
            End::Moved => None,
        };
        let said = reason.as_deref().unwrap_or("as it was asked to");
        tracing::info!("guest {} has ended: {said}", guest.name);
        if asked {
            self.set_state(guest, &machine, GuestState::Stopped, None);
        } else if end == End::ShutDown {
            self.set_state(guest, &machine, GuestState::Stopped, reason.as_deref());
        } else {
            self.crashed(guest, &machine, reason.as_deref(), started)
                .await;
        }
    }

    async fn crashed(
        &self,
        guest: &Guest,
        machine: &Machine,
        reason: Option<&str>,
        started: Instant,
    ) {
        let before = machine.status().crashes;
        let forgiven = started.elapsed() >= FORGIVEN_AFTER;
        let crashes = if forgiven { 1 } else { before + 1 };
        machine.set_crashes(crashes);
        // The policy may have been edited since it started.
        let policy = match self.records().get(&guest.uuid.to_string()).await {
            Ok(Some(now)) => now.value.on_crash,
            _ => guest.on_crash,
        };
        if policy == CrashPolicy::Stay {
            self.want_logged(guest, Wanted::Stopped).await;
            self.set_state(guest, machine, GuestState::Crashed, reason);
            return;
        }
        self.set_state(guest, machine, GuestState::Crashed, reason);
        tokio::spawn(self.restart_later(guest.uuid, crashes));
    }

    async fn want_logged(&self, guest: &Guest, wanted: Wanted) {
        if let Err(error) = self.want(guest.uuid, wanted).await {
            tracing::error!("guest {}: {}", guest.name, chain(&error));
        }
    }

    /// Starts a crashed guest until it runs, or until nobody wants that any more.
    pub(super) fn restart_later(&self, uuid: Uuid, crashes: u32) -> BoxFuture<'static, ()> {
        let guests = self.clone();
        Box::pin(async move { guests.restart_until_it_runs(uuid, crashes).await })
    }

    async fn restart_until_it_runs(&self, uuid: Uuid, mut crashes: u32) {
        loop {
            tokio::time::sleep(back_off(crashes)).await;
            let machine = self.machine(uuid);
            let _operation = machine.operate().await;
            let stored = match self.records().get(&uuid.to_string()).await {
                Ok(Some(stored)) => stored,
                Ok(None) => {
                    self.machines().remove(&uuid);
                    return;
                }
                Err(error) => {
                    tracing::error!("guest {uuid}: {}", chain(&error));
                    continue;
                }
            };
            if stored.value.moving_to.is_some() {
                if !self.finish_move_of(&stored.value).await {
                    return;
                }
                continue;
            }
            let wanted = self.wanted(&stored.value) == Wanted::Running;
            let ours = stored.value.node == self.resources().node;
            if !(wanted && ours) || machine.status().state.has_process() {
                return;
            }
            let guest = stored.value.clone();
            let started = match self.require_memory(&guest).await {
                Ok(()) => match self.claim(stored).await {
                    Ok(guest) => self.boot(&guest).await,
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            match started {
                Ok(()) => return,
                Err(error) => {
                    crashes += 1;
                    machine.set_crashes(crashes);
                    let reason = chain(&error);
                    tracing::warn!("guest {}: {reason}", guest.name);
                    self.set_state(&guest, &machine, GuestState::Crashed, Some(&reason));
                }
            }
        }
    }
}

/// For a person; `None`: somebody asked for it.
pub(super) fn pause_text(reason: &PauseReason) -> Option<String> {
    match reason {
        PauseReason::Device { id, message, .. } => Some(if passes(reason) {
            format!("{id}: {message}; it goes on when its storage answers")
        } else {
            format!("{id}: {message}; make room, then resume it")
        }),
        PauseReason::InDoubt => Some("its migration is in doubt".to_owned()),
        PauseReason::Snapshot => Some("a snapshot is being taken".to_owned()),
        PauseReason::Migration => Some("it is moving".to_owned()),
        PauseReason::PostcopyLost => {
            Some("it is lost: pages that it left at the node it came from cannot be had".to_owned())
        }
        _ => None,
    }
}
