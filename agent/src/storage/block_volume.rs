//! Guests' disks that are block devices: made, filled, and active where they are needed.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::activation::Attached;
use super::pool::{GROUP_DEADLINE, Place};
use super::program::Program;
use super::qemu_img::{Copying, Target};
use super::volume::SYNC_DEADLINE;
use super::volume_group::{VolumeGroup, volume_name};
use super::{ImageFormat, Pool, StorageError, VolumeFile, qemu_img};
use crate::domain::{Disk, EXTENT_MIB};

const BLKDISCARD: Program = Program {
    name: "blkdiscard",
    package: "util-linux",
};
/// How long a change of metadata may take: another node may be at it.
pub(super) const CHANGE_DEADLINE: Duration = Duration::from_secs(30);
/// How much is zeroed at once, in bytes.
const ZERO_BYTES: u64 = 256 << 20;

impl Pool {
    /// A guest's volume, if it is there.
    pub(super) async fn block_volume(
        &self,
        group: &Arc<VolumeGroup>,
        guest: Uuid,
        disk: &Disk,
    ) -> Result<Option<VolumeFile>, StorageError> {
        let file = disk.volume.file.clone();
        let find = |group: Arc<VolumeGroup>| async move { group.volume(guest, &file).await };
        self.on_group(group, GROUP_DEADLINE, find).await
    }

    /// Makes a guest's volume: zeroes, for it must not show what another guest has left on the
    /// storage, with what `from` has in it.
    pub(super) async fn fill_block(
        &self,
        group: &Arc<VolumeGroup>,
        guest: Uuid,
        disk: &Disk,
        from: Option<((&Path, ImageFormat), Copying)>,
        mut progress: impl FnMut(u8) + Send,
    ) -> Result<(), StorageError> {
        let new = disk.clone();
        let create = |group: Arc<VolumeGroup>| async move { group.create(guest, &new).await };
        self.on_group(group, CHANGE_DEADLINE, create).await?;
        let attached = self.attach_for_a_while(guest, disk).await?;
        let path = self.volume_path(guest, disk);
        // Zeroes are the first half of it, if something follows.
        let share = if from.is_some() { 2 } else { 1 };
        let whole_mib = disk.size_mib.next_multiple_of(EXTENT_MIB);
        let first_part = |percent| progress(percent / share);
        zero(&path, 0..whole_mib << 20, first_part).await?;
        if let Some((from, copying)) = from {
            let second_half = |percent| progress(50 + percent / 2);
            qemu_img::convert(from, Target::Zeroed(&path), copying, second_half).await?;
        }
        self.sync_block(group, path).await?;
        drop(attached);
        self.detach(guest, disk).await;
        Ok(())
    }

    pub(super) async fn sync_block(
        &self,
        group: &Arc<VolumeGroup>,
        path: PathBuf,
    ) -> Result<(), StorageError> {
        let sync = |_| async move {
            let synced = tokio::task::spawn_blocking(move || {
                let synced = File::open(&path).and_then(|file| file.sync_all());
                synced.map_err(StorageError::io("write", &path))
            });
            synced.await.unwrap_or(Err(StorageError::Cancelled))
        };
        self.on_group(group, SYNC_DEADLINE, sync).await
    }

    /// Removes those volumes that `wanted` says.
    pub(super) async fn remove_blocks(
        &self,
        group: &Arc<VolumeGroup>,
        wanted: impl Fn(&VolumeFile) -> bool + Send + 'static,
    ) -> Result<(), StorageError> {
        let remove = |group: Arc<VolumeGroup>| async move {
            let mut volumes = group.volumes().await?;
            volumes.retain(wanted);
            group.remove(&volumes).await
        };
        self.on_group(group, CHANGE_DEADLINE, remove).await
    }

    /// Makes a guest's disk one that this node can open, until the answer is dropped.
    pub(super) async fn attach_for_a_while(
        &self,
        guest: Uuid,
        disk: &Disk,
    ) -> Result<Option<Attached>, StorageError> {
        let Place::Volumes(group) = self.place() else {
            return Ok(None);
        };
        let name = volume_name(guest, &disk.volume.file);
        let attach = |group: Arc<VolumeGroup>| group.attach(name);
        let attached = self.on_group(group, CHANGE_DEADLINE, attach).await?;
        self.fill_growth(group, guest, disk).await?;
        Ok(Some(attached))
    }

    /// Makes a guest's disk one that this node can open, until [`Self::detach`]: where the guest
    /// runs or arrives, and nowhere else.
    ///
    /// # Errors
    /// [`StorageError::Lvm`], [`StorageError::Locked`], and those of every look at a pool.
    pub async fn attach(&self, guest: Uuid, disk: &Disk) -> Result<(), StorageError> {
        if let Some(attached) = self.attach_for_a_while(guest, disk).await? {
            attached.keep();
        }
        Ok(())
    }

    /// Takes note that a guest that uses the disk runs here already.
    pub fn note_attached(&self, guest: Uuid, disk: &Disk) {
        if let Place::Volumes(group) = self.place() {
            group.note_attached(&volume_name(guest, &disk.volume.file));
        }
    }

    /// Lets go of a guest's disk: now, or when the pool is looked at next.
    pub async fn detach(&self, guest: Uuid, disk: &Disk) {
        let Place::Volumes(group) = self.place() else {
            return;
        };
        let name = volume_name(guest, &disk.volume.file);
        group.note_detached(&name);
        let detach = |group: Arc<VolumeGroup>| async move {
            group.detach(&name).await;
            Ok(())
        };
        if let Err(error) = self.on_group(group, GROUP_DEADLINE, detach).await {
            tracing::warn!("{}", crate::causes::chain(&error));
        }
    }
}

/// Writes zeroes to a range, in bytes, or has the storage do that if it can.
pub(super) async fn zero(
    path: &Path,
    range: Range<u64>,
    mut progress: impl FnMut(u8),
) -> Result<(), StorageError> {
    let bytes = range.end.saturating_sub(range.start);
    let mut done = 0;
    while done < bytes {
        let length = ZERO_BYTES.min(bytes - done);
        let (offset, size) = ((range.start + done).to_string(), length.to_string());
        let mut command = BLKDISCARD.command(&["-z", "-o", &offset, "-l", &size]);
        command.arg(path);
        let zeroed = BLKDISCARD.run(command, |_| true).await;
        zeroed.map_err(|complaint| StorageError::Zero {
            path: path.to_owned(),
            reason: complaint.reason,
        })?;
        done += length;
        progress((done * 100 / bytes) as u8);
    }
    Ok(())
}
