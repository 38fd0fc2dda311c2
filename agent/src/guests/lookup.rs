//! Guests by name or UUID, one or many, and changes to their records.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{GuestError, GuestState, Guests};
use crate::domain::{Guest, GuestEdit, GuestName, ImageRef, NameOwner, PoolName};
use crate::store::{Collection, Outcome, Revision, Stored, Transaction, encode};

impl Guests {
    /// The guest with this name or UUID.
    ///
    /// # Errors
    /// [`GuestError::NotFound`], [`GuestError::Store`].
    pub async fn find(&self, name_or_uuid: &str) -> Result<Stored<Guest>, GuestError> {
        let uuid = match Uuid::parse_str(name_or_uuid) {
            Ok(uuid) => Some(uuid),
            Err(_) if crate::domain::is_label(name_or_uuid) => {
                let names = Collection::<NameOwner>::new(self.resources().store.clone());
                let owner = names.get(name_or_uuid).await?;
                owner.map(|owner| owner.value.uuid)
            }
            Err(_) => None,
        };
        let found = match uuid {
            Some(uuid) => self.by_uuid(uuid).await?,
            None => None,
        };
        found.ok_or_else(|| GuestError::not_found(name_or_uuid))
    }

    /// The guest with this UUID, if there is one.
    ///
    /// # Errors
    /// [`GuestError::Store`].
    pub async fn by_uuid(&self, uuid: Uuid) -> Result<Option<Stored<Guest>>, GuestError> {
        Ok(self.records().get(&uuid.to_string()).await?)
    }

    /// At most `limit` guests after this UUID, and whether there are more.
    ///
    /// # Errors
    /// [`GuestError::Store`].
    pub async fn list(
        &self,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<(Vec<Stored<Guest>>, bool), GuestError> {
        let after = after.map(|uuid| uuid.to_string());
        Ok(self.records().list(after.as_deref(), limit).await?)
    }

    /// A guest that needs this image of a pool for its start: of this node, if the pool is the
    /// node's own.
    ///
    /// # Errors
    /// [`GuestError::Store`].
    pub async fn that_boots(&self, image: &ImageRef) -> Result<Option<GuestName>, GuestError> {
        let guests = self.records().all().await?;
        let pool = image.pool_or_local();
        let records = self.resources().pools.records().await?;
        let shared = records
            .iter()
            .any(|record| record.name == pool && record.source.is_shared());
        let node = &self.resources().node;
        let boots = |guest: &Guest| {
            let mut images = guest.boot_images().into_iter();
            let same = images.any(|one| one.file == image.file && one.pool_or_local() == pool);
            same && (shared || guest.node == *node)
        };
        let found = guests.into_iter().find(|stored| boots(&stored.value));
        Ok(found.map(|stored| stored.value.name))
    }

    /// The pools that guests which run on this node use.
    ///
    /// # Errors
    /// [`GuestError::Store`].
    pub async fn pools_in_use(&self) -> Result<BTreeSet<PoolName>, GuestError> {
        let mut used = BTreeSet::new();
        for (uuid, status) in self.statuses() {
            if status.state.has_process()
                && let Some(stored) = self.records().get(&uuid.to_string()).await?
            {
                used.extend(stored.value.needed_pools());
            }
        }
        Ok(used)
    }

    /// The guests whose disks, or images for their start, are in a pool.
    ///
    /// # Errors
    /// [`GuestError::Store`].
    pub async fn that_use(&self, pool: &PoolName) -> Result<Vec<Guest>, GuestError> {
        let guests = self.records().all().await?.into_iter();
        let guests = guests.map(|stored| stored.value);
        Ok(guests
            .filter(|guest| guest.pools().contains(pool))
            .collect())
    }

    /// Changes a guest's record if it is still the one of `revision`. Returns it, and whether the
    /// running guest must start anew for that.
    ///
    /// # Errors
    /// [`GuestError::Invalid`], [`GuestError::Changed`], [`GuestError::NameTaken`],
    /// [`GuestError::Store`].
    pub async fn edit(
        &self,
        stored: &Stored<Guest>,
        edit: &GuestEdit,
    ) -> Result<(Stored<Guest>, bool), GuestError> {
        let (edited, restart) = edit.apply(&stored.value)?;
        let id = edited.uuid.to_string();
        let key = Collection::<Guest>::key(&id);
        let mut transaction = Transaction::new()
            .if_unchanged(&key, stored.revision)
            .put(&key, encode(&key, &edited)?);
        let renamed = edited.name != stored.value.name;
        if renamed {
            let new = Collection::<NameOwner>::key(edited.name.as_str());
            let old = Collection::<NameOwner>::key(stored.value.name.as_str());
            let owner = NameOwner { uuid: edited.uuid };
            let owner = encode(&new, &owner)?;
            transaction = transaction.if_absent(&new).put(&new, owner).delete(old);
        }
        match self.resources().store.commit(transaction).await? {
            Outcome::Committed(revision) => {
                self.tell_changed(&edited);
                if edited.cpu_limits != stored.value.cpu_limits {
                    self.limit_if_running(&edited).await;
                }
                let running = self.status(edited.uuid).state.has_process();
                let value = edited;
                Ok((Stored { value, revision }, restart && running))
            }
            Outcome::Conflict => {
                let now = self.records().get(&id).await?;
                let unchanged = now.is_some_and(|now| now.revision == stored.revision);
                if renamed && unchanged {
                    Err(GuestError::NameTaken(edited.name.to_string()))
                } else {
                    Err(GuestError::Changed(stored.value.name.to_string()))
                }
            }
        }
    }

    /// Writes the record if it is still the one of `revision` and, in a cluster, this node has
    /// its lease.
    pub(super) async fn swap_under_lease(
        &self,
        guest: &Guest,
        revision: Revision,
    ) -> Result<Revision, GuestError> {
        self.swap_under_lease_if(Transaction::new(), guest, revision)
            .await
    }

    /// The same, if the conditions of `guard` hold, too.
    pub(super) async fn swap_under_lease_if(
        &self,
        guard: Transaction,
        guest: &Guest,
        revision: Revision,
    ) -> Result<Revision, GuestError> {
        let key = Collection::<Guest>::key(&guest.uuid.to_string());
        let mut swap = guard
            .if_unchanged(&key, revision)
            .put(&key, encode(&key, guest)?);
        if let Some(presence) = &self.resources().presence {
            swap = presence.guard(swap).await?;
        }
        match self.resources().store.commit(swap).await? {
            Outcome::Committed(revision) => Ok(revision),
            Outcome::Conflict => Err(GuestError::Changed(guest.name.to_string())),
        }
    }

    /// Refuses a guest that does something in which `hint` is to be done first.
    pub(super) fn require(
        &self,
        guest: &Guest,
        states: &[GuestState],
        hint: &'static str,
    ) -> Result<(), GuestError> {
        let state = self.status(guest.uuid).state;
        if states.contains(&state) {
            return Ok(());
        }
        let name = guest.name.to_string();
        Err(GuestError::State { name, state, hint })
    }
}
