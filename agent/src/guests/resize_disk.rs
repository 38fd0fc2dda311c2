//! A disk grows, while its guest runs or is off.
//!
//! ```text
//! record    size: 8            size: 8, growing to: 20        size: 20
//!             │ the growth begins │ the disk has it              │
//!             └─────────────────► └────────────────────────────► done
//! failed, or the agent ended:     what the disk has counts
//! ```
//!
//! Of a guest that runs the VMM grows the disk, and tells it; of one that is off `qemu-img` does. A
//! disk has its old size or the new one, whatever comes in between. One that is a block device grows
//! first in either case, to a multiple of what its pool gives.

use pindah_vmm_api::DeviceInfo;
use serde_json::json;
use uuid::Uuid;

use super::disk_record::find_disk;
use super::{GuestError, GuestState, Guests};
use crate::causes::chain;
use crate::domain::{Disk, Guest, Task, TaskKind, TaskSubject};
use crate::storage::growth_need_mib;
use crate::tasks::{Failure, TaskContext};
use crate::vmm_client::VmmError;

const STATES: [GuestState; 4] = [
    GuestState::Running,
    GuestState::Paused,
    GuestState::Stopped,
    GuestState::Crashed,
];
const HINT: &str = "its disks grow while it runs, stands paused or is off";

impl Guests {
    /// Begins to make a guest's disk larger.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn resize_disk(
        &self,
        guest: &Guest,
        id: &str,
        to_mib: u64,
        user: &str,
    ) -> Result<Task, GuestError> {
        let disk = self.growable(guest, id, to_mib)?;
        let pool = self.resources().pools.get(&disk.volume.pool).await?;
        let to_mib = pool.record().source.disk_size_mib(to_mib);
        pool.require_space(growth_need_mib(disk, to_mib)).await?;
        let operation = self.operate(guest)?;
        let (guests, uuid, id) = (self.clone(), guest.uuid, id.to_owned());
        let subject = TaskSubject::from(guest);
        let tasks = &self.resources().tasks;
        let task = tasks.start(TaskKind::ResizeDisk, subject, user, |context| async move {
            let _operation = operation;
            guests.resize_now(uuid, &id, to_mib, &context).await?;
            Ok(json!({ "uuid": uuid, "disk": id, "size_mib": to_mib }))
        });
        Ok(task.await?)
    }

    fn growable<'a>(
        &self,
        guest: &'a Guest,
        id: &str,
        to_mib: u64,
    ) -> Result<&'a Disk, GuestError> {
        guest.may_start_on(&self.resources().node)?;
        if guest.incomplete {
            return Err(GuestError::Incomplete(guest.name.to_string()));
        }
        let disk = find_disk(guest, id)?;
        disk.check_growth(to_mib)?;
        self.require(guest, &STATES, HINT)?;
        Ok(disk)
    }

    /// The caller holds the guest's operation.
    async fn resize_now(
        &self,
        uuid: Uuid,
        id: &str,
        to_mib: u64,
        context: &TaskContext,
    ) -> Result<(), Failure> {
        let guest = self.find(&uuid.to_string()).await?.value;
        self.growable(&guest, id, to_mib)?;
        let begun = self.change_disk(uuid, id, |disk| disk.growing_to_mib = Some(to_mib));
        let guest = begun.await?;
        let grown = self.grow(&guest, find_disk(&guest, id)?, to_mib, context);
        let grown = grown.await;
        if let Err(error) = self.settle_growth(uuid).await {
            context.log(&format!(
                "what size {id} has is looked up later: {}",
                chain(&error)
            ));
            self.settle_disks_later(uuid);
        }
        Ok(grown?)
    }

    async fn grow(
        &self,
        guest: &Guest,
        disk: &Disk,
        to_mib: u64,
        context: &TaskContext,
    ) -> Result<(), GuestError> {
        let grow = async {
            let pool = self.resources().pools.get(&disk.volume.pool).await?;
            if self.status(guest.uuid).state.has_process() {
                pool.grow_under_guest(guest.uuid, disk, to_mib).await?;
                return self.grow_live(guest, disk, to_mib, context).await;
            }
            Ok(pool.grow_volume(guest.uuid, disk, to_mib).await?)
        };
        tokio::select! {
            grown = grow => grown,
            () = context.cancelled() => Err(GuestError::Cancelled),
        }
    }

    /// A VMM whose storage stalls goes on with it when that is back, so it is asked again.
    async fn grow_live(
        &self,
        guest: &Guest,
        disk: &Disk,
        to_mib: u64,
        context: &TaskContext,
    ) -> Result<(), GuestError> {
        let client = self.client(guest.uuid);
        loop {
            match client.resize_disk(&disk.id, to_mib << 20).await {
                Err(error @ VmmError::Timeout) => context.log(&chain(&error)),
                resized => return Ok(resized?),
            }
        }
    }

    /// Writes down what size those disks have whose growth is not known to have come to its end.
    /// The caller holds the guest's operation.
    pub(super) async fn settle_growth(&self, uuid: Uuid) -> Result<(), GuestError> {
        let guest = self.find(&uuid.to_string()).await?.value;
        for disk in &guest.disks {
            if disk.growing_to_mib.is_none() {
                continue;
            }
            let size_mib = self.disk_size_mib(&guest, disk).await?;
            let settle = |disk: &mut Disk| {
                disk.size_mib = size_mib;
                disk.growing_to_mib = None;
            };
            self.change_disk(uuid, &disk.id, settle).await?;
        }
        Ok(())
    }

    /// Size that the disk has, in MiB, as its VMM or its file says. A block device keeps what it has
    /// got.
    async fn disk_size_mib(&self, guest: &Guest, disk: &Disk) -> Result<u64, GuestError> {
        let runs = self.status(guest.uuid).state.has_process();
        let pool = self.resources().pools.get(&disk.volume.pool).await?;
        if let Some(size_mib) = pool.settle_block(guest.uuid, disk, runs).await? {
            if runs {
                let client = self.client(guest.uuid);
                client.resize_disk(&disk.id, size_mib << 20).await?;
            }
            return Ok(size_mib);
        }
        if !runs {
            return Ok(pool.volume_size_mib(guest.uuid, disk).await?);
        }
        let devices = self.client(guest.uuid).info().await?.devices;
        let size = devices.iter().find_map(|device| match device {
            DeviceInfo::Disk { id, size_bytes, .. } if *id == disk.id => Some(size_bytes >> 20),
            _ => None,
        });
        size.ok_or_else(|| GuestError::NoDisk {
            guest: guest.name.to_string(),
            disk: disk.id.clone(),
        })
    }
}
