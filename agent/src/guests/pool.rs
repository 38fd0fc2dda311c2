//! A pool goes: not while a guest needs it, or by force.

use super::{GuestError, Guests};
use crate::domain::{Guest, PoolName, PoolRecord, Wanted};
use crate::names::some_of;
use crate::storage::StorageError;

impl Guests {
    /// Forgets a pool; what is in it stays. With `force` also one that guests, which are off then,
    /// have disks in, or with images, or that cannot be looked at.
    ///
    /// # Errors
    /// [`StorageError::InUse`] says what would be lost; [`StorageError`], [`GuestError::Store`].
    pub async fn delete_pool(&self, name: &PoolName, force: bool) -> Result<(), GuestError> {
        let pools = &self.resources().pools;
        let record = pools.begin_deletion(name).await?;
        let may = self.may_delete(&record, force).await;
        pools.end_deletion(&record, may.is_ok()).await?;
        may
    }

    async fn may_delete(&self, record: &PoolRecord, force: bool) -> Result<(), GuestError> {
        let name = &record.name;
        let users = self.that_use(name).await?;
        let running: Vec<&Guest> = users
            .iter()
            .filter(|guest| guest.wanted == Wanted::Running)
            .collect();
        let refuse = |reason| Err(GuestError::Storage(StorageError::InUse(reason)));
        if !running.is_empty() {
            let names = names(&running);
            return refuse(format!(
                "pool {name} is used by running guests: {names}; stop them"
            ));
        }
        if force {
            return Ok(());
        }
        if !users.is_empty() {
            let names = names(&users.iter().collect::<Vec<_>>());
            return refuse(format!(
                "pool {name} has disks or images of guests: {names}; delete or move them first, or \
                 give the pool up with --force: they cannot start any more then, and its files stay \
                 where they are"
            ));
        }
        if !record.source.holds_disks() {
            // Its files are kept by others.
            return Ok(());
        }
        let images = self
            .resources()
            .pools
            .get(name)
            .await?
            .list_images()
            .await?;
        if images.is_empty() {
            return Ok(());
        }
        let count = images.len();
        refuse(format!(
            "pool {name} has {count} images; delete them first, or give the pool up with --force: \
             its files stay where they are"
        ))
    }
}

fn names(guests: &[&Guest]) -> String {
    let names: Vec<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
    some_of(&names)
}
