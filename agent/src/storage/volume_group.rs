//! The LVM volume group of a pool whose storage is a LUN, which all nodes see at once.
//!
//! LVM's locks are those of one host. So whoever changes metadata, or activates by them, has the
//! pool's lock in the store; a logical volume is active only where its guest runs, arrives or is
//! copied. Nothing activates one by itself (`--setautoactivation n`), and what an agent that ended
//! has left active is deactivated at the next look: the kernel refuses that for what is in use.
//!
//! Volumes are linear: each takes its whole size at once, so a pool that has space keeps it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::directory::Space;
use super::iscsi::{IscsiTarget, LunDisk};
use super::lvm::{self, Group, LogicalVolume};
use super::program::Program;
use super::store_lock::StoreLock;
use super::{StorageError, VolumeFile};
use crate::domain::{Disk, EXTENT_MIB, FileName, PoolName};

const WIPEFS: Program = Program {
    name: "wipefs",
    package: "util-linux",
};
/// The tag of every volume group of ours (lvm(8), "TAGS").
const OURS: &str = "pindah";
/// How the tag with the pool's id begins, which a group has while it is a pool.
const POOL_TAG: &str = "pindah.pool.";
/// How the tag of a logical volume begins that says whose it is.
const GUEST_TAG: &str = "pindah.guest.";
/// How long another node may have the lock.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// A volume group.
pub(super) struct VolumeGroup {
    pub pool: PoolName,
    pub id: Uuid,
    pub node: String,
    /// Its name.
    pub name: String,
    pub target: IscsiTarget,
    pub lock: StoreLock,
    /// Where it was found last.
    disk: Mutex<Option<LunDisk>>,
    /// What is to be active here.
    pub(super) attached: Mutex<BTreeSet<String>>,
    /// Taken by who activates or deactivates.
    pub(super) turn: tokio::sync::Mutex<()>,
}

impl VolumeGroup {
    pub(super) fn new(
        (id, pool): (Uuid, PoolName),
        node: String,
        name: String,
        target: IscsiTarget,
        lock: StoreLock,
    ) -> Self {
        Self {
            pool,
            id,
            node,
            name,
            target,
            lock,
            disk: Mutex::default(),
            attached: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn unavailable(&self, reason: String) -> StorageError {
        StorageError::Unavailable {
            pool: self.pool.clone(),
            reason,
        }
    }

    /// Logs in, if need be, and finds the LUN.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub(super) async fn connect(&self) -> Result<LunDisk, StorageError> {
        let connected = self.target.connect().await;
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        *disk = connected.clone().ok();
        connected.map_err(|reason| self.unavailable(reason))
    }

    /// Where the LUN is.
    fn device(&self) -> Result<PathBuf, StorageError> {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let device = disk.as_ref().map(|disk| disk.device.clone());
        device.ok_or_else(|| self.unavailable("it has not been looked at yet".to_owned()))
    }

    /// What to know of how it is reached.
    pub(super) fn note(&self) -> Option<String> {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        disk.as_ref()?.note.clone()
    }

    fn tag(&self) -> String {
        format!("{POOL_TAG}{}.{}", self.pool, self.id)
    }

    /// Makes the group the pool's: on a blank LUN a new one, or one that was a pool's before. The
    /// LUN that it is on.
    ///
    /// # Errors
    /// [`StorageError::BadPath`], [`StorageError::Lvm`], [`StorageError::Locked`],
    /// [`StorageError::Unavailable`].
    pub(super) async fn found(&self) -> Result<u16, StorageError> {
        let disk = self.connect().await?;
        let _held = self.lock.take(LOCK_PATIENCE).await?;
        let group = self.read(&disk.device).await?;
        let refuse = |reason| StorageError::BadPath {
            path: format!("LUN {} of {}", disk.lun, self.target.target).into(),
            reason,
        };
        let (name, tag) = (self.name.as_str(), self.tag());
        match group {
            None => {
                self.require_blank(&disk.device).await.map_err(refuse)?;
                let device = disk.device.display().to_string();
                let new = ["vgcreate", "--setautoactivation", "n"];
                let tags = ["--addtag", OURS, "--addtag", &tag];
                let extent = format!("{EXTENT_MIB}m");
                let arguments = [&new[..], &tags, &["-s", &extent, name, &device]].concat();
                self.run("make a volume group", &arguments).await?;
            }
            Some(group) => {
                let adopted = self.adoptable(&group).map_err(refuse)?;
                if !adopted {
                    let arguments = ["vgchange", "--addtag", &tag, name];
                    self.run("mark the volume group", &arguments).await?;
                }
            }
        }
        Ok(disk.lun)
    }

    /// Whether the group is this pool's already, or was one's before.
    fn adoptable(&self, group: &Group) -> Result<bool, String> {
        let name = &group.name;
        if group.tags.contains(&self.tag()) {
            return Ok(true);
        }
        if !group.tags.iter().any(|tag| tag == OURS) {
            return Err(format!(
                "the volume group {name} is on it, which is not Pindah's"
            ));
        }
        if let Some(tag) = group.tags.iter().find(|tag| tag.starts_with(POOL_TAG)) {
            let pool = tag.trim_start_matches(POOL_TAG);
            let pool = pool.rsplit_once('.').map_or(pool, |(pool, _)| pool);
            return Err(format!(
                "it is pool {pool} of this or another cluster; if nobody uses it any more, remove \
                 its tag: vgchange --deltag {tag} {name}"
            ));
        }
        if *name != self.name {
            return Err(format!(
                "the volume group {name} of an earlier pool is on it; say --volume-group {name} to \
                 take it"
            ));
        }
        Ok(false)
    }

    async fn require_blank(&self, device: &Path) -> Result<(), String> {
        let mut command = WIPEFS.command(&["--noheadings", "--output", "TYPE"]);
        command.arg(device);
        let found = WIPEFS.run(command, |_| true).await;
        let found = found.map_err(|complaint| complaint.reason)?;
        let found: Vec<&str> = found.split_whitespace().collect();
        if found.is_empty() {
            return Ok(());
        }
        Err(format!(
            "it is not blank: {} is on it; if nobody needs that, wipefs --all {} on {} removes it",
            found.join(", "),
            device.display(),
            self.node
        ))
    }

    /// Gives it up; what is in it stays.
    ///
    /// # Errors
    /// [`StorageError::Lvm`], [`StorageError::Locked`], [`StorageError::Unavailable`].
    pub(super) async fn give_up(&self) -> Result<(), StorageError> {
        let _held = self.lock.take(LOCK_PATIENCE).await?;
        let arguments = ["vgchange", "--deltag", &self.tag(), &self.name];
        self.run("unmark the volume group", &arguments).await
    }

    /// Sees that it is the pool's, and how full it is; deactivates what nothing here needs.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub(super) async fn look(&self) -> Result<Space, StorageError> {
        let space = self.space().await?;
        self.settle().await;
        Ok(space)
    }

    /// How full it is.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub(super) async fn space(&self) -> Result<Space, StorageError> {
        let device = self.device()?;
        let group = self.read(&device).await?;
        let group = group.filter(|group| group.name == self.name);
        let Some(group) = group.filter(|group| group.tags.contains(&self.tag())) else {
            let reason = format!(
                "{} is not the pool's volume group {}: it lacks the tag {}",
                device.display(),
                self.name,
                self.tag()
            );
            return Err(self.unavailable(reason));
        };
        Ok(Space {
            total: group.size,
            used: group.size.saturating_sub(group.free),
            free: group.free,
        })
    }

    async fn read(&self, device: &Path) -> Result<Option<Group>, StorageError> {
        let group = lvm::group(device).await;
        group.map_err(|reason| self.unavailable(reason))
    }

    /// Where a logical volume is while it is active.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        Path::new("/dev").join(&self.name).join(name)
    }

    async fn logical_volumes(&self) -> Result<Vec<LogicalVolume>, StorageError> {
        let volumes = lvm::volumes(&self.device()?, &self.name).await;
        volumes.map_err(|reason| self.unavailable(reason))
    }

    /// A logical volume.
    ///
    /// # Errors
    /// [`StorageError::NoVolume`], [`StorageError::Unavailable`].
    pub(super) async fn logical_volume(&self, name: &str) -> Result<LogicalVolume, StorageError> {
        let mut volumes = self.logical_volumes().await?.into_iter();
        let volume = volumes.find(|volume| volume.name == name);
        volume.ok_or_else(|| StorageError::NoVolume(self.path(name)))
    }

    /// All guests' volumes, by guest.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub(super) async fn volumes(&self) -> Result<Vec<VolumeFile>, StorageError> {
        let volumes = self.logical_volumes().await?;
        let guest_s = volumes.into_iter().filter_map(|volume| {
            let (guest, file) = volume.name.split_once('.')?;
            Some(VolumeFile {
                guest: Uuid::try_parse(guest).ok()?,
                file: file.to_owned(),
                bytes: volume.size,
                allocated_bytes: volume.size,
            })
        });
        let mut found: Vec<VolumeFile> = guest_s.collect();
        found.sort_by(|a, b| (a.guest, &a.file).cmp(&(b.guest, &b.file)));
        Ok(found)
    }

    /// A guest's volume, if it is there.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub(super) async fn volume(
        &self,
        guest: Uuid,
        file: &FileName,
    ) -> Result<Option<VolumeFile>, StorageError> {
        let volumes = self.volumes().await?.into_iter();
        let mut same = volumes.filter(|one| one.guest == guest && one.file == file.as_str());
        Ok(same.next())
    }

    /// Makes a guest's volume. What was there before shows in it until it is overwritten.
    ///
    /// # Errors
    /// [`StorageError::Lvm`], [`StorageError::Locked`], [`StorageError::Unavailable`].
    pub(super) async fn create(&self, guest: Uuid, disk: &Disk) -> Result<(), StorageError> {
        let name = volume_name(guest, &disk.volume.file);
        let (size, tag) = (format!("{}m", disk.size_mib), format!("{GUEST_TAG}{guest}"));
        let _held = self.lock.take(LOCK_PATIENCE).await?;
        let plain = ["lvcreate", "--yes", "-an", "-Zn", "-Wn", "--type", "linear"];
        let new = ["-n", &name, "-L", &size, "--addtag", &tag, &self.name];
        self.run("make a volume", &[&plain[..], &new].concat())
            .await
    }

    /// Removes volumes, none of which is in use.
    ///
    /// # Errors
    /// [`StorageError::Lvm`], [`StorageError::Locked`], [`StorageError::Unavailable`].
    pub(super) async fn remove(&self, volumes: &[VolumeFile]) -> Result<(), StorageError> {
        if volumes.is_empty() {
            return Ok(());
        }
        let _held = self.lock.take(LOCK_PATIENCE).await?;
        for volume in volumes {
            let name = format!("{}.{}", volume.guest.simple(), volume.file);
            self.detach(&name).await;
            let path = format!("{}/{name}", self.name);
            self.run("remove a volume", &["lvremove", "--yes", "--force", &path])
                .await?;
        }
        Ok(())
    }

    pub(super) async fn run(
        &self,
        action: &'static str,
        arguments: &[&str],
    ) -> Result<(), StorageError> {
        let done = lvm::run(&self.device()?, arguments).await;
        done.map(|_| ()).map_err(|complaint| StorageError::Lvm {
            action,
            reason: complaint.reason,
        })
    }
}

/// The name of a guest's volume.
pub(super) fn volume_name(guest: Uuid, file: &FileName) -> String {
    format!("{}.{file}", guest.simple())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::SqliteStore;

    fn group(directory: &Path) -> VolumeGroup {
        let store = SqliteStore::open(&directory.join("store.db")).unwrap();
        let pool = PoolName::try_from("san".to_owned()).unwrap();
        let id = (Uuid::nil(), pool);
        let target = IscsiTarget {
            portals: vec!["127.0.0.1:1".to_owned()],
            target: "iqn.x:y".to_owned(),
            lun: None,
            chap: None,
            mine: directory.join("mine"),
        };
        let lock = StoreLock::new(Arc::new(store), ("iqn.x:y", id.1.clone()), "node1");
        VolumeGroup::new(id, "node1".to_owned(), "vg".to_owned(), target, lock)
    }

    #[tokio::test]
    async fn group_is_taken_if_it_was_a_pool_and_is_none_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let group = group(directory.path());
        let tagged = |name: &str, tags: &[&str]| {
            group.adoptable(&Group {
                name: name.to_owned(),
                tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
                size: 0,
                free: 0,
            })
        };
        assert_eq!(tagged("vg", &[OURS, &group.tag()]), Ok(true));
        assert_eq!(tagged("vg", &[OURS]), Ok(false));
        for (name, tags, expected) in [
            ("vg", &[""][..], "which is not Pindah's"),
            ("vg", &[OURS, "pindah.pool.old.7"], "it is pool old of this"),
            ("other", &[OURS], "say --volume-group other"),
        ] {
            let error = tagged(name, tags).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn volume_s_name_tells_its_guest_and_fits_lvm() {
        let file = FileName::try_from("disk15.raw".to_owned()).unwrap();
        let name = volume_name(Uuid::nil(), &file);
        assert_eq!(name, "00000000000000000000000000000000.disk15.raw");
        let (guest, rest) = name.split_once('.').unwrap();
        assert_eq!(Uuid::try_parse(guest).unwrap(), Uuid::nil());
        assert_eq!(rest, file.as_str());
    }
}
