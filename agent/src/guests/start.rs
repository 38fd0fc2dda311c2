//! Start: claim the guest, give it what it needs, and see its VMM answer.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

use pindah_vmm_api::RunState;
use serde_json::json;

use super::machine::{Machine, Operation, Reading};
use super::{GuestError, GuestState, Guests, seed, vm_config};
use crate::causes::chain;
use crate::domain::{Guest, Task, TaskKind, TaskSubject, Wanted};
use crate::store::{StoreError, Stored};
use crate::supervisor::{Direct, GuestProcess, Purpose};
use crate::tasks::{Failure, TaskContext};

/// How long a VMM may take to run its guest.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How often it is asked whether it does.
const START_POLL: Duration = Duration::from_millis(20);

impl Guests {
    /// Begins to start a guest.
    ///
    /// # Errors
    /// [`GuestError::State`], [`GuestError::Incomplete`], [`GuestError::Busy`],
    /// [`GuestError::NoMemory`], [`GuestError::Store`].
    pub async fn start(&self, guest: &Guest, user: &str) -> Result<Task, GuestError> {
        self.require_startable(guest)?;
        self.require_memory(guest).await?;
        let operation = self.operate(guest)?;
        let guests = self.clone();
        let uuid = guest.uuid;
        let subject = TaskSubject::from(guest);
        let tasks = &self.resources().tasks;
        let task = tasks.start(TaskKind::StartGuest, subject, user, |context| async move {
            let _operation = operation;
            guests.start_now(uuid, &context).await?;
            Ok(json!({ "uuid": uuid }))
        });
        Ok(task.await?)
    }

    /// The right to change what a guest does.
    pub(super) fn operate(&self, guest: &Guest) -> Result<Operation, GuestError> {
        let operation = self.machine(guest.uuid).try_operate();
        operation.ok_or_else(|| GuestError::Busy(guest.name.to_string()))
    }

    /// The right to read a guest's disks.
    pub(super) fn read(&self, guest: &Guest) -> Result<Reading, GuestError> {
        let reading = self.machine(guest.uuid).try_read();
        reading.ok_or_else(|| GuestError::Busy(guest.name.to_string()))
    }

    fn require_startable(&self, guest: &Guest) -> Result<(), GuestError> {
        guest.may_start_on(&self.resources().node)?;
        if self.resources().witness {
            return Err(GuestError::Witness(self.resources().node.clone()));
        }
        if guest.incomplete {
            return Err(GuestError::Incomplete(guest.name.to_string()));
        }
        if guest.template {
            return Err(GuestError::Template(guest.name.to_string()));
        }
        let off = [GuestState::Stopped, GuestState::Crashed];
        self.require(guest, &off, "it can be started when it is off")
    }

    /// The caller holds the guest's operation. What a failed start wanted is taken back.
    pub(super) async fn start_now(
        &self,
        uuid: uuid::Uuid,
        context: &TaskContext,
    ) -> Result<(), Failure> {
        let before = self.find(&uuid.to_string()).await?;
        let wanted_before = before.value.wanted;
        self.machine(uuid).set_crashes(0);
        let started = self.claim_and_boot(before, context).await;
        if started.is_err() && wanted_before == Wanted::Stopped {
            self.want(uuid, Wanted::Stopped).await?;
        }
        Ok(started?)
    }

    async fn claim_and_boot(
        &self,
        stored: Stored<Guest>,
        context: &TaskContext,
    ) -> Result<(), GuestError> {
        self.require_startable(&stored.value)?;
        self.require_memory(&stored.value).await?;
        let guest = self.claim(stored).await?;
        context.log(&format!(
            "node {} runs it, epoch {}",
            guest.node, guest.epoch
        ));
        self.boot(&guest).await?;
        if let Some(pid) = self.status(guest.uuid).pid {
            context.log(&format!("it runs as process {pid}"));
        }
        Ok(())
    }

    /// Writes down that this node runs the guest, while it has its lease; of two that try, one
    /// wins. A guest whose disks nobody else has needs no majority for that.
    pub(super) async fn claim(&self, stored: Stored<Guest>) -> Result<Guest, GuestError> {
        let mut guest = stored.value;
        guest.claim(&self.resources().node)?;
        guest.wanted = Wanted::Running;
        let machine = self.machine(guest.uuid);
        let _intent = machine.intent().await;
        match self.swap_under_lease(&guest, stored.revision).await {
            Ok(_) => {
                self.forget_intent(guest.uuid);
                Ok(guest)
            }
            Err(GuestError::Store(StoreError::NoMajority)) if self.is_local(&guest).await? => {
                tracing::warn!("guest {} starts without a majority", guest.name);
                self.remember(guest.uuid, Wanted::Running)?;
                Ok(guest)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) async fn is_local(&self, guest: &Guest) -> Result<bool, GuestError> {
        let pools = self.resources().pools.records().await?;
        Ok(guest.is_local(&pools))
    }

    /// From off to running, or back to off with nothing left behind. The caller holds the guest's
    /// operation.
    pub(super) async fn boot(&self, guest: &Guest) -> Result<(), GuestError> {
        let machine = self.machine(guest.uuid);
        self.set_state(guest, &machine, GuestState::Starting, None);
        match self.launch(guest, &machine).await {
            Ok(process) => {
                self.set_state(guest, &machine, GuestState::Running, None);
                self.watch(guest, process);
                Ok(())
            }
            Err(error) => {
                self.clean_up(guest).await;
                let reason = chain(&error);
                self.set_state(guest, &machine, GuestState::Stopped, Some(&reason));
                Err(error)
            }
        }
    }

    async fn launch(&self, guest: &Guest, machine: &Machine) -> Result<GuestProcess, GuestError> {
        let mut process = self.spawn(guest, &Purpose::Run).await?;
        machine.set_pid(process.identity().pid);
        match self.wait_until_it_runs(guest, &mut process).await {
            Ok(()) => Ok(process),
            Err(error) => {
                // It may still stand there: nothing is left behind.
                self.end_process(guest, process).await;
                Err(error)
            }
        }
    }

    /// Ends a process, and waits for that.
    pub(super) async fn end_process(&self, guest: &Guest, mut process: GuestProcess) {
        if let Err(error) = process.identity().kill() {
            tracing::warn!("guest {}: cannot end its VMM: {error}", guest.name);
        }
        let _ = process.ended().await;
    }

    /// Starts the guest's VMM with all that it needs.
    pub(super) async fn spawn(
        &self,
        guest: &Guest,
        purpose: &Purpose,
    ) -> Result<GuestProcess, GuestError> {
        let resources = self.resources();
        resources.networks.connect(guest).await?;
        let directory = self.directory(guest.uuid);
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&directory);
        made.map_err(|source| GuestError::Io {
            path: directory.clone(),
            source,
        })?;
        if let Some(cloud_init) = &guest.cloud_init {
            let path = vm_config::seed(&directory);
            let written = seed::write(&path, guest, cloud_init);
            written.map_err(|source| GuestError::Io { path, source })?;
        }
        let pools = resources.pools.of(guest).await?;
        pools.require(guest).await?;
        pools.attach(guest).await?;
        let config = vm_config::vm_config(guest, &pools, &directory)?;
        let process = resources.supervisor.spawn(&directory, &config, purpose)?;
        self.contain(guest, process.identity().pid).await;
        Ok(process)
    }

    async fn wait_until_it_runs(
        &self,
        guest: &Guest,
        process: &mut GuestProcess,
    ) -> Result<(), GuestError> {
        let client = self.client(guest.uuid);
        let running = async {
            loop {
                if let Ok(info) = client.info().await
                    && matches!(info.state, RunState::Running | RunState::Paused)
                {
                    return;
                }
                tokio::time::sleep(START_POLL).await;
            }
        };
        let refused = |reason: String| GuestError::Start {
            name: guest.name.to_string(),
            reason,
        };
        tokio::select! {
            biased;
            _ = process.ended() => {
                Err(refused(Direct::last_words(&self.directory(guest.uuid))))
            }
            () = running => Ok(()),
            () = tokio::time::sleep(START_DEADLINE) => {
                let seconds = START_DEADLINE.as_secs();
                Err(refused(format!("its VMM does not run it after {seconds} s")))
            }
        }
    }

    /// Removes all that is here of a guest that is another node's.
    pub(super) async fn forget(&self, guest: &Guest) {
        self.clean_up(guest).await;
        let directory = self.directory(guest.uuid);
        if let Err(error) = fs::remove_dir_all(&directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", directory.display());
        }
        // Whoever moves it here again waits until nobody has to do with what was here any more.
        self.machine(guest.uuid).set(GuestState::Stopped, None);
    }

    /// Removes what only a running guest needs.
    pub(super) async fn clean_up(&self, guest: &Guest) {
        Direct::forget(&self.directory(guest.uuid));
        self.resources().containment.release(guest.uuid).await;
        self.networks().disconnect(guest).await;
        self.resources().pools.detach(guest).await;
    }
}
