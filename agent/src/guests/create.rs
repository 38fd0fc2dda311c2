//! A new guest: its name first, then its disks, and all of it or nothing.

use serde_json::json;
use uuid::Uuid;

use super::{GuestError, Guests};
use crate::clock::now_unix_ms;
use crate::domain::{Boot, Guest, GuestSpec, MacOwner, NameOwner, Network, Plan, Task, TaskKind};
use crate::network::if_unchanged;
use crate::store::{Collection, Outcome, Stored, Transaction, encode};
use crate::tasks::{Failure, TaskContext};

/// What was begun.
#[derive(Clone, Debug)]
pub struct Created {
    /// The guest, incomplete.
    pub guest: Guest,
    /// What completes it.
    pub task: Task,
}

impl Guests {
    /// Begins to create a guest. What cannot be is refused before anything is written.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn create(&self, spec: &GuestSpec, user: &str) -> Result<Created, GuestError> {
        if self.resources().witness {
            return Err(GuestError::Witness(self.resources().node.clone()));
        }
        let uuid = Uuid::new_v4();
        let mut plan = spec.plan(uuid, &self.resources().node, now_unix_ms())?;
        let interfaces = &plan.guest.interfaces;
        let networks = self.networks().of_interfaces(interfaces).await?;
        self.check_sources(&mut plan)?;
        if spec.start {
            self.require_memory(&plan.guest).await?;
        }
        let operation = self.operate(&plan.guest)?;
        self.insert(&plan.guest, &networks).await?;
        self.tell_changed(&plan.guest);
        let guests = self.clone();
        let guest = plan.guest.clone();
        let start = spec.start;
        let name = guest.name.to_string();
        let tasks = &self.resources().tasks;
        let begun = tasks.start(TaskKind::CreateGuest, &name, user, |context| async move {
            let _operation = operation;
            guests.complete(&plan, &context).await?;
            if start {
                guests.start_now(uuid, &context).await?;
            }
            Ok(json!({ "uuid": uuid }))
        });
        match begun.await {
            Ok(task) => Ok(Created { guest, task }),
            Err(error) => {
                self.remove(&guest).await?;
                Err(error.into())
            }
        }
    }

    /// Images that are there, sizes that fit, space for all of it.
    fn check_sources(&self, plan: &mut Plan) -> Result<(), GuestError> {
        let pool = &self.resources().pool;
        let mut needed_mib = 0;
        for (disk, source) in plan.guest.disks.iter_mut().zip(&plan.sources) {
            disk.size_mib = pool.volume_size(disk, source.as_ref())?;
            needed_mib += match disk.format {
                pindah_vmm_api::DiskFormat::Raw => disk.size_mib,
                pindah_vmm_api::DiskFormat::Qcow2 => 1,
            };
        }
        pool.require_space(needed_mib)?;
        if let Boot::Kernel { kernel, initrd, .. } = &plan.guest.boot {
            for image in [Some(kernel), initrd.as_ref()].into_iter().flatten() {
                pool.image(image)?;
            }
        }
        Ok(())
    }

    /// Name, MAC addresses and record in one step, while its networks are what they are.
    async fn insert(&self, guest: &Guest, networks: &[Stored<Network>]) -> Result<(), GuestError> {
        let record = Collection::<Guest>::key(&guest.uuid.to_string());
        let name = Collection::<NameOwner>::key(guest.name.as_str());
        let owner = NameOwner { uuid: guest.uuid };
        let mut transaction = Transaction::new()
            .if_absent(&name)
            .if_absent(&record)
            .put(&name, encode(&name, &owner)?)
            .put(&record, encode(&record, guest)?);
        for interface in &guest.interfaces {
            let mac = Collection::<MacOwner>::key(&MacOwner::id(&interface.mac));
            let owner = encode(&mac, &MacOwner { uuid: guest.uuid })?;
            transaction = transaction.if_absent(&mac).put(&mac, owner);
        }
        let transaction = if_unchanged(transaction, networks);
        match self.resources().store.commit(transaction).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict => Err(self.why_not_inserted(guest).await?),
        }
    }

    async fn why_not_inserted(&self, guest: &Guest) -> Result<GuestError, GuestError> {
        let names = Collection::<NameOwner>::new(self.resources().store.clone());
        if names.get(guest.name.as_str()).await?.is_some() {
            return Ok(GuestError::NameTaken(guest.name.to_string()));
        }
        let macs = Collection::<MacOwner>::new(self.resources().store.clone());
        for interface in &guest.interfaces {
            if macs.get(&MacOwner::id(&interface.mac)).await?.is_some() {
                return Ok(GuestError::MacTaken(interface.mac.clone()));
            }
        }
        Ok(GuestError::Changed(guest.name.to_string()))
    }

    async fn complete(&self, plan: &Plan, context: &TaskContext) -> Result<(), Failure> {
        let made = tokio::select! {
            made = self.make_disks(plan, context) => made,
            () = context.cancelled() => Err(GuestError::Cancelled),
        };
        if let Err(error) = made {
            self.remove(&plan.guest).await?;
            return Err(error.into());
        }
        Ok(())
    }

    async fn make_disks(&self, plan: &Plan, context: &TaskContext) -> Result<(), GuestError> {
        let uuid = plan.guest.uuid;
        for (disk, source) in plan.guest.disks.iter().zip(&plan.sources) {
            let text = match source {
                Some(source) => format!("copying {source} to {}", disk.id),
                None => format!("making {}", disk.id),
            };
            context.log(&text);
            let progress = |percent| context.progress(percent, &text);
            let pool = &self.resources().pool;
            pool.create_volume(uuid, disk, source.as_ref(), progress)
                .await?;
        }
        let key = uuid.to_string();
        let completed = self.records().update(&key, |guest| {
            guest.incomplete = false;
        });
        completed.await?;
        Ok(())
    }

    /// Removes all of a guest that has no process. The record goes last: until then it can be
    /// tried again.
    pub(super) async fn remove(&self, guest: &Guest) -> Result<(), GuestError> {
        self.resources().pool.delete_volumes(guest.uuid)?;
        let directory = self.directory(guest.uuid);
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(|source| GuestError::Io {
                path: directory,
                source,
            })?,
        }
        // It may have been renamed in the meantime.
        let id = guest.uuid.to_string();
        if let Some(now) = self.records().get(&id).await? {
            let mut transaction = Transaction::new()
                .delete(Collection::<Guest>::key(&id))
                .delete(Collection::<NameOwner>::key(now.value.name.as_str()));
            for interface in &now.value.interfaces {
                let mac = MacOwner::id(&interface.mac);
                transaction = transaction.delete(Collection::<MacOwner>::key(&mac));
            }
            self.resources().store.commit(transaction).await?;
        }
        self.machines().remove(&guest.uuid);
        let kind = crate::events::EventKind::GuestDeleted {
            uuid: guest.uuid,
            name: guest.name.to_string(),
        };
        self.resources().events.tell(kind);
        Ok(())
    }
}
