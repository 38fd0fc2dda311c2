//! Limits without systemd: a control group for each guest that has some, below the agent's own in
//! the hierarchy with the `cpu` controller (cgroups(7); the kernel's `cgroup-v2.rst` and, for version
//! 1, `sched-design-CFS.rst` and `sched-bwc.rst`).
//!
//! A guest without limits stays where its agent is. A group is removed with its process. In version
//! 2 an agent must be in the root group: any other one has either processes or groups with limits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use procfs::ProcessCGroup;
use procfs::process::{MountInfo, Process};
use uuid::Uuid;

use super::containment::{Contained, Containment, ContainmentError};
use crate::domain::CpuLimits;

/// The period of a quota, in µs: the kernel's own default.
const PERIOD_US: u64 = 100_000;
/// The weight of who has no other.
const WEIGHT: u64 = 100;
/// The same in version 1, whose shares mean what weights mean.
const SHARES: u64 = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A hierarchy of groups, as it is mounted here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    /// The group that is at `mounted_at`: not the topmost one in some containers.
    root: PathBuf,
    mounted_at: PathBuf,
}

/// Where guests' groups are made.
#[derive(Clone, Debug)]
struct Place {
    hierarchy: Hierarchy,
    /// The directory of the agent's own group.
    own: PathBuf,
}

/// The control groups of this host, if it has any for processors.
#[derive(Clone, Debug)]
pub struct Cgroups {
    place: Option<Place>,
}

impl Cgroups {
    /// Those that are mounted.
    pub fn of_host() -> Self {
        Self { place: place() }
    }
}

#[async_trait]
impl Containment for Cgroups {
    async fn contain(&self, guest: &Contained<'_>) -> Result<(), ContainmentError> {
        let Some(place) = &self.place else {
            return if guest.limits.is_empty() {
                Ok(())
            } else {
                Err(ContainmentError::NoController)
            };
        };
        let group = place.group(guest.uuid);
        // Its group may also be one that an agent made which was in another one than this.
        let is_its = |path: &PathBuf| path.file_name() == group.file_name();
        let before = place.hierarchy.group_of(guest.pid).filter(is_its);
        if guest.limits.is_empty() && before.is_none() {
            return Ok(());
        }
        place.make(&group)?;
        let moved = place.hierarchy.limit(&group, guest);
        if moved.is_err() && before.as_ref() != Some(&group) {
            remove(&group);
        }
        if let Some(before) = before.filter(|before| moved.is_ok() && *before != group) {
            remove(&before);
        }
        moved
    }

    async fn release(&self, uuid: Uuid) {
        if let Some(place) = &self.place {
            remove(&place.group(uuid));
        }
    }
}

impl Place {
    fn group(&self, uuid: Uuid) -> PathBuf {
        self.own.join(format!("pindah-guest-{uuid}"))
    }

    fn make(&self, group: &Path) -> Result<(), ContainmentError> {
        if self.hierarchy.version == Version::V2 {
            write(&self.own.join("cgroup.subtree_control"), "+cpu")?;
        }
        match fs::create_dir(group) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(ContainmentError::Write {
                    path: group.to_owned(),
                    source,
                })
            }
            _ => Ok(()),
        }
    }
}

impl Hierarchy {
    /// The directory of the group that a process is in, if it can be seen here.
    fn group_of(&self, pid: u32) -> Option<PathBuf> {
        let process = Process::new(pid.try_into().ok()?).ok()?;
        let groups = process.cgroups().ok()?;
        self.directory(&groups.0)
    }

    fn directory(&self, groups: &[ProcessCGroup]) -> Option<PathBuf> {
        let group = groups.iter().find(|group| match self.version {
            Version::V1 => group.controllers.iter().any(|name| name == "cpu"),
            Version::V2 => group.hierarchy == 0,
        })?;
        let below = Path::new(&group.pathname).strip_prefix(&self.root).ok()?;
        Some(self.mounted_at.join(below))
    }

    fn limit(&self, group: &Path, guest: &Contained<'_>) -> Result<(), ContainmentError> {
        for (file, value) in self.settings(guest.limits) {
            write(&group.join(file), &value)?;
        }
        write(&group.join("cgroup.procs"), &guest.pid.to_string())
    }

    fn settings(&self, limits: CpuLimits) -> [(&'static str, String); 2] {
        let weight = limits.weight.unwrap_or(WEIGHT);
        let quota_us = limits
            .limit_percent
            .map(|percent| percent * PERIOD_US / 100);
        match self.version {
            Version::V1 => {
                let quota_us = quota_us.map_or_else(|| "-1".to_owned(), |us| us.to_string());
                // The kernel takes no fewer than 2.
                let shares = (weight * SHARES / WEIGHT).max(2);
                [
                    ("cpu.shares", shares.to_string()),
                    ("cpu.cfs_quota_us", quota_us),
                ]
            }
            Version::V2 => {
                let quota_us = quota_us.map_or_else(|| "max".to_owned(), |us| us.to_string());
                [
                    ("cpu.weight", weight.to_string()),
                    ("cpu.max", format!("{quota_us} {PERIOD_US}")),
                ]
            }
        }
    }
}

fn place() -> Option<Place> {
    let mounts = Process::myself().ok()?.mountinfo().ok()?;
    let hierarchy = hierarchy(mounts, &has_cpu)?;
    let own = hierarchy.group_of(std::process::id())?;
    Some(Place { hierarchy, own })
}

/// The hierarchy that has the controller: it is in one of them only. `has_cpu`: whether it is in the
/// one of version 2 that is mounted there.
fn hierarchy(
    mounts: impl IntoIterator<Item = MountInfo>,
    has_cpu: &dyn Fn(&Path) -> bool,
) -> Option<Hierarchy> {
    mounts.into_iter().find_map(|mount| {
        let version = match mount.fs_type.as_str() {
            "cgroup" if mount.super_options.contains_key("cpu") => Version::V1,
            "cgroup2" if has_cpu(&mount.mount_point) => Version::V2,
            _ => return None,
        };
        Some(Hierarchy {
            version,
            root: mount.root.into(),
            mounted_at: mount.mount_point,
        })
    })
}

fn has_cpu(root: &Path) -> bool {
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    controllers.split_whitespace().any(|name| name == "cpu")
}

fn write(path: &Path, text: &str) -> Result<(), ContainmentError> {
    fs::write(path, text).map_err(|source| ContainmentError::Write {
        path: path.to_owned(),
        source,
    })
}

fn remove(group: &Path) {
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", group.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use procfs::ProcessCGroups;
    use procfs::process::MountInfos;
    use procfs::{FromBufRead, FromRead};

    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
    const UNIFIED: &str = "31 23 0:28 /box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

    fn found(mounts: &str, has_cpu: bool) -> Option<Hierarchy> {
        let mounts = MountInfos::from_read(mounts.as_bytes()).unwrap();
        hierarchy(mounts, &|_| has_cpu)
    }

    fn directory(hierarchy: &Hierarchy, groups: &str) -> Option<PathBuf> {
        let groups = ProcessCGroups::from_buf_read(groups.as_bytes()).unwrap();
        hierarchy.directory(&groups.0)
    }

    #[test]
    fn group_of_a_process_is_in_the_hierarchy_that_has_the_controller() {
        let v1 = found(HYBRID, false).unwrap();
        assert_eq!(v1.version, Version::V1);
        let groups = "2:cpuset:/sets\n1:cpu,cpuacct:/a/b\n0::/other\n";
        let path = PathBuf::from("/sys/fs/cgroup/cpu/a/b");
        assert_eq!(directory(&v1, groups), Some(path));
        assert_eq!(directory(&v1, "0::/other\n"), None);

        let v2 = found(UNIFIED, true).unwrap();
        assert_eq!(v2.version, Version::V2);
        let path = PathBuf::from("/sys/fs/cgroup/b");
        assert_eq!(directory(&v2, "0::/box/b\n"), Some(path));
        assert_eq!(directory(&v2, "0::/elsewhere\n"), None);

        assert_eq!(found(UNIFIED, false), None);
        assert_eq!(found("", true), None);
    }

    #[test]
    fn settings_say_the_same_in_both_versions_and_take_limits_away() {
        let said = |version, weight, limit_percent| {
            let hierarchy = Hierarchy {
                version,
                root: "/".into(),
                mounted_at: "/".into(),
            };
            let limits = CpuLimits {
                weight,
                limit_percent,
            };
            hierarchy.settings(limits).map(|(_, value)| value)
        };
        let (v1, v2) = (Version::V1, Version::V2);
        assert_eq!(said(v1, Some(50), Some(150)), ["512", "150000"]);
        assert_eq!(said(v2, Some(50), Some(150)), ["50", "150000 100000"]);
        assert_eq!(said(v1, Some(1), None), ["10", "-1"]);
        assert_eq!(said(v1, None, None), ["1024", "-1"]);
        assert_eq!(said(v2, None, None), ["100", "max 100000"]);
    }
}
