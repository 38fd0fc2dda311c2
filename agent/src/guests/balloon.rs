//! Memory that a guest is asked to give back: at once if it runs, and at each start.
//!
//! What it has given back is not given to other guests, for it may take it back when it runs out.

use uuid::Uuid;

use super::{GuestError, Guests};
use crate::domain::Guest;

impl Guests {
    /// Asks a guest of this node to keep to `target_mib` of its RAM; `None`: it may have all.
    ///
    /// # Errors
    /// [`GuestError::Invalid`], [`GuestError::Placement`], [`GuestError::Incomplete`],
    /// [`GuestError::Busy`], [`GuestError::Vmm`], [`GuestError::Store`]; nothing has changed then.
    pub async fn set_memory_target(
        &self,
        guest: &Guest,
        target_mib: Option<u64>,
    ) -> Result<Guest, GuestError> {
        guest.may_start_on(&self.resources().node)?;
        if guest.incomplete {
            return Err(GuestError::Incomplete(guest.name.to_string()));
        }
        if let Some(target_mib) = target_mib {
            guest.check_memory_target(target_mib)?;
        }
        let _operation = self.operate(guest)?;
        let now = self.record_memory_target(guest.uuid, target_mib).await?;
        if self.status(guest.uuid).state.has_process()
            && let Err(error) = self.inflate(&now).await
        {
            self.record_memory_target(guest.uuid, guest.memory_target_mib)
                .await?;
            return Err(error);
        }
        self.tell_changed(&now);
        Ok(now)
    }

    async fn record_memory_target(
        &self,
        uuid: Uuid,
        target_mib: Option<u64>,
    ) -> Result<Guest, GuestError> {
        let key = uuid.to_string();
        let updated = self.records().update(&key, |guest| {
            guest.memory_target_mib = target_mib;
        });
        let updated = updated.await?.ok_or(GuestError::NotFound(key))?;
        Ok(updated.value)
    }

    async fn inflate(&self, guest: &Guest) -> Result<(), GuestError> {
        let client = self.client(guest.uuid);
        // Its record may say what it is to have after its next start.
        let memory_mib = client.info().await?.memory_mib;
        Ok(client.set_balloon(guest.balloon_mib(memory_mib)).await?)
    }
}
