//! A disk goes to another pool while its guest is off.
//!
//! ```text
//! record    pool: a            pool: a, spare: b        pool: b, spare: a        pool: b
//!             │ the move begins  │ the copy is complete   │ the source is gone    │
//!             └────────────────► └──────────────────────► └─────────────────────► done
//! failed, or the agent ended:    spare goes: undone       spare goes: done
//! ```
//!
//! Whatever happens, the pool in the record has the whole disk, and what the spare pool has of it
//! is removed sooner or later.

use serde_json::json;
use uuid::Uuid;

use super::disk_record::find_disk;
use super::{GuestError, GuestState, Guests};
use crate::causes::chain;
use crate::domain::{Disk, Guest, Invalid, PoolName, Task, TaskKind, TaskSubject};
use crate::storage::StorageError;
use crate::store::Stored;
use crate::tasks::{Failure, TaskContext};

const OFF: [GuestState; 2] = [GuestState::Stopped, GuestState::Crashed];
const HINT: &str = "stop it first: its disks move while it is off";

impl Guests {
    /// Begins to move a guest's disk to another pool.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn move_disk(
        &self,
        guest: &Guest,
        id: &str,
        to: &PoolName,
        user: &str,
    ) -> Result<Task, GuestError> {
        let disk = self.movable(guest, id, to)?;
        let pools = &self.resources().pools;
        let from = pools.get(&disk.volume.pool).await?;
        let copy = self.vacant_copy(guest.uuid, disk, to).await?;
        let needed_mib = from.copy_need_mib(guest.uuid, disk, copy.format).await?;
        pools.get(to).await?.require_space(needed_mib).await?;
        let operation = self.operate(guest)?;
        let (guests, uuid) = (self.clone(), guest.uuid);
        let (id, to) = (id.to_owned(), to.clone());
        let subject = TaskSubject::from(guest);
        let tasks = &self.resources().tasks;
        let task = tasks.start(TaskKind::MoveDisk, subject, user, |context| async move {
            let _operation = operation;
            guests.move_disk_now(uuid, &id, &to, &context).await?;
            Ok(json!({ "uuid": uuid, "disk": id, "pool": to }))
        });
        Ok(task.await?)
    }

    fn movable<'a>(
        &self,
        guest: &'a Guest,
        id: &str,
        to: &PoolName,
    ) -> Result<&'a Disk, GuestError> {
        guest.may_start_on(&self.resources().node)?;
        self.require(guest, &OFF, HINT)?;
        if guest.incomplete {
            return Err(GuestError::Incomplete(guest.name.to_string()));
        }
        let disk = find_disk(guest, id)?;
        if disk.volume.pool == *to {
            let must = "must differ from the pool that the disk is in";
            return Err(Invalid::text("pool", to.as_str(), must).into());
        }
        if let Some(pool) = &disk.spare {
            return Err(GuestError::Spare {
                guest: guest.name.to_string(),
                disk: disk.id.clone(),
                pool: pool.clone(),
            });
        }
        Ok(disk)
    }

    /// The caller holds the guest's operation.
    async fn move_disk_now(
        &self,
        uuid: Uuid,
        id: &str,
        to: &PoolName,
        context: &TaskContext,
    ) -> Result<(), Failure> {
        let guest = self.find(&uuid.to_string()).await?.value;
        let disk = self.movable(&guest, id, to)?;
        // From here on what is there is a copy that may be removed.
        let copy = self.vacant_copy(uuid, disk, to).await?;
        let begun = self.change_disk(uuid, id, |disk| {
            disk.spare = Some(to.clone());
            disk.spare_format = (copy.format != disk.format).then_some(copy.format);
        });
        let moved = match begun.await {
            Ok(guest) => {
                let copied = tokio::select! {
                    copied = self.copy_disk(&guest, id, context) => copied,
                    () = context.cancelled() => Err(GuestError::Cancelled),
                };
                match copied {
                    Ok(()) => {
                        let switched = self.change_disk(uuid, id, |disk| {
                            disk.switch_to_spare();
                            disk.size_mib = copy.size_mib;
                        });
                        switched.await.map(|_| ())
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        if moved.is_ok() {
            context.log(&format!(
                "{id} is in pool {to} now; removing the other copy"
            ));
        }
        if let Err(error) = self.remove_spares(uuid).await {
            context.log(&format!("a copy is left and goes later: {}", chain(&error)));
            self.settle_disks_later(uuid);
        }
        Ok(moved?)
    }

    /// The disk as another pool is to hold it, which has nothing in its place.
    async fn vacant_copy(
        &self,
        uuid: Uuid,
        disk: &Disk,
        to: &PoolName,
    ) -> Result<Disk, GuestError> {
        let target = self.resources().pools.get(to).await?;
        let copy = target.held_here(disk);
        target.require_vacant(uuid, &copy).await?;
        Ok(copy)
    }

    async fn copy_disk(
        &self,
        guest: &Guest,
        id: &str,
        context: &TaskContext,
    ) -> Result<(), GuestError> {
        let Some((disk, copy)) = guest
            .disk(id)
            .and_then(|disk| Some((disk, disk.spare_copy()?)))
        else {
            return Err(GuestError::Changed(guest.name.to_string()));
        };
        let pools = &self.resources().pools;
        let from = pools.get(&disk.volume.pool).await?;
        let to = pools.get(&copy.volume.pool).await?;
        let text = format!(
            "copying {id} from pool {} to pool {}",
            from.name(),
            to.name()
        );
        context.log(&text);
        let progress = |percent| context.progress(percent, &text);
        to.copy_volume((guest.uuid, &copy), (&from, guest.uuid, disk), progress)
            .await?;
        Ok(())
    }

    /// Removes what does not count of the guest's disks. The caller holds the guest's operation.
    pub(super) async fn remove_spares(&self, uuid: Uuid) -> Result<(), GuestError> {
        let Stored { value, revision } = self.find(&uuid.to_string()).await?;
        if value.disks.iter().all(|disk| disk.spare.is_none()) {
            return Ok(());
        }
        value.may_start_on(&self.resources().node)?;
        // An old record would name the wrong copy: only the one that can be written counts.
        self.swap_under_lease(&value, revision).await?;
        for disk in &value.disks {
            let Some(copy) = disk.spare_copy() else {
                continue;
            };
            match self.resources().pools.get(&copy.volume.pool).await {
                Ok(pool) => pool.remove_volume(uuid, &copy).await?,
                // It was forgotten with all that is in it.
                Err(StorageError::NoPool(_)) => {}
                Err(error) => return Err(error.into()),
            }
            let key = uuid.to_string();
            let updated = self.records().update(&key, |guest| {
                let same = guest.disks.iter_mut().find(|one| one.id == disk.id);
                if let Some(same) = same {
                    (same.spare, same.spare_format) = (None, None);
                }
            });
            updated.await?;
        }
        Ok(())
    }
}
