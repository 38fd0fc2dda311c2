//! An NFS pool's mount on this node.
//!
//! Mounted `hard`: what a NAS owes is waited for, however long that takes, and no guest gets an
//! error because the NAS restarts. `lookupcache=positive`, for what one node has looked for in vain
//! another one may have made. Version 4.1 or newer, whose sessions make every request happen once.
//! A NAS that does not hear of the node for longer than its lease forgets the disks' locks; the
//! kernel then fails requests until they are taken anew, which guests::disk_failure sees to.
//!
//! One that is read-only is mounted `softerr`: nothing that runs has a disk there, and nothing that
//! was written can be lost, so who copies an image from a server that is gone gets an error within a
//! minute in the place of a process that nobody can end. It may be of version 3, and then `nolock`:
//! there is nothing to lock, and NLM would need daemons on both sides.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount_remount};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::Mutex;

use super::program::Program;
use super::{client_id, mounts};

/// What mount(8) would call: without that between us it ends when it is killed.
const PROGRAM: Program = Program {
    name: "mount.nfs4",
    package: "nfs-common",
};
/// The same for version 3.
const PROGRAM_3: Program = Program {
    name: "mount.nfs",
    package: "nfs-common",
};
/// Always set. `retry=0`: one attempt, for we try again ourselves.
const OPTIONS: &str = "timeo=50,lookupcache=positive,noatime,nosuid,nodev,noexec,retry=0";
const READ_ONLY: &str = "ro,softerr,retrans=2";
/// Versions that may be, the best first.
const VERSIONS: [&str; 2] = ["4.2", "4.1"];
/// How long one attempt may take.
const MOUNT_DEADLINE: Duration = Duration::from_secs(20);
/// How long a failure stands before the next attempt.
const MOUNT_PERIOD: Duration = Duration::from_secs(10);
/// How long the kernel may take to let go, or to change a mount.
const KERNEL_DEADLINE: Duration = Duration::from_secs(5);
/// How long a server may take for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Where an NFS server listens.
const PORT: u16 = 2049;

/// Where NFS pools are mounted, in the agent's state directory.
pub(super) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("nfs")
}

/// What a server exports, and how it is mounted.
pub(super) struct NfsExport {
    pub server: String,
    pub export: String,
    /// Beside those that are always set.
    pub options: String,
    pub read_only: bool,
    /// 3 or 4; `None`: 4.
    pub version: Option<u8>,
}

/// A mount.
pub(super) struct NfsMount {
    export: NfsExport,
    /// Where.
    target: PathBuf,
    attempt: Mutex<Attempt>,
    closed: AtomicBool,
}

#[derive(Default)]
struct Attempt {
    /// When it failed last, and why.
    failed: Option<(Instant, String)>,
}

impl NfsMount {
    /// Mounts nothing yet.
    pub(super) fn new(export: NfsExport, target: PathBuf) -> Self {
        Self {
            export,
            target,
            attempt: Mutex::default(),
            closed: AtomicBool::default(),
        }
    }

    /// Mounts it if it is not mounted. An error is one line, and is repeated until it is time for
    /// the next attempt.
    pub(super) async fn ensure(&self) -> Result<(), String> {
        let mut attempt = self.attempt.lock().await;
        if self.closed.load(Ordering::Acquire) {
            return Err("it is being unmounted".to_owned());
        }
        if mounts::is_mounted(&self.target).map_err(|error| error.to_string())? {
            attempt.failed = None;
            return Ok(());
        }
        if let Some((when, reason)) = &attempt.failed
            && when.elapsed() < MOUNT_PERIOD
        {
            return Err(reason.clone());
        }
        let mounted = self.mount().await;
        attempt.failed = mounted.clone().err().map(|reason| (Instant::now(), reason));
        mounted
    }

    async fn mount(&self) -> Result<(), String> {
        let parent = self.target.parent().unwrap_or(&self.target);
        for directory in [parent, &self.target] {
            // Not recursively: that would look at what is mounted there.
            match DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => made.map_err(|error| format!("{}: {error}", directory.display()))?,
            }
        }
        client_id::set(parent).await;
        let mut reason = String::new();
        let (program, versions) = match self.export.version {
            Some(3) => (PROGRAM_3, &["3"][..]),
            _ => (PROGRAM, &VERSIONS[..]),
        };
        for version in versions {
            reason = match run(program, self.command(program, version)).await {
                Ok(()) => {
                    tracing::info!("{} is mounted, NFS {version}", self.source());
                    follow_no_links(&self.target, self.export.read_only).await;
                    return Ok(());
                }
                Err(reason) => reason,
            };
            if !speaks_of_version(&reason) {
                break;
            }
        }
        Err(format!("{} cannot be mounted: {reason}", self.source()))
    }

    fn source(&self) -> String {
        let NfsExport { server, export, .. } = &self.export;
        if server.contains(':') {
            format!("[{server}]:{export}")
        } else {
            format!("{server}:{export}")
        }
    }

    fn command(&self, program: Program, version: &str) -> Command {
        let patience = if self.export.read_only {
            READ_ONLY
        } else {
            "hard"
        };
        let lock = if version == "3" { ",nolock" } else { "" };
        let mut options = format!("vers={version},{patience},{OPTIONS}{lock}");
        if !self.export.options.is_empty() {
            // The last one counts.
            options = format!("{options},{}", self.export.options);
        }
        let mut command = program.command(&[]);
        command
            .arg(self.source())
            .arg(&self.target)
            .args(["-o", &options]);
        command
    }

    /// Unmounts it for good. What is still in use there stays in use until it is closed.
    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let _attempt = self.attempt.lock().await;
        unmount(&self.target).await;
    }

    /// Why it does not answer, if that can be told. One line.
    pub(super) async fn diagnose(&self) -> String {
        let server = &self.export.server;
        let port = self.export.options.split(',').find_map(|option| {
            let (name, value) = option.split_once('=')?;
            value.parse().ok().filter(|_| name == "port")
        });
        let connect = TcpStream::connect((server.as_str(), port.unwrap_or(PORT)));
        match tokio::time::timeout(CONNECT_DEADLINE, connect).await {
            Ok(Ok(_)) => format!("{server} takes connections, but does not answer"),
            Ok(Err(error)) => format!("{server} cannot be reached: {error}"),
            Err(_) => format!("{server} cannot be reached: no answer"),
        }
    }
}

/// Whoever can write to the server could put links there, to files of this node. mount.nfs4 does not
/// know the flag.
async fn follow_no_links(target: &Path, read_only: bool) {
    let path = target.to_owned();
    let read_only = if read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    let flags = read_only
        | MountFlags::BIND
        | MountFlags::NOSYMFOLLOW
        | MountFlags::NOATIME
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    let set = tokio::task::spawn_blocking(move || mount_remount(&path, flags, c""));
    match tokio::time::timeout(KERNEL_DEADLINE, set).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => {
            tracing::warn!("links in {} may be followed: {error}", target.display());
        }
        _ => tracing::warn!("links in {} may be followed", target.display()),
    }
}

/// Whether another version may do.
fn speaks_of_version(reason: &str) -> bool {
    reason.contains("rotocol not supported") || reason.contains("NFS version")
}

/// Unmounts everything below `directory` that `keep` does not want.
pub(super) async fn unmount_others(directory: &Path, keep: impl Fn(&Path) -> bool) {
    let points = mounts::mount_points().unwrap_or_default();
    for point in points {
        if point.parent() == Some(directory) && !keep(&point) {
            tracing::info!("unmounting {}: no pool has it", point.display());
            unmount(&point).await;
        }
    }
}

/// Takes it out of sight at once, whatever the server does; the rest goes when nobody uses it.
async fn unmount(target: &Path) {
    let path = target.to_owned();
    let unmounted = tokio::task::spawn_blocking(move || {
        if mounts::is_mounted(&path)? {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            rustix::mount::unmount(&path, flags)?;
        }
        match std::fs::remove_dir(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    });
    match tokio::time::timeout(KERNEL_DEADLINE, unmounted).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::warn!("cannot unmount {}: {error}", target.display()),
        Ok(Err(error)) => tracing::error!("cannot unmount {}: {error}", target.display()),
        Err(_) => tracing::warn!("{} is not unmounted yet", target.display()),
    }
}

/// Runs to its end, or kills it. An error is one line of what it says.
async fn run(program: Program, command: Command) -> Result<(), String> {
    let run = program.run(command, |_| true);
    let Ok(done) = tokio::time::timeout(MOUNT_DEADLINE, run).await else {
        let seconds = MOUNT_DEADLINE.as_secs();
        return Err(format!("the server has not answered for {seconds} s"));
    };
    done.map(|_| ()).map_err(|complaint| complaint.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(server: &str, options: &str) -> NfsMount {
        let export = NfsExport {
            server: server.to_owned(),
            export: "/srv/vm".to_owned(),
            options: options.to_owned(),
            read_only: false,
            version: None,
        };
        NfsMount::new(export, "/var/lib/pindah/nfs/x".into())
    }

    fn arguments(mount: &NfsMount, version: &str) -> Vec<String> {
        let command = mount.command(PROGRAM, version);
        let arguments = command.as_std().get_args();
        arguments
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn mount_is_hard_and_of_a_version_with_sessions() {
        let expected = [
            "nas:/srv/vm",
            "/var/lib/pindah/nfs/x",
            "-o",
            "vers=4.2,hard,timeo=50,lookupcache=positive,noatime,nosuid,nodev,noexec,\
             retry=0,nconnect=4",
        ];
        assert_eq!(arguments(&mount("nas", "nconnect=4"), "4.2"), expected);
        assert_eq!(
            arguments(&mount("fd00::9", ""), "4.2")[0],
            "[fd00::9]:/srv/vm"
        );
    }

    #[test]
    fn mount_for_reading_gives_up_and_locks_nothing() {
        let mut mount = mount("nas", "");
        mount.export.read_only = true;
        let options = "ro,softerr,retrans=2,timeo=50,lookupcache=positive,noatime,nosuid,nodev,\
                       noexec,retry=0";
        assert_eq!(arguments(&mount, "4.2")[3], format!("vers=4.2,{options}"));
        assert_eq!(
            arguments(&mount, "3")[3],
            format!("vers=3,{options},nolock")
        );
    }

    #[test]
    fn older_version_is_tried_only_when_the_version_was_the_reason() {
        assert!(speaks_of_version("mount.nfs4: Protocol not supported"));
        assert!(speaks_of_version(
            "mount.nfs4: requested NFS version or transport protocol is not supported for /x"
        ));
        assert!(!speaks_of_version(
            "mount.nfs4: access denied by server while mounting nas:/srv/vm"
        ));
    }

    #[tokio::test]
    async fn server_that_is_not_there_is_named() {
        let mount = mount("127.0.0.1", "port=1");
        let reason = mount.diagnose().await;
        assert!(reason.contains("127.0.0.1 cannot be reached"), "{reason}");
    }
}
