//! The device that Debian's multipath-tools make of a LUN's disks, of which each portal gives one.
//!
//! multipathd watches the paths, and uses those that are left when one goes down. The agent only
//! says which LUN it is to look after (`multipath -a`), and, in a file of its own, that what the
//! target owes waits while no path is left, as it does where there is one session: no guest gets
//! an error because the target restarts. All else is as the host's `multipath.conf` has it.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::program::Program;
use crate::files;

const MULTIPATH: Program = Program {
    name: "multipath",
    package: "multipath-tools",
};
const MULTIPATHD: Program = Program {
    name: "multipathd",
    package: "multipath-tools",
};
/// What multipathd reads beside `multipath.conf` (multipath.conf(5), `config_dir`).
const SETTINGS: &str = "/etc/multipath/conf.d";
const BLOCK: &str = "/sys/class/block";
/// How the UUIDs of device-mapper devices begin.
const MAP_UUID: &str = "mpath-";
const VOLUME_UUID: &str = "LVM-";
/// How long each of the two programs may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long multipathd may take for a device.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(200);

/// A multipath device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// In `/dev/mapper`.
    pub name: String,
    /// What tells its LUN from all others.
    pub wwid: String,
}

/// What the kernel has on top of a LUN's disks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A multipath device.
    Map(Map),
    /// Logical volumes that are active on this one of them, and keep it from becoming a path.
    Volumes(String),
    /// Nothing.
    None,
}

impl Map {
    fn device(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    /// Its device, which udev makes when it knows of it.
    ///
    /// # Errors
    /// One line.
    pub(super) async fn wait_device(&self) -> Result<PathBuf, String> {
        let (device, end) = (self.device(), Instant::now() + PATIENCE);
        while !device.exists() {
            if Instant::now() > end {
                return Err(format!("{} does not appear", device.display()));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(device)
    }
}

/// Whether multipathd answers.
pub(super) async fn runs() -> bool {
    run(MULTIPATHD, &["show", "daemon"]).await.is_ok()
}

/// What is on top of these disks.
pub(super) fn holder(disks: &[String]) -> Holder {
    holder_in(Path::new(BLOCK), disks)
}

fn holder_in(block: &Path, disks: &[String]) -> Holder {
    let mut found = Holder::None;
    for disk in disks {
        let holders = fs::read_dir(block.join(disk).join("holders"));
        for holder in holders.into_iter().flatten().flatten() {
            let mapper = block.join(holder.file_name()).join("dm");
            let read = |name| fs::read_to_string(mapper.join(name)).unwrap_or_default();
            let uuid = read("uuid");
            if let Some(wwid) = uuid.trim().strip_prefix(MAP_UUID) {
                return Holder::Map(Map {
                    name: read("name").trim().to_owned(),
                    wwid: wwid.to_owned(),
                });
            }
            if uuid.starts_with(VOLUME_UUID) {
                found = Holder::Volumes(disk.clone());
            }
        }
    }
    found
}

/// Has multipathd make one device of a LUN's disks, and of those that it gets later.
///
/// # Errors
/// One line.
pub(super) async fn make(disks: &[String]) -> Result<Map, String> {
    let end = Instant::now() + PATIENCE;
    let mut asked = Err("it was not asked".to_owned());
    loop {
        if let Holder::Map(map) = holder(disks) {
            return Ok(map);
        }
        if Instant::now() > end {
            let disks = disks.join(" and ");
            let why = asked.err();
            let why = why.unwrap_or_else(|| "does /etc/multipath.conf blacklist it?".to_owned());
            return Err(format!("multipathd makes no device of {disks}: {why}"));
        }
        if asked.is_err()
            && let Some(disk) = disks.first()
        {
            asked = ask(disk).await;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// udev may not know the disk yet.
async fn ask(disk: &str) -> Result<(), String> {
    run(MULTIPATH, &["-a", &format!("/dev/{disk}")]).await?;
    run(MULTIPATHD, &["reconfigure"]).await
}

/// The file with what is set for the LUN of the pool `id`.
fn settings(id: &OsStr) -> PathBuf {
    Path::new(SETTINGS).join(format!("pindah-{}.conf", id.display()))
}

/// Sees that what is owed to the pool `id` waits while no path is left.
///
/// # Errors
/// One line.
pub(super) async fn keep_waiting(id: &OsStr, map: &Map) -> Result<(), String> {
    let path = settings(id);
    let wanted = format!(
        "# Written by pindahd for a pool, and removed with it.\n\
         multipaths {{\n    multipath {{\n        wwid \"{}\"\n        no_path_retry queue\n    }}\n}}\n",
        map.wwid
    );
    if fs::read_to_string(&path).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let written =
        fs::create_dir_all(SETTINGS).and_then(|()| files::replace(&path, wanted.as_bytes()));
    written.map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    let told = run(MULTIPATHD, &["reconfigure"]).await;
    if told.is_err() {
        // So that it is told the next time.
        let _ = fs::remove_file(&path);
    }
    told.map_err(|reason| format!("multipathd does not read {}: {reason}", path.display()))
}

/// The pool `id` is gone, and its LUN is multipathd's business no more.
pub(super) async fn forget(id: &OsStr, wwid: &str) {
    let path = settings(id);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
    // It has gone with its last path, if that is gone.
    let _ = run(MULTIPATH, &["-f", wwid]).await;
    for (program, arguments) in [
        (MULTIPATH, &["-w", wwid][..]),
        (MULTIPATHD, &["reconfigure"][..]),
    ] {
        if let Err(reason) = run(program, arguments).await {
            let command = arguments.join(" ");
            tracing::warn!("{} {command} fails: {reason}", program.name);
        }
    }
}

async fn run(program: Program, arguments: &[&str]) -> Result<(), String> {
    let command = program.command(arguments);
    let done = program.run_within(DEADLINE, command, |_| true).await;
    done.map(drop).map_err(|complaint| complaint.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk, and a device-mapper device on top of it.
    fn lay(block: &Path, disk: &str, mapper: &str, uuid: &str) {
        fs::create_dir_all(block.join(disk).join("holders").join(mapper)).unwrap();
        let directory = block.join(mapper).join("dm");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("uuid"), format!("{uuid}\n")).unwrap();
        fs::write(directory.join("name"), "mpatha\n").unwrap();
    }

    #[test]
    fn disks_are_one_device_s_paths_or_have_volumes_on_them_or_nothing() {
        let block = tempfile::tempdir().unwrap();
        let block = block.path();
        let disks = ["sda", "sdb"].map(str::to_owned);
        assert_eq!(holder_in(block, &disks), Holder::None);
        lay(block, "sda", "dm-1", "CRYPT-LUKS2-x");
        assert_eq!(holder_in(block, &disks), Holder::None);
        lay(block, "sdb", "dm-2", "LVM-group-volume");
        assert_eq!(holder_in(block, &disks), Holder::Volumes("sdb".to_owned()));
        lay(block, "sdb", "dm-3", "mpath-36001");
        let map = Map {
            name: "mpatha".to_owned(),
            wwid: "36001".to_owned(),
        };
        assert_eq!(map.device(), Path::new("/dev/mapper/mpatha"));
        assert_eq!(holder_in(block, &disks), Holder::Map(map));
    }
}
