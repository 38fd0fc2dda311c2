//! The source: hands the guest over, and tells how that goes.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use futures_util::StreamExt;
use pindah_vmm_api::report::{StatusLine, Summary};
use pindah_vmm_api::{
    EventKind, MigrateRequest, MigrationMode, MigrationPhase, MigrationReport, MigrationStatus,
    RunState,
};
use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use super::{ArrivalOrder, MigrationLinks, MoveRequest, Plan, Receiver, Settlement};
use crate::causes::chain;
use crate::domain::{Guest, Task, TaskKind, TaskSubject};
use crate::guests::{GuestError, Guests};
use crate::tasks::{Failure, TaskContext};

/// How long the connections to the destination may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a VMM is asked whose events were lost.
const POLL: Duration = Duration::from_millis(250);

/// How a migration ended, as the source's VMM says.
pub(super) enum Outcome {
    /// The guest runs at the destination.
    Completed(Box<MigrationReport>),
    /// It was never given away, and goes on here.
    Failed(String),
    /// It may run at the destination, or did: that one's agent knows.
    Unknown(String),
}

impl Guests {
    /// Begins to move a guest: while it runs, or if it is off by its record alone.
    ///
    /// # Errors
    /// As [`Self::plan_move`]; [`GuestError::Busy`].
    pub async fn migrate(
        &self,
        guest: &Guest,
        request: &MoveRequest,
        user: &str,
    ) -> Result<Task, GuestError> {
        let plan = self.plan_move(guest, request).await?;
        let operation = self.operate(guest)?;
        let (guests, uuid, request) = (self.clone(), guest.uuid, request.clone());
        let subject = TaskSubject::from(guest);
        let tasks = &self.resources().tasks;
        let task = tasks.start(
            TaskKind::MigrateGuest,
            subject,
            user,
            |context| async move {
                let _operation = operation;
                guests.move_now(uuid, &plan, &request, &context).await
            },
        );
        Ok(task.await?)
    }

    /// Moves the guest as planned. The caller holds its operation.
    pub(super) async fn move_now(
        &self,
        uuid: Uuid,
        plan: &Plan,
        request: &MoveRequest,
        context: &TaskContext,
    ) -> Result<serde_json::Value, Failure> {
        if self.status(uuid).state.has_process() {
            self.move_live(uuid, plan, request, context).await
        } else {
            self.move_off(uuid, &plan.to).await
        }
    }

    /// One that is off has its disks and its record, and nothing else.
    async fn move_off(&self, uuid: Uuid, to: &str) -> Result<serde_json::Value, Failure> {
        let node = &self.resources().node;
        let guest = self.change_place(uuid, |guest| {
            guest.begin_move(node, to)?;
            guest.finish_move(to)
        });
        let guest = guest.await?;
        self.forget(&guest).await;
        self.tell_changed(&guest);
        Ok(json!({ "uuid": uuid, "node": to }))
    }

    async fn move_live(
        &self,
        uuid: Uuid,
        plan: &Plan,
        request: &MoveRequest,
        context: &TaskContext,
    ) -> Result<serde_json::Value, Failure> {
        let links = self.links()?;
        let (node, to) = (&self.resources().node, plan.to.as_str());
        let turn = async { links.turns.acquire().await };
        let _turn = tokio::select! {
            turn = turn => turn.map_err(|error| Failure::of(&error))?,
            () = context.cancelled() => return Err(Failure::Cancelled),
        };
        let guest = self.change_place(uuid, |guest| guest.begin_move(node, to));
        let guest = guest.await?;
        context.log(&format!(
            "moving to {to}: at most {} MiB to send",
            plan.memory_mib
        ));
        if let Some(forecast) = &plan.forecast {
            context.log(&format!("forecast: {forecast}"));
        }
        let machine = self.machine(uuid);
        let state = machine.status().state;
        self.set_state(&guest, &machine, state, Some(&format!("it moves to {to}")));
        let outcome = match self.prepare(&guest, to, links, request).await {
            Ok((order, descriptors)) => self.carry(&guest, &order, descriptors, context).await,
            Err(error) => Outcome::Failed(chain(&error)),
        };
        match outcome {
            Outcome::Completed(report) => {
                context.log(&Summary(&report).to_string());
                if let Some(forecast) = &plan.forecast {
                    context.log(&forecast.beside(report.total_ms, report.downtime_us));
                }
                self.settle(&guest, to, true).await;
                self.remember_move(&guest, plan, request, &report).await;
                let forecast = plan.forecast.as_ref();
                Ok(json!({
                    "uuid": uuid, "node": to, "total_ms": report.total_ms,
                    "downtime_us": report.downtime_us, "sent_bytes": report.sent_bytes,
                    "rounds": report.rounds,
                    "predicted_total_ms": forecast.and_then(|forecast| forecast.total_ms),
                    "predicted_downtime_us": forecast.and_then(|forecast| forecast.downtime_us),
                }))
            }
            Outcome::Failed(reason) => {
                self.give_up_move(&guest, to).await;
                context.check()?;
                Err(Failure::Failed(reason))
            }
            Outcome::Unknown(reason) => {
                context.log(&format!("{reason}; asking node {to} who has the guest"));
                match self.settle(&guest, to, false).await {
                    Settlement::Runs => {
                        context.log(&format!("it runs on {to}"));
                        Ok(json!({ "uuid": uuid, "node": to }))
                    }
                    Settlement::Never => {
                        context.log("it goes on here");
                        Err(Failure::Failed(reason))
                    }
                }
            }
        }
    }

    /// Has the destination wait for the guest, and connects to it.
    async fn prepare(
        &self,
        guest: &Guest,
        to: &str,
        links: &MigrationLinks,
        request: &MoveRequest,
    ) -> Result<(MigrateRequest, Vec<OwnedFd>), GuestError> {
        let running = self.client(guest.uuid).info().await?;
        let arrival = ArrivalOrder {
            guest: guest.uuid,
            epoch: guest.epoch,
            cpus: running.cpus,
            memory_mib: running.memory_mib,
        };
        let peers = &links.peers;
        let asked = peers.ask::<_, Receiver>(to, Method::POST, "/arrivals", Some(&arrival));
        let receiver = asked.await?;
        let order = order(request, to);
        let sockets = 2 + usize::from(order.mode == MigrationMode::Hybrid);
        let address = SocketAddr::new(receiver.address, receiver.port);
        let connecting = tokio::task::spawn_blocking(move || connect(address, sockets));
        let connected = connecting.await.unwrap_or_else(|error| Err(error.into()));
        let mut descriptors = connected.map_err(|source| GuestError::Unconnected {
            node: to.to_owned(),
            address,
            source,
        })?;
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            let path = links.keys.join(name);
            let file = File::open(&path).map_err(|source| GuestError::Io { path, source })?;
            descriptors.push(file.into());
        }
        Ok((order, descriptors))
    }

    async fn carry(
        &self,
        guest: &Guest,
        order: &MigrateRequest,
        descriptors: Vec<OwnedFd>,
        context: &TaskContext,
    ) -> Outcome {
        let client = self.client(guest.uuid);
        // Before the request, so that nothing is missed.
        let events = match client.events().await {
            Ok(events) => events,
            Err(error) => return Outcome::Failed(chain(&error)),
        };
        if let Err(error) = client.migrate(order, descriptors).await {
            return match error {
                crate::vmm_client::VmmError::Refused { message, .. } => Outcome::Failed(message),
                // It may have begun.
                _ => self.outcome(guest.uuid).await,
            };
        }
        let mut events = std::pin::pin!(events);
        let mut cancelled = false;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = context.cancelled(), if !cancelled => {
                    cancelled = true;
                    if let Err(error) = client.cancel_migration().await {
                        context.log(&chain(&error));
                    }
                    continue;
                }
            };
            match event {
                Some(Ok(event)) => match event.kind {
                    EventKind::MigrationProgress { status } => report(context, &status),
                    EventKind::MigrationCompleted { report } => {
                        return Outcome::Completed(report);
                    }
                    EventKind::MigrationFailed {
                        reason,
                        in_doubt: false,
                        lost: false,
                    } => return Outcome::Failed(reason),
                    EventKind::MigrationFailed { reason, .. } => return Outcome::Unknown(reason),
                    _ => {}
                },
                Some(Err(_)) | None => return self.outcome(guest.uuid).await,
            }
        }
    }

    /// How the migration that a VMM is about ended, from its API alone. Waits for that.
    pub(super) async fn outcome(&self, uuid: Uuid) -> Outcome {
        let client = self.client(uuid);
        loop {
            let directory = self.directory(uuid);
            if self.resources().supervisor.adopt(&directory).is_none() {
                return Outcome::Unknown("the guest's process has ended".to_owned());
            }
            let status = client.migration().await;
            let reason = |status: &MigrationStatus| status.reason.clone().unwrap_or_default();
            match status {
                Ok(status) => match status.phase {
                    MigrationPhase::Failed => return Outcome::Failed(reason(&status)),
                    MigrationPhase::InDoubt | MigrationPhase::Lost => {
                        return Outcome::Unknown(reason(&status));
                    }
                    // Of one that has left the process ends; this may be how the guest came here.
                    MigrationPhase::Completed => match client.info().await.map(|info| info.state) {
                        Ok(RunState::Running) => {
                            return Outcome::Failed("its migration had not begun".to_owned());
                        }
                        Ok(RunState::Paused) => {
                            let reason = "nobody knows whether its migration had begun";
                            return Outcome::Unknown(reason.to_owned());
                        }
                        _ => {}
                    },
                    _ => {}
                },
                Err(crate::vmm_client::VmmError::Refused { status: 404, .. }) => {
                    return Outcome::Failed("its migration had not begun".to_owned());
                }
                Err(_) => {}
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn order(request: &MoveRequest, to: &str) -> MigrateRequest {
    let default = MigrateRequest::default();
    MigrateRequest {
        mode: request.mode,
        server_name: Some(to.to_owned()),
        downtime_target_ms: request
            .downtime_target_ms
            .unwrap_or(default.downtime_target_ms),
        timeout_s: request.timeout_s.unwrap_or(default.timeout_s),
        bandwidth_bytes_per_s: request.bandwidth_bytes_per_s,
        ..default
    }
}

fn connect(address: SocketAddr, sockets: usize) -> std::io::Result<Vec<OwnedFd>> {
    let connect = |_| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map(OwnedFd::from);
    (0..sockets).map(connect).collect()
}

/// A line of the task's log, and how far it is: the share of this pass over memory.
fn report(context: &TaskContext, status: &MigrationStatus) {
    let line = StatusLine(status).to_string();
    context.log(&line);
    let (sent, left) = (status.sent_bytes, status.remaining_bytes);
    let whole = sent.saturating_add(left).max(1);
    let percent = (sent.saturating_mul(100) / whole).min(99);
    context.progress(percent as u8, &line);
    context.tell_move(status.into());
}
