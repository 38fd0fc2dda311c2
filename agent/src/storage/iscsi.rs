//! An iSCSI target as this node has it: sessions by open-iscsi, and the LUN's device.
//!
//! A session queues what a target owes for ever (`replacement_timeout` below zero), as a hard mount
//! of NFS does: no guest gets an error because the target restarts. The node's record says `manual`,
//! for the agent logs in by itself, and one of a pool that is gone must not come back. What the host
//! has logged in to itself is used as it is, and never logged out.
//!
//! A target may have several portals. Where multipathd runs the agent logs in at each, and uses the
//! device that multipathd makes of all: it fails over (see `multipath`), and has the sessions of its
//! paths give up early (`fast_io_fail_tmo`). Elsewhere one portal is used, the first that can be;
//! LVM is shown the disk of one session only, whatever else is there.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::iscsi_mark::{self, Mine};
use super::iscsiadm::{DEADLINE, LOGIN_DEADLINE, Session, disks, run, sessions};
use super::multipath::{self, Holder};
use crate::domain::Secret;

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

/// A target, and who logs in.
pub(super) struct IscsiTarget {
    /// Where it can be reached.
    pub portals: Vec<String>,
    pub target: String,
    /// `None`: the only disk that it has.
    pub lun: Option<u16>,
    /// User and password.
    pub chap: Option<(String, Secret)>,
    /// The file that says which sessions are ours.
    pub mine: PathBuf,
}

/// A LUN on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LunDisk {
    pub lun: u16,
    pub device: PathBuf,
    /// Why fewer portals are used than there are; `None`: all are. One line.
    pub note: Option<String>,
}

impl IscsiTarget {
    /// Logs in where there is no session, and finds the LUN's device.
    ///
    /// # Errors
    /// One line.
    pub(super) async fn connect(&self) -> Result<LunDisk, String> {
        let all = self.portals.len() > 1 && multipath::runs().await;
        let mut current = sessions(&self.target).await?;
        let (new, mut failures) = self.log_in_where_needed(&current, all).await;
        if new {
            current = sessions(&self.target).await?;
        }
        if current.is_empty() {
            if new {
                failures.push(format!("{} has ended the session", self.target));
            }
            return Err(failures.join("; "));
        }
        let end = Instant::now() + SCAN_DEADLINE;
        let (lun, disks) = loop {
            // A new session's disks appear a moment later.
            let scanned = !new
                || current
                    .iter()
                    .all(|one| !one.disks.is_empty() || !one.alive);
            match disks(&self.target, &current, self.lun) {
                Ok(found) if scanned || Instant::now() > end => break found,
                Err(reason) if Instant::now() > end => return Err(reason),
                _ => tokio::time::sleep(POLL).await,
            }
            current = sessions(&self.target).await?;
        };
        let (device, mut note) = self.device(&disks, all).await?;
        if all {
            failures.extend(dead(&current).await);
            if !failures.is_empty() && note.is_none() {
                note = Some(format!("{}; other portals are used", failures.join("; ")));
            }
        }
        Ok(LunDisk { lun, device, note })
    }

    /// Logs in at `all` portals, or at one if no session can be used. Whether that was done
    /// anywhere, and why it was not elsewhere.
    async fn log_in_where_needed(&self, sessions: &[Session], all: bool) -> (bool, Vec<String>) {
        let has = |portal: &str| sessions.iter().any(|session| session.portal == portal);
        let (mut logged_in, mut failures) = (false, Vec::new());
        // What has volumes on it waits for its own portal.
        let names: Vec<String> = sessions.iter().flat_map(Session::names).collect();
        let used = matches!(multipath::holder(&names), Holder::Volumes(_));
        let one_is_enough = used || sessions.iter().any(|session| session.alive);
        if one_is_enough && !all {
            return (logged_in, failures);
        }
        for portal in self.portals.iter().filter(|portal| !has(portal)) {
            match self.log_in(portal).await {
                Ok(()) => logged_in = true,
                Err(reason) => failures.push(reason),
            }
            if logged_in && !all {
                break;
            }
        }
        (logged_in, failures)
    }

    /// The device through which the LUN is used, of whose disks one or `all` are to be, and what to
    /// know of that.
    async fn device(
        &self,
        disks: &[String],
        all: bool,
    ) -> Result<(PathBuf, Option<String>), String> {
        let plain = |disk: &str| Path::new("/dev").join(disk);
        let first = disks.first().map_or("", String::as_str);
        let portals = self.portals.len();
        let map = match multipath::holder(disks) {
            Holder::Map(map) => map,
            Holder::Volumes(disk) if all => {
                let note = format!(
                    "one of its {portals} portals is used until no guest here has a disk in it: \
                     multipathd was started later than they"
                );
                return Ok((plain(&disk), Some(note)));
            }
            Holder::Volumes(disk) => return Ok((plain(&disk), self.hint())),
            Holder::None if all => multipath::make(disks).await?,
            Holder::None => return Ok((plain(first), self.hint())),
        };
        let mut mine = Mine::read(&self.mine, &self.target);
        if mine.wwid.as_ref() != Some(&map.wwid) {
            mine.wwid = Some(map.wwid.clone());
            mine.write(&self.mine)?;
        }
        let id = self.mine.file_name().unwrap_or_default();
        multipath::keep_waiting(id, &map).await?;
        Ok((map.wait_device().await?, None))
    }

    /// What would have all portals used.
    fn hint(&self) -> Option<String> {
        let portals = self.portals.len();
        (portals > 1).then(|| {
            format!(
                "one of its {portals} portals is used: multipathd does not run on this node; is \
                 Debian's multipath-tools installed?"
            )
        })
    }

    async fn log_in(&self, portal: &str) -> Result<(), String> {
        reach(portal).await?;
        let node = ["-m", "node", "-T", &self.target, "-p", portal];
        let mut mine = Mine::read(&self.mine, &self.target);
        let claimed = mine.portals.iter().any(|one| one == portal);
        // The host's own record stays as it is.
        if claimed || run(&node, DEADLINE).await.is_err() {
            if !claimed {
                mine.portals.push(portal.to_owned());
                mine.write(&self.mine)?;
            }
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
        logged_in
            .map_err(|complaint| format!("{} at {portal}: {}", self.target, complaint.reason))?;
        tracing::info!("logged in to {} at {portal}", self.target);
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

    /// Logs out, if the session is the agent's, and no other pool's.
    pub(super) async fn log_out(&self) {
        iscsi_mark::log_out(&self.mine).await;
    }

    /// Why it does not answer, if that can be told. One line.
    pub(super) async fn diagnose(&self) -> String {
        let mut reasons = Vec::new();
        for portal in &self.portals {
            reasons.push(match reach(portal).await {
                Ok(()) => format!(
                    "{portal} takes connections, but {} does not answer",
                    self.target
                ),
                Err(reason) => reason,
            });
        }
        reasons.join("; ")
    }
}

/// What is wrong with the portals whose sessions do not answer.
async fn dead(sessions: &[Session]) -> Vec<String> {
    let mut dead = Vec::new();
    for Session { portal, .. } in sessions.iter().filter(|session| !session.alive) {
        dead.push(match reach(portal).await {
            Ok(()) => format!("{portal} does not answer"),
            Err(reason) => reason,
        });
    }
    dead
}

/// Whether the portal takes connections.
///
/// # Errors
/// One line.
async fn reach(portal: &str) -> Result<(), String> {
    let connect = TcpStream::connect(portal);
    match tokio::time::timeout(CONNECT_DEADLINE, connect).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{portal} cannot be reached: {error}")),
        Err(_) => Err(format!("{portal} cannot be reached: no answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn portals_that_are_not_there_are_named() {
        let target = IscsiTarget {
            portals: ["127.0.0.1:1", "127.0.0.1:2"].map(str::to_owned).into(),
            target: "iqn.x:y".to_owned(),
            lun: None,
            chap: None,
            mine: PathBuf::new(),
        };
        let reason = target.diagnose().await;
        for portal in &target.portals {
            let expected = format!("{portal} cannot be reached");
            assert!(reason.contains(&expected), "{reason}");
        }
    }
}
