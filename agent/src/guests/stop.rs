//! Stop: ask, wait, switch off; and the small commands that need no task.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::machine::Machine;
use super::{GuestError, GuestState, Guests};
use crate::causes::chain;
use crate::domain::{Guest, Task, TaskKind, TaskSubject, Wanted};
use crate::tasks::{Failure, TaskContext};
use crate::vmm_client::VmmError;

/// How long a VMM may take to end when it is switched off.
const POWER_OFF_DEADLINE: Duration = Duration::from_secs(10);
/// How long after a VMM's answer its event may come.
const EVENT_PATIENCE: Duration = Duration::from_secs(2);
/// Longest time that a guest may be given, in seconds.
const DEADLINE_MAX_S: u64 = 3600;

/// How a guest is to be stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopRequest {
    /// Switch it off at once, like pulling its plug.
    pub force: bool,
    /// How long it has for its shutdown, in seconds, at most 3600; absent: as the node says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3600)]
    pub deadline_s: Option<u64>,
}

impl Guests {
    /// Begins to stop a guest. One that waits to be restarted is stopped at once.
    ///
    /// # Errors
    /// [`GuestError::State`], [`GuestError::Busy`], [`GuestError::Invalid`], [`GuestError::Store`].
    pub async fn stop(
        &self,
        guest: &Guest,
        request: &StopRequest,
        user: &str,
    ) -> Result<Task, GuestError> {
        let deadline = self.stop_deadline(request)?;
        let on = [
            GuestState::Starting,
            GuestState::Running,
            GuestState::Paused,
            GuestState::Stopping,
            GuestState::Crashed,
        ];
        self.require(guest, &on, "there is nothing to stop")?;
        let operation = self.operate(guest)?;
        let guests = self.clone();
        let guest = guest.clone();
        let subject = TaskSubject::from(&guest);
        let tasks = &self.resources().tasks;
        let task = tasks.start(TaskKind::StopGuest, subject, user, |context| async move {
            let _operation = operation;
            guests.stop_now(&guest, deadline, &context).await?;
            Ok(json!({ "uuid": guest.uuid }))
        });
        Ok(task.await?)
    }

    /// `None`: at once.
    fn stop_deadline(&self, request: &StopRequest) -> Result<Option<Duration>, GuestError> {
        match request.deadline_s {
            _ if request.force => Ok(None),
            None => Ok(Some(self.resources().stop_deadline)),
            Some(seconds) if seconds <= DEADLINE_MAX_S => Ok(Some(Duration::from_secs(seconds))),
            Some(seconds) => {
                let must = "must be at most 3600 s";
                Err(crate::domain::Invalid::number("deadline_s", seconds, must).into())
            }
        }
    }

    /// The caller holds the guest's operation.
    pub(super) async fn stop_now(
        &self,
        guest: &Guest,
        deadline: Option<Duration>,
        context: &TaskContext,
    ) -> Result<(), Failure> {
        self.want(guest.uuid, Wanted::Stopped).await?;
        self.end_now(guest, deadline, context).await
    }

    /// The same, whatever is wanted of it. The caller holds the guest's operation.
    pub(super) async fn end_now(
        &self,
        guest: &Guest,
        deadline: Option<Duration>,
        context: &TaskContext,
    ) -> Result<(), Failure> {
        let machine = self.machine(guest.uuid);
        let before = machine.status().state;
        if !before.has_process() {
            self.set_state(guest, &machine, GuestState::Stopped, None);
            return Ok(());
        }
        self.set_state(guest, &machine, GuestState::Stopping, None);
        let paused = before == GuestState::Paused;
        if let Some(deadline) = deadline
            && self
                .shut_down(guest, &machine, deadline, paused, context)
                .await?
        {
            return Ok(());
        }
        context.log("switching it off");
        if let Err(error) = self.client(guest.uuid).power_off().await {
            context.log(&chain(&error));
        }
        if !has_ended(&machine, POWER_OFF_DEADLINE).await {
            context.log("its VMM does not end; killing it");
            self.kill(guest);
            if !has_ended(&machine, POWER_OFF_DEADLINE).await {
                return Err(Failure::Failed(self.why_it_stays(guest)));
            }
        }
        Ok(())
    }

    /// Why a guest's process does not end that was killed.
    fn why_it_stays(&self, guest: &Guest) -> String {
        let name = &guest.name;
        match self.resources().pools.troubled(guest) {
            // The kernel closes the files of a process before that is gone.
            Some(pool) => format!(
                "pool {} does not answer, and the process of guest {name}, which waits for it, ends \
                 only when it does: the guest is then off without another command",
                pool.name
            ),
            None => format!("guest {name}: its VMM cannot be killed"),
        }
    }

    /// Whether it shut down in time.
    async fn shut_down(
        &self,
        guest: &Guest,
        machine: &Machine,
        deadline: Duration,
        paused: bool,
        context: &TaskContext,
    ) -> Result<bool, Failure> {
        let client = self.client(guest.uuid);
        if paused {
            // Standing still it would not hear the button.
            let resumed = match self.require_rights(guest).await {
                Ok(()) => client.resume().await.map_err(GuestError::from),
                refused => refused,
            };
            if let Err(error) = resumed {
                context.log(&format!("it cannot be resumed: {}", chain(&error)));
                return Ok(false);
            }
        }
        let seconds = deadline.as_secs();
        context.log(&format!("asking it to shut down; it has {seconds} s"));
        if let Err(error) = client.press_power_button().await {
            context.log(&chain(&error));
            return Ok(false);
        }
        tokio::select! {
            ended = has_ended(machine, deadline) => {
                if !ended {
                    context.log("it has not shut down in time");
                }
                Ok(ended)
            }
            () = context.cancelled() => {
                // It may still shut down; that is then its own doing.
                self.set_state(guest, machine, GuestState::Running, None);
                self.want(guest.uuid, Wanted::Running).await?;
                Err(Failure::Cancelled)
            }
        }
    }

    pub(super) fn kill(&self, guest: &Guest) {
        let process = self
            .resources()
            .supervisor
            .adopt(&self.directory(guest.uuid));
        if let Some(process) = process
            && let Err(error) = process.identity().kill()
        {
            tracing::error!("guest {}: cannot kill its VMM: {error}", guest.name);
        }
    }

    /// Starts the machine anew, as its reset button does.
    ///
    /// # Errors
    /// [`GuestError::State`], [`GuestError::Busy`], [`GuestError::Vmm`].
    pub async fn reset(&self, guest: &Guest) -> Result<(), GuestError> {
        let _operation = self.operate(guest)?;
        let on = [GuestState::Running, GuestState::Paused];
        self.require(guest, &on, "it can be reset when it runs")?;
        Ok(self.client(guest.uuid).reset().await?)
    }

    /// Lets the guest stand still.
    ///
    /// # Errors
    /// [`GuestError::State`], [`GuestError::Busy`], [`GuestError::Vmm`].
    pub async fn pause(&self, guest: &Guest) -> Result<(), GuestError> {
        let _operation = self.operate(guest)?;
        let on = [GuestState::Running, GuestState::Paused];
        self.require(guest, &on, "it can be paused when it runs")?;
        let client = self.client(guest.uuid);
        self.bring_to(guest, GuestState::Paused, client.pause())
            .await
    }

    /// Lets the guest go on.
    ///
    /// # Errors
    /// [`GuestError::State`], [`GuestError::Busy`], [`GuestError::Vmm`]; of one that stands because
    /// its storage failed [`GuestError::Placement`], [`GuestError::Changed`], [`GuestError::Store`],
    /// too.
    pub async fn resume(&self, guest: &Guest) -> Result<(), GuestError> {
        let _operation = self.operate(guest)?;
        let on = [GuestState::Running, GuestState::Paused];
        self.require(guest, &on, "it can be resumed when it is paused")?;
        self.require_rights(guest).await?;
        let client = self.client(guest.uuid);
        self.bring_to(guest, GuestState::Running, client.resume())
            .await
    }

    /// Asks the VMM, and waits until its event shows. Events say what the guest does in their
    /// order: one that stands again at once, for want of space, has done so before the answer is
    /// here.
    pub(super) async fn bring_to(
        &self,
        guest: &Guest,
        state: GuestState,
        request: impl Future<Output = Result<(), VmmError>>,
    ) -> Result<(), GuestError> {
        let machine = self.machine(guest.uuid);
        let before = machine.status();
        request.await?;
        let mut status = machine.subscribe();
        let shown =
            status.wait_for(|now| now.state == state || now.since_unix_ms != before.since_unix_ms);
        if tokio::time::timeout(EVENT_PATIENCE, shown).await.is_err() {
            self.set_state(guest, &machine, state, None);
        }
        Ok(())
    }

    /// Attaches to the guest's serial port.
    ///
    /// # Errors
    /// [`GuestError::State`], [`GuestError::Vmm`].
    pub async fn attach_console(
        &self,
        guest: &Guest,
    ) -> Result<crate::vmm_client::Console, GuestError> {
        let on = [
            GuestState::Running,
            GuestState::Paused,
            GuestState::Stopping,
        ];
        self.require(
            guest,
            &on,
            "start it first; `pindah guest log` shows what it wrote",
        )?;
        Ok(self.client(guest.uuid).attach_serial().await?)
    }
}

/// Whether it has no process any more, or has none soon.
pub(super) async fn has_ended(machine: &Machine, deadline: Duration) -> bool {
    let mut status = machine.subscribe();
    let ended = status.wait_for(|status| !status.state.has_process());
    tokio::time::timeout(deadline, ended).await.is_ok()
}
