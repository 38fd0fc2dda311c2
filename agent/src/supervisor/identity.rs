//! Which process it is: a number alone is given to another one sooner or later.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// A process, told from all that had or will have its number (proc(5), `/proc/pid/stat`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the host's start.
    pub start_ticks: u64,
    /// The host's start (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

impl Identity {
    /// The process that has the number now.
    ///
    /// # Errors
    /// There is none, or it has ended and waits to be reaped.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_ticks = start_ticks(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the process has ended"))?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self {
            pid,
            start_ticks,
            boot_id: boot_id.trim_end().to_owned(),
        })
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }

    /// A descriptor that means this process and no later one.
    fn open(&self) -> io::Result<OwnedFd> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the process has ended");
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let descriptor = pidfd_open(pid.ok_or_else(gone)?, PidfdFlags::NONBLOCK)?;
        // Checked after the descriptor is there: it cannot change hands any more.
        if self.is_alive() {
            Ok(descriptor)
        } else {
            Err(gone())
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub async fn ended(&self) -> io::Result<()> {
        match self.open() {
            Ok(descriptor) => watch(descriptor)?.readable().await.map(|_| ()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends it at once. Nothing happens if it has ended.
    ///
    /// # Errors
    /// The host refuses.
    pub fn kill(&self) -> io::Result<()> {
        let sent = self
            .open()
            .and_then(|descriptor| Ok(pidfd_send_signal(descriptor, Signal::KILL)?));
        match sent {
            Err(error) if is_gone(&error) => Ok(()),
            sent => sent,
        }
    }
}

// What took its place is unsafe, and asks for a descriptor that stays open: an `OwnedFd` does.
#[allow(deprecated)]
fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// Field 22; `None` for a process that has ended. The name in field 2 may hold anything. The state
/// in field 3 is that of the first thread only: a process that was killed has its files, and so
/// its ports and locks, until the last of its threads (field 20) has gone.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    if matches!(state, "Z" | "X" | "x") && threads <= 1 {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_is_read_past_any_name_and_zombies_have_none() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 1 18 4711 20";
        assert_eq!(start_ticks(&format!("7 (a) b (c) S {rest}")), Some(4711));
        assert_eq!(start_ticks(&format!("7 (a) Z {rest}")), None);
        let rest = rest.replace(" 16 1 ", " 16 5 ");
        assert_eq!(start_ticks(&format!("7 (a) Z {rest}")), Some(4711));
        assert_eq!(start_ticks("7 (a"), None);
    }

    #[tokio::test]
    async fn process_is_seen_to_end_and_never_taken_for_another() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let identity = Identity::of(child.id()).unwrap();
        assert!(identity.is_alive());
        let other = Identity {
            start_ticks: identity.start_ticks + 1,
            ..identity.clone()
        };
        assert!(!other.is_alive());
        other.kill().unwrap();
        assert!(identity.is_alive());
        identity.kill().unwrap();
        identity.ended().await.unwrap();
        assert!(!identity.is_alive(), "it waits to be reaped");
        child.wait().unwrap();
        assert!(!identity.is_alive());
        identity.kill().unwrap();
    }
}
