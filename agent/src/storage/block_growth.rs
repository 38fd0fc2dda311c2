//! A volume grows, and what it gains is zeroes before anybody sees it: others may have left
//! something there.
//!
//! ```text
//! tag      –     from.8          from.8            –
//! size     8       8               20             20
//!           marked  lvextend        zeroed from 8
//! ```
//!
//! The tag outlives whoever ends on the way. Who attaches a volume with one fills it first; the VMM
//! of a guest that runs is told of the new size last.

use std::sync::Arc;

use uuid::Uuid;

use super::block_volume::{CHANGE_DEADLINE, zero};
use super::pool::{GROUP_DEADLINE, Place};
use super::volume_group::{LOCK_PATIENCE, VolumeGroup, volume_name};
use super::{Pool, StorageError};
use crate::domain::Disk;

/// How the tag of a volume begins that says from which MiB on it is not filled.
const UNFILLED_TAG: &str = "pindah.from.";

impl VolumeGroup {
    /// Makes a volume larger, if it is smaller than that.
    ///
    /// # Errors
    /// [`StorageError::Lvm`], [`StorageError::Locked`], [`StorageError::Unavailable`].
    async fn extend(&self, name: &str, to_mib: u64) -> Result<(), StorageError> {
        let path = format!("{}/{name}", self.name);
        let _held = self.lock.take(LOCK_PATIENCE).await?;
        let size_mib = self.logical_volume(name).await?.size >> 20;
        if size_mib >= to_mib {
            return Ok(());
        }
        let tag = format!("{UNFILLED_TAG}{size_mib}");
        self.run("mark a volume", &["lvchange", "--addtag", &tag, &path])
            .await?;
        let size = format!("{to_mib}m");
        self.run("extend a volume", &["lvextend", "-L", &size, &path])
            .await
    }

    /// What of a volume is still to be filled: tags and range, in bytes.
    async fn unfilled(&self, name: &str) -> Result<Option<Unfilled>, StorageError> {
        let volume = self.logical_volume(name).await?;
        let tags = volume.tags.into_iter();
        let tags: Vec<String> = tags.filter(|tag| tag.starts_with(UNFILLED_TAG)).collect();
        // A growth that was cut short may have been followed by another.
        let from_mib = tags.iter().filter_map(|tag| {
            let mib = tag.strip_prefix(UNFILLED_TAG)?;
            mib.parse::<u64>().ok()
        });
        let unfilled = from_mib.min().map(|from_mib| Unfilled {
            range: from_mib << 20..volume.size,
            tags,
        });
        Ok(unfilled)
    }

    async fn note_filled(&self, name: &str, unfilled: &Unfilled) -> Result<(), StorageError> {
        let path = format!("{}/{name}", self.name);
        let mut arguments = vec!["lvchange"];
        for tag in &unfilled.tags {
            arguments.extend(["--deltag", tag]);
        }
        arguments.push(&path);
        let _held = self.lock.take(LOCK_PATIENCE).await?;
        self.run("mark a volume", &arguments).await
    }
}

struct Unfilled {
    range: std::ops::Range<u64>,
    tags: Vec<String>,
}

impl Pool {
    /// Makes a guest's volume larger, and fills it. `active`: its guest runs here.
    ///
    /// # Errors
    /// [`StorageError`]; what is not filled then is filled before the volume is used.
    pub(super) async fn grow_block(
        &self,
        group: &Arc<VolumeGroup>,
        (guest, disk): (Uuid, &Disk),
        to_mib: u64,
        active: bool,
    ) -> Result<(), StorageError> {
        let name = volume_name(guest, &disk.volume.file);
        let extend = |group: Arc<VolumeGroup>| async move { group.extend(&name, to_mib).await };
        self.on_group(group, CHANGE_DEADLINE, extend).await?;
        if active {
            return self.fill_growth(group, guest, disk).await;
        }
        let attached = self.attach_for_a_while(guest, disk).await?;
        drop(attached);
        self.detach(guest, disk).await;
        Ok(())
    }

    /// Fills what a volume that is active has gained, if that was not done.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(super) async fn fill_growth(
        &self,
        group: &Arc<VolumeGroup>,
        guest: Uuid,
        disk: &Disk,
    ) -> Result<(), StorageError> {
        let name = volume_name(guest, &disk.volume.file);
        let looked = name.clone();
        let look = |group: Arc<VolumeGroup>| async move { group.unfilled(&looked).await };
        let Some(unfilled) = self.on_group(group, GROUP_DEADLINE, look).await? else {
            return Ok(());
        };
        let path = self.volume_path(guest, disk);
        zero(&path, unfilled.range.clone(), |_| ()).await?;
        self.sync_block(group, path).await?;
        let note =
            |group: Arc<VolumeGroup>| async move { group.note_filled(&name, &unfilled).await };
        self.on_group(group, CHANGE_DEADLINE, note).await
    }

    /// Size that a guest's volume has when a growth that was cut short is done with, in MiB; `None`
    /// if it is a file. `active`: its guest runs here.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn settle_block(
        &self,
        guest: Uuid,
        disk: &Disk,
        active: bool,
    ) -> Result<Option<u64>, StorageError> {
        let Place::Volumes(group) = self.place() else {
            return Ok(None);
        };
        if active {
            self.fill_growth(group, guest, disk).await?;
        }
        match self.block_volume(group, guest, disk).await? {
            Some(volume) => Ok(Some(volume.bytes >> 20)),
            None => Err(StorageError::NoVolume(self.volume_path(guest, disk))),
        }
    }
}
