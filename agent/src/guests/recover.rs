//! After the agent's start: find the guests that run, start those that should, remove what was
//! half-made.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use pindah_vmm_api::{Initiator, RunState};
use uuid::Uuid;

use super::ending::SHUT_ITSELF_DOWN;
use super::{GuestError, GuestState, Guests, StopRequest};
use crate::causes::chain;
use crate::domain::{Disk, Guest, Wanted};
use crate::store::StoreError;
use crate::supervisor::{Direct, GuestProcess};

/// How long guests wait for the cluster's majority before they start without it.
const MAJORITY_PATIENCE: Duration = Duration::from_secs(30);

impl Guests {
    /// Brings this node's guests to where intent says. Those that run go on and notice nothing.
    /// `host_restarted`: the host has started since an agent last ran here.
    ///
    /// # Errors
    /// [`GuestError::Store`].
    pub async fn recover(&self, host_restarted: bool) -> Result<(), GuestError> {
        let mut seen = HashSet::new();
        let current = self.resources().store.settled(Duration::ZERO).await;
        self.recover_unseen(host_restarted, &mut seen).await?;
        if current {
            return self.remove_strays().await;
        }
        // What this node remembers may be old: look again when the cluster has its majority.
        let guests = self.clone();
        tokio::spawn(async move {
            while !guests.resources().store.settled(MAJORITY_PATIENCE).await {}
            if let Err(error) = guests.recover_unseen(host_restarted, &mut seen).await {
                tracing::error!("{}", chain(&error));
            }
        });
        Ok(())
    }

    /// Those of this node's guests that are not in `seen` yet.
    async fn recover_unseen(
        &self,
        host_restarted: bool,
        seen: &mut HashSet<Uuid>,
    ) -> Result<(), GuestError> {
        let mut to_start = Vec::new();
        for stored in self.records().all().await? {
            let guest = stored.value;
            let known = self.status(guest.uuid).state.has_process();
            if guest.is_moving_to(&self.resources().node) && !known {
                self.adopt_if_it_arrives(&guest).await;
                continue;
            }
            if guest.node != self.resources().node || known || !seen.insert(guest.uuid) {
                continue;
            }
            if guest.incomplete {
                tracing::warn!("guest {} was never completed; removing it", guest.name);
                match self.remove(&guest).await {
                    // The next start of the agent tries it again.
                    Err(GuestError::Store(StoreError::NoMajority)) => {}
                    Err(error @ GuestError::Storage(_)) => {
                        tracing::error!("guest {}: {}", guest.name, chain(&error));
                    }
                    removed => removed?,
                }
                continue;
            }
            let (guests, uuid) = (self.clone(), guest.uuid);
            tokio::spawn(async move { guests.record_later(uuid).await });
            let unsettled = |disk: &Disk| disk.spare.is_some() || disk.growing_to_mib.is_some();
            if guest.disks.iter().any(unsettled) {
                self.settle_disks_later(uuid);
            }
            let directory = self.directory(guest.uuid);
            if let Some(process) = self.resources().supervisor.adopt(&directory) {
                self.adopt(&guest, process).await;
                if guest.moving_to.is_some() {
                    self.finish_move_later(guest);
                }
                continue;
            }
            let guest = self.end_while_away(guest).await?;
            if guest.moving_to.is_some() {
                self.finish_move_later(guest);
                continue;
            }
            let autostart = host_restarted && guest.autostart.enabled && !guest.template;
            if self.wanted(&guest) == Wanted::Running || autostart {
                to_start.push(guest);
            }
        }
        to_start.sort_by_key(|guest| guest.autostart.order);
        let guests = self.clone();
        tokio::spawn(async move { guests.start_in_order(to_start).await });
        Ok(())
    }

    async fn adopt_if_it_arrives(&self, guest: &Guest) {
        let directory = self.directory(guest.uuid);
        if let Some(process) = self.resources().supervisor.adopt(&directory) {
            let operation = self.machine(guest.uuid).operate().await;
            self.adopt_arrival(guest, process, operation);
        }
    }

    fn finish_move_later(&self, guest: Guest) {
        let guests = self.clone();
        tokio::spawn(async move {
            let machine = guests.machine(guest.uuid);
            let _operation = machine.operate().await;
            // A drain that goes on may have finished it.
            let now = guests.find(&guest.uuid.to_string()).await;
            guests
                .finish_move_of(&now.map_or(guest, |now| now.value))
                .await;
        });
    }

    /// Takes note of how a guest ended that has no process. One that has switched itself off since an
    /// agent looked is not wanted to run any more.
    async fn end_while_away(&self, mut guest: Guest) -> Result<Guest, GuestError> {
        let by = Direct::switched_off_by(&self.directory(guest.uuid));
        if guest.wanted == Wanted::Running && by == Some(Initiator::Guest) {
            self.want(guest.uuid, Wanted::Stopped).await?;
            guest.wanted = Wanted::Stopped;
            let machine = self.machine(guest.uuid);
            let reason = Some(SHUT_ITSELF_DOWN);
            self.set_state(&guest, &machine, GuestState::Stopped, reason);
        }
        self.clean_up(&guest).await;
        Ok(guest)
    }

    async fn adopt(&self, guest: &Guest, process: GuestProcess) {
        let machine = self.machine(guest.uuid);
        machine.set_pid(process.identity().pid);
        let state = match self.client(guest.uuid).info().await {
            Ok(info) => {
                self.limit_disks(guest, &info.devices).await;
                match info.state {
                    RunState::Paused => GuestState::Paused,
                    _ => GuestState::Running,
                }
            }
            Err(error) => {
                tracing::warn!("guest {}: {}", guest.name, chain(&error));
                GuestState::Running
            }
        };
        tracing::info!(
            "guest {} runs as process {}",
            guest.name,
            process.identity().pid
        );
        self.set_state(guest, &machine, state, None);
        self.resources().pools.note_attached(guest);
        if let Err(error) = self.networks().connect(guest).await {
            tracing::error!("guest {}: {}", guest.name, chain(&error));
        }
        self.contain(guest, process.identity().pid).await;
        self.watch(guest, process);
        if self.wanted(guest) == Wanted::Stopped {
            // Its stop was under way when the agent before us ended.
            let request = StopRequest::default();
            if let Err(error) = self.stop(guest, &request, "pindahd").await {
                tracing::error!("guest {}: {}", guest.name, chain(&error));
            }
        }
    }

    async fn start_in_order(&self, guests: Vec<Guest>) {
        // After a power cut the nodes of a cluster find together first.
        self.resources().store.settled(MAJORITY_PATIENCE).await;
        for guest in guests {
            let Some(guest) = self.still_to_start(&guest).await else {
                continue;
            };
            match self.start(&guest, "pindahd").await {
                Ok(task) => {
                    let ended = self
                        .resources()
                        .tasks
                        .wait(task.id, Duration::from_secs(60));
                    if let Ok(Some(task)) = ended.await
                        && let Some(error) = task.error
                    {
                        tracing::error!("guest {}: {error}", guest.name);
                        self.retry(&guest);
                    }
                }
                Err(error) => {
                    tracing::error!("guest {}: {}", guest.name, chain(&error));
                    self.retry(&guest);
                }
            }
            tokio::time::sleep(Duration::from_secs(guest.autostart.delay_s.into())).await;
        }
    }

    /// The guest as it is now, unless it was stopped, moved or deleted while we waited.
    async fn still_to_start(&self, guest: &Guest) -> Option<Guest> {
        let now = self.records().get(&guest.uuid.to_string()).await;
        let now = now.ok().flatten()?.value;
        let unchanged = now.node == guest.node && self.wanted(&now) == self.wanted(guest);
        unchanged.then_some(now)
    }

    /// A guest that should run and does not start is tried again, less and less often.
    fn retry(&self, guest: &Guest) {
        tokio::spawn(self.restart_later(guest.uuid, 4));
    }

    /// Directories of guests that are no more, or another node's.
    async fn remove_strays(&self) -> Result<(), GuestError> {
        let directory = &self.resources().directory;
        let Ok(entries) = fs::read_dir(directory) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str() else { continue };
            let process = self.resources().supervisor.adopt(&entry.path());
            let record = self.records().get(id).await?;
            if let Some(guest) = record.map(|stored| stored.value) {
                let node = &self.resources().node;
                if guest.node != *node && !guest.is_moving_to(node) {
                    tracing::warn!("guest {} is node {}'s", guest.name, guest.node);
                    if let Some(process) = process {
                        self.end_process(&guest, process).await;
                    }
                    self.forget(&guest).await;
                }
            } else if process.is_none() {
                tracing::warn!("removing {}: no guest has it", entry.path().display());
                if let Err(error) = fs::remove_dir_all(entry.path()) {
                    tracing::warn!("cannot remove {}: {error}", entry.path().display());
                }
            }
        }
        Ok(())
    }
}
