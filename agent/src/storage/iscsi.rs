//! An iSCSI target as this node has it: a session by open-iscsi, and the LUN's disk.
//!
//! The session queues what a target owes for ever (`replacement_timeout` below zero), as a hard
//! mount of NFS does: no guest gets an error because the target restarts. The node's record says
//! `manual`, for the agent logs in by itself, and one of a pool that is gone must not come back.
//! What the host has logged in to itself is used as it is, and never logged out.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::program::{Complaint, Program};
use crate::domain::Secret;
use crate::files;

const ISCSIADM: Program = Program {
    name: "iscsiadm",
    package: "open-iscsi",
};
/// `ISCSI_ERR_NO_OBJS_FOUND` (iscsiadm(8), "EXIT STATUS").
const NOTHING_FOUND: i32 = 21;
/// How long a login may take.
const LOGIN_DEADLINE: Duration = Duration::from_secs(30);
/// How long anything else may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the kernel may take to find the disks of a session.
const SCAN_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// How long a portal may take for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// How the node's record differs from Debian's: `login_timeout` times the retries must be less
/// than [`LOGIN_DEADLINE`].
const SETTINGS: [(&str, &str); 4] = [
    ("node.startup", "manual"),
    ("node.session.timeo.replacement_timeout", "-1"),
    ("node.session.initial_login_retry_max", "1"),
    ("node.conn[0].timeo.login_timeout", "10"),
];

/// Where it is written which sessions are the agent's, in its state directory.
pub(super) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("iscsi")
}

/// A target, and who logs in.
pub(super) struct IscsiTarget {
    pub portal: String,
    pub target: String,
    /// `None`: the only disk that it has.
    pub lun: Option<u16>,
    /// User and password.
    pub chap: Option<(String, Secret)>,
    /// The file that says that the session is ours.
    pub mine: PathBuf,
}

/// A session that an agent has made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mine {
    portal: String,
    target: String,
}

/// A LUN's disk on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LunDisk {
    pub lun: u16,
    pub device: PathBuf,
}

impl IscsiTarget {
    /// Logs in if there is no session, and finds the disk.
    ///
    /// # Errors
    /// One line.
    pub(super) async fn connect(&self) -> Result<LunDisk, String> {
        let mut session = self.session().await?;
        if session.is_none() {
            self.log_in().await?;
        }
        let end = Instant::now() + SCAN_DEADLINE;
        loop {
            let found = match &session {
                None => Err(format!("{} is not logged in", self.target)),
                Some(session) => session.disk(self.lun),
            };
            if found.is_ok() || Instant::now() > end {
                return found;
            }
            tokio::time::sleep(POLL).await;
            session = self.session().await?;
        }
    }

    async fn session(&self) -> Result<Option<Session>, String> {
        let listed = match run(&["-m", "session", "-P", "3"], DEADLINE).await {
            Err(complaint) if complaint.code == Some(NOTHING_FOUND) => return Ok(None),
            listed => listed.map_err(|complaint| complaint.reason)?,
        };
        let mut sessions = sessions(&listed).into_iter();
        Ok(sessions.find(|session| session.target == self.target))
    }

    async fn log_in(&self) -> Result<(), String> {
        let node = ["-m", "node", "-T", &self.target, "-p", &self.portal];
        let known = run(&node, DEADLINE).await.is_ok();
        // The host's own record stays as it is.
        if !known || self.mine.exists() {
            self.claim()?;
            let new = [&node[..], &["-o", "new"]].concat();
            let settings = self.settings();
            let mut update = [&node[..], &["-o", "update"]].concat();
            for (name, value) in &settings {
                update.extend(["-n", name, "-v", value]);
            }
            for arguments in [new, update] {
                let set = run(&arguments, DEADLINE).await;
                set.map_err(|complaint| complaint.reason)?;
            }
        }
        let login = [&node[..], &["--login"]].concat();
        let logged_in = run(&login, LOGIN_DEADLINE).await;
        logged_in.map_err(|complaint| {
            format!("{} at {}: {}", self.target, self.portal, complaint.reason)
        })?;
        tracing::info!("logged in to {} at {}", self.target, self.portal);
        Ok(())
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        let mut settings = SETTINGS.to_vec();
        if let Some((user, password)) = &self.chap {
            settings.extend([
                ("node.session.auth.authmethod", "CHAP"),
                ("node.session.auth.username", user.as_str()),
                ("node.session.auth.password", password.reveal()),
            ]);
        }
        settings
    }

    fn claim(&self) -> Result<(), String> {
        let mine = Mine {
            portal: self.portal.clone(),
            target: self.target.clone(),
        };
        let parent = self.mine.parent().unwrap_or(&self.mine);
        let written = fs::create_dir_all(parent)
            .and_then(|()| files::replace_by_json_durably(&self.mine, &mine));
        written.map_err(|error| format!("cannot write {}: {error}", self.mine.display()))
    }

    /// Logs out, if the session is the agent's, and no other pool's.
    pub(super) async fn log_out(&self) {
        log_out(&self.mine).await;
    }

    /// Why it does not answer, if that can be told. One line.
    pub(super) async fn diagnose(&self) -> String {
        let portal = &self.portal;
        let connect = TcpStream::connect(portal.as_str());
        match tokio::time::timeout(CONNECT_DEADLINE, connect).await {
            Ok(Ok(_)) => format!(
                "{portal} takes connections, but {} does not answer",
                self.target
            ),
            Ok(Err(error)) => format!("{portal} cannot be reached: {error}"),
            Err(_) => format!("{portal} cannot be reached: no answer"),
        }
    }
}

/// Logs out of the targets of pools that are no more.
pub(super) async fn log_out_others(directory: &Path, keep: impl Fn(&Path) -> bool) {
    for mine in marks(directory) {
        if !keep(&mine) {
            log_out(&mine).await;
        }
    }
}

fn marks(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn read(mine: &Path) -> Option<Mine> {
    serde_json::from_slice(&fs::read(mine).ok()?).ok()
}

/// Ends the session that the file `path` speaks of, unless another file does too.
async fn log_out(path: &Path) {
    let Some(mine) = read(path) else { return };
    let directory = path.parent().unwrap_or(path);
    let mut others = marks(directory).into_iter().filter(|other| other != path);
    if !others.any(|other| read(&other).as_ref() == Some(&mine)) {
        let node = ["-m", "node", "-T", &mine.target, "-p", &mine.portal];
        for action in [&["--logout"][..], &["-o", "delete"]] {
            let done = run(&[&node[..], action].concat(), DEADLINE).await;
            if let Err(complaint) = done
                && complaint.code != Some(NOTHING_FOUND)
            {
                tracing::warn!("cannot log out of {}: {}", mine.target, complaint.reason);
                return;
            }
        }
        tracing::info!("logged out of {}", mine.target);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}

/// Runs `iscsiadm`, or kills it after `deadline`.
async fn run(arguments: &[&str], deadline: Duration) -> Result<String, Complaint> {
    // The first line says what was tried, this one why it failed.
    let telling = |line: &str| line.contains("reported error");
    let run = ISCSIADM.run(ISCSIADM.command(arguments), telling);
    let done = tokio::time::timeout(deadline, run).await;
    done.unwrap_or_else(|_| {
        Err(Complaint {
            code: None,
            reason: format!("no answer after {} s", deadline.as_secs()),
        })
    })
}

/// A session, as `iscsiadm -m session -P 3` tells of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Session {
    target: String,
    /// LUNs, and the kernel's names of their disks.
    disks: Vec<(u16, String)>,
}

impl Session {
    fn disk(&self, lun: Option<u16>) -> Result<LunDisk, String> {
        let mut fitting = self
            .disks
            .iter()
            .filter(|(one, _)| lun.is_none_or(|lun| lun == *one));
        let luns: Vec<String> = self.disks.iter().map(|(one, _)| one.to_string()).collect();
        let luns = luns.join(", ");
        match (fitting.next(), fitting.next()) {
            (Some((lun, name)), None) => Ok(LunDisk {
                lun: *lun,
                device: Path::new("/dev").join(name),
            }),
            (Some(_), Some(_)) => Err(format!(
                "{} has several disks, the LUNs {luns}; say which with --lun",
                self.target
            )),
            (None, _) if luns.is_empty() => Err(format!("{} shows this node no disk", self.target)),
            (None, _) => Err(format!(
                "{} has no LUN {}; it has {luns}",
                self.target,
                lun.unwrap_or_default()
            )),
        }
    }
}

/// Sessions with the disks in them.
fn sessions(text: &str) -> Vec<Session> {
    let mut sessions: Vec<Session> = Vec::new();
    let mut lun = None;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("Target: ") {
            let target = rest.split_whitespace().next().unwrap_or_default();
            sessions.push(Session {
                target: target.to_owned(),
                disks: Vec::new(),
            });
        } else if let Some((_, number)) = line.rsplit_once(" Lun: ") {
            lun = number.trim().parse().ok();
        } else if let Some(rest) = line.strip_prefix("Attached scsi disk ")
            && let Some(session) = sessions.last_mut()
            && let Some(lun) = lun.take()
            && let Some(name) = rest.split_whitespace().next()
            && name.chars().all(|c| c.is_ascii_alphanumeric())
        {
            session.disks.push((lun, name.to_owned()));
        }
    }
    sessions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As open-iscsi 2.1.8 prints it.
    const LISTED: &str = "iSCSI Transport Class version 2.0-870
version 2.1.8
Target: iqn.2026-01.org.example:one (non-flash)
\tCurrent Portal: 10.9.0.254:3260,1
\tPersistent Portal: 10.9.0.254:3260,1
\t\t**********
\t\tInterface:
\t\t**********
\t\tIface Name: default
\t\tSID: 1
\t\tiSCSI Connection State: LOGGED IN
\t\tiSCSI Session State: LOGGED_IN
\t\t************************
\t\tAttached SCSI devices:
\t\t************************
\t\tHost Number: 2\tState: running
\t\tscsi2 Channel 00 Id 0 Lun: 0
\t\tscsi2 Channel 00 Id 0 Lun: 1
\t\t\tAttached scsi disk sda\t\tState: running
Target: iqn.2026-01.org.example:two (non-flash)
\t\tscsi3 Channel 00 Id 0 Lun: 1
\t\t\tAttached scsi disk sdb\t\tState: running
\t\tscsi3 Channel 00 Id 0 Lun: 7
\t\t\tAttached scsi disk sdaa\t\tState: running
";

    #[test]
    fn disk_is_found_by_its_lun_or_because_it_is_the_only_one() {
        let sessions = sessions(LISTED);
        assert_eq!(sessions.len(), 2);
        let disk = |session: &Session, lun| {
            let disk = session.disk(lun);
            disk.map(|disk| (disk.lun, disk.device.display().to_string()))
        };
        assert_eq!(disk(&sessions[0], None), Ok((1, "/dev/sda".to_owned())));
        assert_eq!(disk(&sessions[1], Some(7)), Ok((7, "/dev/sdaa".to_owned())));
        let error = disk(&sessions[1], None).unwrap_err();
        assert!(error.contains("the LUNs 1, 7; say which"), "{error}");
        let error = disk(&sessions[0], Some(2)).unwrap_err();
        assert!(error.ends_with("has no LUN 2; it has 1"), "{error}");
    }

    #[tokio::test]
    async fn portal_that_is_not_there_is_named() {
        let target = IscsiTarget {
            portal: "127.0.0.1:1".to_owned(),
            target: "iqn.x:y".to_owned(),
            lun: None,
            chap: None,
            mine: PathBuf::new(),
        };
        let reason = target.diagnose().await;
        assert!(
            reason.starts_with("127.0.0.1:1 cannot be reached"),
            "{reason}"
        );
    }
}
