//! The destination: a VMM that waits for its guest, and the record when it has it.

use std::time::Duration;

use pindah_vmm_api::{MigrationPhase, RunState};
use reqwest::Method;

use super::{Arrival, ArrivalOrder, MigrationLinks, Receiver, Settlement};
use crate::causes::chain;
use crate::domain::{Guest, PlacementError};
use crate::guests::machine::Operation;
use crate::guests::{GuestError, GuestState, Guests};
use crate::store::StoreError;
use crate::supervisor::{Direct, GuestProcess, Purpose};
use crate::vmm_client::VmmClient;

/// How long the VMM may take to be built.
const BUILD_DEADLINE: Duration = Duration::from_secs(30);
/// How long to wait for the end of what is done with the guest here.
const OPERATION_PATIENCE: Duration = Duration::from_secs(20);
/// How long it waits for its source to begin.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is asked whether its guest runs.
const POLL: Duration = Duration::from_millis(50);
/// How long one wait for the majority is.
const MAJORITY_PATIENCE: Duration = Duration::from_secs(60);
/// How long a failure of the store waits for the next try.
const RETRY: Duration = Duration::from_millis(200);
/// How long a VMM may take to give its guest up.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);
/// How much of what the guest wrote before comes along, in bytes.
const LOG_BYTES: u64 = 1 << 20;

impl Guests {
    /// Builds a machine for a guest whose record says that it moves here.
    ///
    /// # Errors
    /// [`GuestError::Placement`], [`GuestError::Busy`], [`GuestError::Start`], those of
    /// [`Self::offer`].
    pub async fn receive(&self, arrival: ArrivalOrder) -> Result<Receiver, GuestError> {
        let links = self.links()?;
        let mut guest = self.find(&arrival.guest.to_string()).await?.value;
        guest.require_move_to(&self.resources().node)?;
        if guest.epoch != arrival.epoch {
            return Err(GuestError::Changed(guest.name.to_string()));
        }
        (guest.cpus, guest.memory_mib) = (arrival.cpus, arrival.memory_mib);
        self.offer(&guest).await?;
        let machine = self.machine(guest.uuid);
        // It may have left this node a moment ago.
        let operation = tokio::time::timeout(OPERATION_PATIENCE, machine.operate()).await;
        let operation = operation.map_err(|_| GuestError::Busy(guest.name.to_string()))?;
        self.show_arrival(&guest);
        match self.build(&guest, links).await {
            Ok((process, port)) => {
                let guests = self.clone();
                tokio::spawn(async move { guests.await_guest(guest, process, operation).await });
                Ok(Receiver {
                    address: links.address,
                    port,
                })
            }
            Err(error) => {
                self.forget(&guest).await;
                Err(error)
            }
        }
    }

    /// It is on its way here.
    pub(super) fn show_arrival(&self, guest: &Guest) {
        let reason = format!("it comes from {}", guest.node);
        let machine = self.machine(guest.uuid);
        self.set_state(guest, &machine, GuestState::Arriving, Some(&reason));
    }

    async fn build(
        &self,
        guest: &Guest,
        links: &MigrationLinks,
    ) -> Result<(GuestProcess, u16), GuestError> {
        self.fetch_console_log(guest, links).await;
        let purpose = Purpose::Receive {
            address: links.address,
            ports: links.ports.clone(),
            keys: links.keys.clone(),
            patience: PATIENCE,
        };
        let mut process = self.spawn(guest, &purpose).await?;
        let directory = self.directory(guest.uuid);
        let listening = async {
            loop {
                if let Some(port) = Direct::listens_on(&directory) {
                    return port;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let reason = tokio::select! {
            biased;
            _ = process.ended() => Direct::last_words(&directory),
            port = listening => return Ok((process, port)),
            () = tokio::time::sleep(BUILD_DEADLINE) => {
                format!("its VMM is not built after {} s", BUILD_DEADLINE.as_secs())
            }
        };
        self.end_process(guest, process).await;
        Err(GuestError::Start {
            name: guest.name.to_string(),
            reason,
        })
    }

    /// What the guest wrote on its serial port so far. Without it the log begins here.
    async fn fetch_console_log(&self, guest: &Guest, links: &MigrationLinks) {
        let path = format!("/guests/{}/log?bytes={LOG_BYTES}", guest.uuid);
        let fetched = async {
            let request = links.peers.request(&guest.node, Method::GET, &path).await?;
            links.peers.bytes(&guest.node, request).await
        };
        match fetched.await {
            Ok(bytes) => {
                if let Err(error) = self.begin_console_log(guest.uuid, &bytes) {
                    tracing::warn!("guest {}: its log: {error}", guest.name);
                }
            }
            Err(error) => tracing::warn!("guest {}: its log: {}", guest.name, chain(&error)),
        }
    }

    /// From a VMM that waits to a guest of this node, or to nothing.
    pub(super) async fn await_guest(
        &self,
        guest: Guest,
        mut process: GuestProcess,
        operation: Operation,
    ) {
        let machine = self.machine(guest.uuid);
        machine.set_pid(process.identity().pid);
        let client = self.client(guest.uuid);
        let runs = async {
            loop {
                if let Some(state) = come(&client).await {
                    return state;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let state = tokio::select! {
            biased;
            _ = process.ended() => {
                let words = Direct::last_words(&self.directory(guest.uuid));
                tracing::warn!("guest {} did not come from {}: {words}", guest.name, guest.node);
                self.forget(&guest).await;
                return;
            }
            state = runs => state,
        };
        let Some(guest) = self.own(&guest).await else {
            self.end_process(&guest, process).await;
            self.forget(&guest).await;
            drop(operation);
            self.start_if_it_is_ours(&guest).await;
            return;
        };
        tracing::info!("guest {} has come", guest.name);
        let state = match state {
            RunState::Paused => GuestState::Paused,
            _ => GuestState::Running,
        };
        self.set_state(&guest, &machine, state, None);
        self.tell_changed(&guest);
        // It may have been edited on its way.
        self.contain(&guest, process.identity().pid).await;
        self.watch(&guest, process);
        drop(operation);
    }

    /// The guest ran here, and its source may have written down that it does before we could.
    async fn start_if_it_is_ours(&self, guest: &Guest) {
        let node = &self.resources().node;
        loop {
            let settled = self.records().settled(MAJORITY_PATIENCE).await;
            match self.find(&guest.uuid.to_string()).await {
                Ok(now) if settled && now.value.node == *node => {
                    tokio::spawn(self.restart_later(guest.uuid, 1));
                    return;
                }
                Ok(now) if settled && !now.value.is_moving_to(node) => return,
                Err(GuestError::NotFound(_)) => return,
                _ => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// Writes down that the guest is here. `None`: it must not run here.
    async fn own(&self, guest: &Guest) -> Option<Guest> {
        let node = &self.resources().node;
        loop {
            match self
                .change_place(guest.uuid, |guest| guest.finish_move(node))
                .await
            {
                Ok(guest) => return Some(guest),
                Err(GuestError::Placement(PlacementError::NotMoving { .. })) => {
                    // An agent before us may have written it down.
                    let now = self.find(&guest.uuid.to_string()).await;
                    let ours = now.ok().filter(|now| now.value.node == *node);
                    if ours.is_none() {
                        tracing::error!("guest {} was taken back by its source", guest.name);
                    }
                    return ours.map(|now| now.value);
                }
                Err(error) => {
                    let alone = matches!(error, GuestError::Store(StoreError::NoMajority));
                    let presence = self.resources().presence.as_ref();
                    if alone && presence.is_none_or(|presence| presence.held().is_none()) {
                        tracing::error!(
                            "guest {}: this node lost its lease before it could say that it has \
                             the guest, which may therefore not run here",
                            guest.name
                        );
                        return None;
                    }
                    tracing::warn!("guest {}: {}", guest.name, chain(&error));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// What has become of a guest that was to come: if it does not run here it never will.
    ///
    /// # Errors
    /// [`GuestError::Unsettled`], [`GuestError::Store`].
    pub async fn settle_arrival(&self, arrival: Arrival) -> Result<Settlement, GuestError> {
        let node = &self.resources().node;
        let settled = async {
            loop {
                // Before the record: what runs here by now is written there already.
                let arrives = self.status(arrival.guest).state == GuestState::Arriving;
                let now = self.find(&arrival.guest.to_string()).await?.value;
                if now.node == *node {
                    return Ok(Settlement::Runs);
                }
                if !arrives || now.epoch != arrival.epoch {
                    return Ok(Settlement::Never);
                }
                // Whether it can still be given up its VMM knows.
                let _ = self.client(arrival.guest).cancel_migration().await;
                tokio::time::sleep(POLL).await;
            }
        };
        let settled = tokio::time::timeout(SETTLE_DEADLINE, settled).await;
        settled.unwrap_or_else(|_| Err(GuestError::Unsettled(arrival.guest)))
    }
}

/// What the guest does, if it has come. A VMM whose guest never came is off before its process ends,
/// as one is whose guest has come and ended at once.
async fn come(client: &VmmClient) -> Option<RunState> {
    let state = client.info().await.ok()?.state;
    match state {
        RunState::Created => None,
        RunState::Running | RunState::Paused => Some(state),
        RunState::Stopped | RunState::Crashed => {
            let phase = client.migration().await.ok()?.phase;
            let came = matches!(phase, MigrationPhase::Completed | MigrationPhase::Postcopy);
            came.then_some(state)
        }
    }
}
