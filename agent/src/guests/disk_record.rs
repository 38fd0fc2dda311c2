//! What a guest's record says of its disks, and what it does not say yet: a change that was cut short
//! is settled by what is found.

use std::time::Duration;

use uuid::Uuid;

use super::{GuestError, Guests};
use crate::causes::chain;
use crate::domain::{Disk, Guest};
use crate::store::{Stored, Transaction};

/// How often a change is tried that others have come before.
const ATTEMPTS: usize = 10;
/// How long a failure to settle a disk waits for the next try.
const RETRY: Duration = Duration::from_secs(10);

/// The disk that a request names.
pub(super) fn find_disk<'a>(guest: &'a Guest, id: &str) -> Result<&'a Disk, GuestError> {
    guest.disk(id).ok_or_else(|| GuestError::NoDisk {
        guest: guest.name.to_string(),
        disk: id.chars().take(64).collect(),
    })
}

impl Guests {
    /// Changes a disk's record, as the node that owns the guest and has its lease.
    pub(super) async fn change_disk(
        &self,
        uuid: Uuid,
        id: &str,
        change: impl Fn(&mut Disk),
    ) -> Result<Guest, GuestError> {
        let mut attempt = 0;
        loop {
            let Stored {
                value: mut guest,
                revision,
            } = self.find(&uuid.to_string()).await?;
            guest.may_start_on(&self.resources().node)?;
            let disk = guest.disks.iter_mut().find(|disk| disk.id == id);
            if let Some(disk) = disk {
                change(disk);
            }
            // A pool that goes takes no disk.
            let pools = &self.resources().pools;
            let guard = pools.guard(Transaction::new(), &guest).await?;
            attempt += 1;
            match self.swap_under_lease_if(guard, &guest, revision).await {
                Ok(_) => {
                    self.tell_changed(&guest);
                    return Ok(guest);
                }
                Err(GuestError::Changed(_)) if attempt < ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Settles what was begun with the guest's disks and not brought to its end. Until that is done,
    /// or the guest is gone.
    pub(super) fn settle_disks_later(&self, uuid: Uuid) {
        let guests = self.clone();
        tokio::spawn(async move {
            loop {
                let operation = guests.machine(uuid).operate().await;
                match guests.settle_disks(uuid).await {
                    Ok(()) | Err(GuestError::NotFound(_) | GuestError::Placement(_)) => return,
                    Err(error) => {
                        tracing::warn!("guest {uuid}: its disks: {}", chain(&error));
                    }
                }
                drop(operation);
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    /// The caller holds the guest's operation.
    async fn settle_disks(&self, uuid: Uuid) -> Result<(), GuestError> {
        self.settle_growth(uuid).await?;
        self.remove_spares(uuid).await
    }
}
