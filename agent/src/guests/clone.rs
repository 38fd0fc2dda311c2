//! A copy of a guest that is off: all of it or nothing, as with any new guest.
//!
//! Its disks are copied here, where the original is. One that is to be on another node goes there by
//! its record, when its disks are complete in pools that both have.

use std::collections::BTreeMap;

use serde_json::json;
use uuid::Uuid;

use super::machine::Reading;
use super::{Created, GuestError, GuestState, Guests};
use crate::clock::now_unix_ms;
use crate::domain::{CloneSpec, Guest, PoolName, TaskKind, TaskSubject};
use crate::tasks::{Failure, TaskContext};

const OFF: [GuestState; 2] = [GuestState::Stopped, GuestState::Crashed];
const HINT: &str = "stop it first: while it runs its disks change";

impl Guests {
    /// Begins to copy a guest. What cannot be is refused before anything is written.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn clone_guest(
        &self,
        original: &Guest,
        spec: &CloneSpec,
        user: &str,
    ) -> Result<Created, GuestError> {
        let (reading, original) = self.begin_to_read(original).await?;
        let mut clone = spec.plan(&original, Uuid::new_v4(), now_unix_ms());
        self.fit_copies(&mut clone).await?;
        let to = spec.node.as_deref();
        let to = to.filter(|to| *to != self.resources().node);
        match to {
            Some(to) => self.require_reach(&clone, to).await?,
            None => self.require_undrained().await?,
        }
        self.require_space_for_copies(&original, &clone).await?;
        let networks = self.networks().of_interfaces(&clone.interfaces).await?;
        let operation = self.operate(&clone)?;
        self.insert(&clone, &networks).await?;
        self.tell_changed(&clone);
        let (guests, guest, to) = (self.clone(), clone.clone(), to.map(str::to_owned));
        let subject = TaskSubject::from(&guest);
        let tasks = &self.resources().tasks;
        let begun = tasks.start(TaskKind::CloneGuest, subject, user, |context| async move {
            let (_operation, _reading) = (operation, reading);
            let to = to.as_deref();
            guests.clone_now(&original, &clone, to, &context).await?;
            Ok(json!({ "uuid": clone.uuid }))
        });
        match begun.await {
            Ok(task) => Ok(Created { guest, task }),
            Err(error) => {
                self.remove(&guest).await?;
                Err(error.into())
            }
        }
    }

    /// The right to read the disks of a guest of this node that is off, and its record since then.
    pub(super) async fn begin_to_read(
        &self,
        guest: &Guest,
    ) -> Result<(Reading, Guest), GuestError> {
        self.require(guest, &OFF, HINT)?;
        let reading = self.read(guest)?;
        let guest = self.find(&guest.uuid.to_string()).await?.value;
        guest.may_start_on(&self.resources().node)?;
        if guest.incomplete {
            return Err(GuestError::Incomplete(guest.name.to_string()));
        }
        self.require(&guest, &OFF, HINT)?;
        Ok((reading, guest))
    }

    /// Refuses another node that could not have the clone: its disks would stay behind.
    async fn require_reach(&self, clone: &Guest, to: &str) -> Result<(), GuestError> {
        self.links()?.peers.find(to).await?;
        self.require_shared_disks(clone).await
    }

    /// Makes the copies as their pools hold disks.
    async fn fit_copies(&self, clone: &mut Guest) -> Result<(), GuestError> {
        for disk in &mut clone.disks {
            let pool = self.resources().pools.get(&disk.volume.pool).await?;
            pool.require_disks()?;
            *disk = pool.held_here(disk);
        }
        Ok(())
    }

    async fn require_space_for_copies(
        &self,
        original: &Guest,
        clone: &Guest,
    ) -> Result<(), GuestError> {
        let pools = &self.resources().pools;
        let mut needed_mib: BTreeMap<&PoolName, u64> = BTreeMap::new();
        for (from, to) in original.disks.iter().zip(&clone.disks) {
            let pool = pools.get(&from.volume.pool).await?;
            let need_mib = pool.copy_need_mib(original.uuid, from, to.format).await?;
            *needed_mib.entry(&to.volume.pool).or_default() += need_mib;
        }
        for (pool, needed_mib) in needed_mib {
            pools.get(pool).await?.require_space(needed_mib).await?;
        }
        Ok(())
    }

    async fn clone_now(
        &self,
        original: &Guest,
        clone: &Guest,
        to: Option<&str>,
        context: &TaskContext,
    ) -> Result<(), Failure> {
        let copied = tokio::select! {
            copied = self.copy_disks(original, clone, context) => copied,
            () = context.cancelled() => Err(GuestError::Cancelled),
        };
        let made = match copied {
            Ok(()) => self.release(clone, to).await,
            Err(error) => Err(error),
        };
        let Err(error) = made else { return Ok(()) };
        // What the store could not say it may have done all the same.
        let now = self.find(&clone.uuid.to_string()).await?.value;
        if now.incomplete {
            self.remove(clone).await?;
            return Err(error.into());
        }
        Ok(())
    }

    async fn copy_disks(
        &self,
        original: &Guest,
        clone: &Guest,
        context: &TaskContext,
    ) -> Result<(), GuestError> {
        let pools = &self.resources().pools;
        for (disk, copy) in original.disks.iter().zip(&clone.disks) {
            let from = pools.get(&disk.volume.pool).await?;
            let to = pools.get(&copy.volume.pool).await?;
            let text = format!(
                "copying {} of {} to pool {}",
                disk.id,
                original.name,
                to.name()
            );
            context.log(&text);
            let progress = |percent| context.progress(percent, &text);
            to.require_vacant(clone.uuid, copy).await?;
            let disk = (&from, original.uuid, disk);
            to.copy_volume((clone.uuid, copy), disk, progress).await?;
        }
        Ok(())
    }

    /// The clone is complete, and its node's.
    async fn release(&self, clone: &Guest, to: Option<&str>) -> Result<(), GuestError> {
        if let Some(to) = to {
            // It has no address yet that could stay behind.
            self.ask_for_offer(clone, to, true).await?;
        }
        let node = &self.resources().node;
        let released = self.change_place(clone.uuid, |guest| {
            guest.incomplete = false;
            match to {
                None => Ok(()),
                Some(to) => {
                    guest.begin_move(node, to)?;
                    guest.finish_move(to)
                }
            }
        });
        let guest = released.await?;
        self.tell_changed(&guest);
        Ok(())
    }
}
