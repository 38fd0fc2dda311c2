//! A new guest: its name first, then its disks, and all of it or nothing.

use std::collections::BTreeMap;

use serde_json::json;
use uuid::Uuid;

use super::{GuestError, Guests};
use crate::clock::now_unix_ms;
use crate::cluster::cpu_baseline;
use crate::domain::{
    Boot, Guest, GuestSpec, LastMove, MacOwner, NameOwner, Network, Plan, PoolName, Task, TaskKind,
    TaskSubject,
};
use crate::network::if_unchanged;
use crate::storage::{Source, StorageError, volume_need_mib, volume_size_mib};
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
        let resources = self.resources();
        let default_pool = resources.pools.default_pool();
        let mut plan = spec.plan(uuid, &resources.node, default_pool, now_unix_ms())?;
        let pools = resources.pools.records().await?;
        spec.fit_disks(&mut plan.guest, &pools)?;
        if spec.baseline.is_none() {
            plan.guest.cpu_features = cpu_baseline(&resources.store).await?;
        }
        let sources = self.check_sources(&mut plan).await?;
        let interfaces = &plan.guest.interfaces;
        let networks = self.networks().of_interfaces(interfaces).await?;
        if spec.start {
            self.require_memory(&plan.guest).await?;
        }
        let operation = self.operate(&plan.guest)?;
        self.insert(&plan.guest, &networks).await?;
        self.tell_changed(&plan.guest);
        let guests = self.clone();
        let guest = plan.guest.clone();
        let start = spec.start;
        let subject = TaskSubject::from(&guest);
        let tasks = &self.resources().tasks;
        let begun = tasks.start(TaskKind::CreateGuest, subject, user, |context| async move {
            let _operation = operation;
            guests.complete(&plan.guest, &sources, &context).await?;
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

    /// Images that are there, sizes that fit, space for all of it. Returns for each disk what it
    /// is copied from, if it is.
    async fn check_sources(&self, plan: &mut Plan) -> Result<Vec<Option<Source>>, GuestError> {
        let pools = &self.resources().pools;
        let mut sources = Vec::new();
        let mut needed_mib: BTreeMap<PoolName, u64> = BTreeMap::new();
        for (disk, image) in plan.guest.disks.iter_mut().zip(&plan.sources) {
            let source = match image {
                Some(image) => Some(pools.find_image(image).await?),
                None => None,
            };
            let image = source.as_ref().map(|source| &source.image);
            let pool = pools.get(&disk.volume.pool).await?;
            let size_mib = volume_size_mib(disk, image)?;
            disk.size_mib = pool.record().source.disk_size_mib(size_mib);
            let needed_mib = needed_mib.entry(disk.volume.pool.clone()).or_default();
            *needed_mib += volume_need_mib(disk, image);
            sources.push(source);
        }
        for (pool, needed_mib) in needed_mib {
            pools.get(&pool).await?.require_space(needed_mib).await?;
        }
        if let Boot::Kernel { kernel, initrd, .. } = &mut plan.guest.boot {
            for image in std::iter::once(kernel).chain(initrd) {
                let found = pools.find_image(image).await?;
                image.pool = Some(found.pool.name().clone());
            }
        }
        Ok(sources)
    }

    /// Name, MAC addresses and record in one step, while its networks are what they are.
    pub(super) async fn insert(
        &self,
        guest: &Guest,
        networks: &[Stored<Network>],
    ) -> Result<(), GuestError> {
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
        let transaction = self.resources().pools.guard(transaction, guest).await?;
        match self.resources().store.commit(transaction).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict => Err(self.why_not_inserted(guest).await?),
        }
    }

    async fn why_not_inserted(&self, guest: &Guest) -> Result<GuestError, GuestError> {
        // A pool may have gone in the meantime, which this tells.
        let pools = &self.resources().pools;
        pools.guard(Transaction::new(), guest).await?;
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

    async fn complete(
        &self,
        guest: &Guest,
        sources: &[Option<Source>],
        context: &TaskContext,
    ) -> Result<(), Failure> {
        let made = tokio::select! {
            made = self.make_disks(guest, sources, context) => made,
            () = context.cancelled() => Err(GuestError::Cancelled),
        };
        if let Err(error) = made {
            self.remove(guest).await?;
            return Err(error.into());
        }
        Ok(())
    }

    async fn make_disks(
        &self,
        guest: &Guest,
        sources: &[Option<Source>],
        context: &TaskContext,
    ) -> Result<(), GuestError> {
        let uuid = guest.uuid;
        let pools = self.resources().pools.of(guest).await?;
        for (disk, source) in guest.disks.iter().zip(sources) {
            let to = format!("{} in pool {}", disk.id, disk.volume.pool);
            let text = match source {
                Some(source) => format!("copying {} to {to}", source.image.name),
                None => format!("making {to}"),
            };
            context.log(&text);
            let progress = |percent| context.progress(percent, &text);
            let pool = pools.get(&disk.volume.pool)?;
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
        let spares = guest.disks.iter().filter_map(|disk| disk.spare.as_ref());
        for pool in guest.disk_pools().into_iter().chain(spares) {
            match self.resources().pools.get(pool).await {
                Ok(pool) => pool.delete_volumes(guest.uuid).await?,
                // It was forgotten with all that is in it.
                Err(StorageError::NoPool(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
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
                .delete(Collection::<NameOwner>::key(now.value.name.as_str()))
                .delete(Collection::<LastMove>::key(&id));
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
