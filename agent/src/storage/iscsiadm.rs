//! Debian's `iscsiadm`, and the sessions that it tells of.

use std::time::Duration;

use super::program::{Complaint, Program};

const ISCSIADM: Program = Program {
    name: "iscsiadm",
    package: "open-iscsi",
};
/// `ISCSI_ERR_NO_OBJS_FOUND` (iscsiadm(8), "EXIT STATUS").
pub(super) const NOTHING_FOUND: i32 = 21;
/// How long a login may take.
pub(super) const LOGIN_DEADLINE: Duration = Duration::from_secs(30);
/// How long anything else may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// A session: one portal of one target.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub target: String,
    /// As its record has it.
    pub portal: String,
    /// The target answers.
    pub alive: bool,
    /// LUNs, and the kernel's names of their disks.
    pub disks: Vec<(u16, String)>,
}

impl Session {
    /// The kernel's names of its disks.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.disks.iter().map(|(_, name)| name.clone())
    }
}

/// Runs `iscsiadm`, or kills it after `deadline`.
///
/// # Errors
/// [`Complaint`].
pub(super) async fn run(arguments: &[&str], deadline: Duration) -> Result<String, Complaint> {
    // The first line says what was tried, this one why it failed.
    let telling = |line: &str| line.contains("reported error");
    ISCSIADM
        .run_within(deadline, ISCSIADM.command(arguments), telling)
        .await
}

/// The sessions of a target.
///
/// # Errors
/// One line.
pub(super) async fn sessions(target: &str) -> Result<Vec<Session>, String> {
    let listed = match run(&["-m", "session", "-P", "3"], DEADLINE).await {
        Err(complaint) if complaint.code == Some(NOTHING_FOUND) => return Ok(Vec::new()),
        listed => listed.map_err(|complaint| complaint.reason)?,
    };
    let mut sessions = parse(&listed);
    sessions.retain(|session| session.target == target);
    Ok(sessions)
}

/// What `iscsiadm -m session -P 3` tells. It names targets, and portals of a target, once.
fn parse(text: &str) -> Vec<Session> {
    let mut sessions: Vec<Session> = Vec::new();
    let (mut target, mut portal, mut lun) = ("", "", None);
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("Target: ") {
            target = rest.split_whitespace().next().unwrap_or_default();
        } else if let Some(rest) = line.strip_prefix("Persistent Portal: ") {
            // The target portal group's tag comes after the portal.
            portal = rest.split_once(',').map_or(rest, |(portal, _)| portal);
        } else if line.starts_with("SID: ") {
            sessions.push(Session {
                target: target.to_owned(),
                portal: portal.to_owned(),
                alive: false,
                disks: Vec::new(),
            });
        } else if let Some(session) = sessions.last_mut() {
            if let Some(state) = line.strip_prefix("iSCSI Session State: ") {
                session.alive = state == "LOGGED_IN";
            } else if let Some((_, number)) = line.rsplit_once(" Lun: ") {
                lun = number.trim().parse().ok();
            } else if let Some(rest) = line.strip_prefix("Attached scsi disk ")
                && let Some(lun) = lun.take()
                && let Some(name) = rest.split_whitespace().next()
                && name.chars().all(|c| c.is_ascii_alphanumeric())
            {
                session.disks.push((lun, name.to_owned()));
            }
        }
    }
    sessions
}

/// The LUN that is meant, and the disks by which it is there: those of sessions that are alive
/// first. `None` means the only LUN that there is.
///
/// # Errors
/// One line.
pub(super) fn disks(
    target: &str,
    sessions: &[Session],
    lun: Option<u16>,
) -> Result<(u16, Vec<String>), String> {
    let (alive, dead): (Vec<_>, Vec<_>) = sessions.iter().partition(|session| session.alive);
    let ordered = alive.into_iter().chain(dead);
    let all: Vec<&(u16, String)> = ordered.flat_map(|session| &session.disks).collect();
    let mut luns: Vec<u16> = all.iter().map(|(one, _)| *one).collect();
    luns.sort_unstable();
    luns.dedup();
    let listed: Vec<String> = luns.iter().map(u16::to_string).collect();
    let listed = listed.join(", ");
    let lun = match (lun, luns.as_slice()) {
        (_, []) => return Err(format!("{target} shows this node no disk")),
        (Some(lun), luns) if luns.contains(&lun) => lun,
        (Some(lun), _) => return Err(format!("{target} has no LUN {lun}; it has {listed}")),
        (None, [only]) => *only,
        (None, _) => {
            return Err(format!(
                "{target} has several disks, the LUNs {listed}; say which with --lun"
            ));
        }
    };
    let names = all.into_iter().filter(|(one, _)| *one == lun);
    Ok((lun, names.map(|(_, name)| name.clone()).collect()))
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
\t\tiSCSI Connection State: TRANSPORT WAIT
\t\tiSCSI Session State: FAILED
\t\t************************
\t\tAttached SCSI devices:
\t\t************************
\t\tHost Number: 2\tState: running
\t\tscsi2 Channel 00 Id 0 Lun: 0
\t\tscsi2 Channel 00 Id 0 Lun: 1
\t\t\tAttached scsi disk sda\t\tState: running
\tCurrent Portal: 10.9.1.254:3260,1
\tPersistent Portal: san:3260,1
\t\t**********
\t\tInterface:
\t\t**********
\t\tIface Name: default
\t\tSID: 2
\t\tiSCSI Connection State: LOGGED IN
\t\tiSCSI Session State: LOGGED_IN
\t\tscsi3 Channel 00 Id 0 Lun: 0
\t\tscsi3 Channel 00 Id 0 Lun: 1
\t\t\tAttached scsi disk sdb\t\tState: running
Target: iqn.2026-01.org.example:two (non-flash)
\tCurrent Portal: [fd00::9]:3260,1
\tPersistent Portal: [fd00::9]:3260,1
\t\tSID: 3
\t\tiSCSI Session State: LOGGED_IN
\t\tscsi4 Channel 00 Id 0 Lun: 1
\t\t\tAttached scsi disk sdc\t\tState: running
\t\tscsi4 Channel 00 Id 0 Lun: 7
\t\t\tAttached scsi disk sdaa\t\tState: running
";

    #[test]
    fn session_is_one_portal_of_a_target() {
        let sessions = parse(LISTED);
        let told: Vec<_> = sessions
            .iter()
            .map(|one| (one.target.as_str(), one.portal.as_str(), one.alive))
            .collect();
        let (one, two) = ("iqn.2026-01.org.example:one", "iqn.2026-01.org.example:two");
        let expected = [
            (one, "10.9.0.254:3260", false),
            (one, "san:3260", true),
            (two, "[fd00::9]:3260", true),
        ];
        assert_eq!(told, expected);
        assert_eq!(sessions[0].disks, [(1, "sda".to_owned())]);
    }

    #[test]
    fn disks_are_one_lun_s_and_that_of_a_session_that_lives_is_the_first() {
        let sessions = parse(LISTED);
        let (one, two) = sessions.split_at(2);
        let found = |lun: u16, names: &[&str]| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            Ok((lun, names))
        };
        assert_eq!(disks("t", one, None), found(1, &["sdb", "sda"]));
        assert_eq!(disks("t", two, Some(7)), found(7, &["sdaa"]));
        let error = disks("t", two, None).unwrap_err();
        assert!(error.contains("the LUNs 1, 7; say which"), "{error}");
        let error = disks("t", one, Some(2)).unwrap_err();
        assert!(error.ends_with("has no LUN 2; it has 1"), "{error}");
        assert!(disks("t", &[], None).is_err());
    }
}
