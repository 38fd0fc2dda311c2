//! Limits of what a disk takes of its storage: at once if its guest runs, and at each start.

use pindah_vmm_api::DeviceInfo;

use super::disk_record::find_disk;
use super::{GuestError, Guests};
use crate::causes::chain;
use crate::domain::{DiskLimits, Guest};
use crate::store::Stored;

impl Guests {
    /// Gives a disk of a guest of this node other limits, all of them, if its record is still the
    /// one of `stored`.
    ///
    /// # Errors
    /// [`GuestError::NoDisk`], [`GuestError::Invalid`], [`GuestError::Placement`],
    /// [`GuestError::Incomplete`], [`GuestError::Busy`], [`GuestError::Changed`],
    /// [`GuestError::Vmm`], [`GuestError::Store`]; nothing has changed then.
    pub async fn limit_disk(
        &self,
        stored: &Stored<Guest>,
        id: &str,
        limits: DiskLimits,
    ) -> Result<Stored<Guest>, GuestError> {
        let before = &stored.value;
        before.may_start_on(&self.resources().node)?;
        if before.incomplete {
            return Err(GuestError::Incomplete(before.name.to_string()));
        }
        find_disk(before, id)?;
        limits.check("limits")?;
        let _operation = self.operate(before)?;
        let mut value = before.clone();
        let disk = value.disks.iter_mut().find(|disk| disk.id == id);
        disk.expect("it was found").limits = limits;
        let revision = self.swap_under_lease(&value, stored.revision).await?;
        if self.status(value.uuid).state.has_process() {
            let client = self.client(value.uuid);
            if let Err(error) = client.limit_disk(id, &limits.into()).await {
                self.swap_under_lease(before, revision).await?;
                return Err(error.into());
            }
        }
        self.tell_changed(&value);
        Ok(Stored { value, revision })
    }

    /// Gives the disks of a guest that was found running the limits that its record says: an agent
    /// before us may have ended when it had written them down and not yet applied them.
    pub(super) async fn limit_disks(&self, guest: &Guest, devices: &[DeviceInfo]) {
        for device in devices {
            let DeviceInfo::Disk { id, limits, .. } = device else {
                continue;
            };
            let wanted = guest.disk(id).map(|disk| disk.limits.into());
            let Some(wanted) = wanted.filter(|wanted| wanted != limits) else {
                continue;
            };
            if let Err(error) = self.client(guest.uuid).limit_disk(id, &wanted).await {
                tracing::error!("guest {}: limits of {id}: {}", guest.name, chain(&error));
            }
        }
    }
}
