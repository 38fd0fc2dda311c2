//! Child processes that cannot outlive us.
//!
//! The kernel kills each of them when the thread that forked it ends (`prctl(2)`,
//! `PR_SET_PDEATHSIG`), so they must be started from the main thread.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

/// A child that is killed and reaped when this is dropped.
pub struct BoundChild(Child);

impl BoundChild {
    /// Starts `command`, inside a network namespace if one is given.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(mut command: Command, namespace: Option<Arc<OwnedFd>>) -> Result<Self> {
        let parent = Pid::this();
        let prepare = move || prepare_child(parent, namespace.as_deref());
        // SAFETY: `prepare_child` makes system calls only and allocates nothing.
        unsafe { command.pre_exec(prepare) };
        let program = command.get_program().to_owned();
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self(child))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its pipes.
    pub fn inner(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Kills and reaps it.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.0.kill()?;
        self.0.wait()
    }
}

impl Drop for BoundChild {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Between fork and exec.
fn prepare_child(parent: Pid, namespace: Option<&OwnedFd>) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent {
        // It died before we asked to go with it.
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    if let Some(namespace) = namespace {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
    }
    Ok(())
}

/// A process and all that descend from it, itself first.
pub fn family(leader: u32) -> Vec<u32> {
    let mut family = vec![leader];
    let mut next = 0;
    while let Some(&process) = family.get(next) {
        family.extend(children(process));
        next += 1;
    }
    family
}

fn children(process: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else {
        return Vec::new();
    };
    let lists = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| numbers(&list)).collect()
}

fn numbers(list: &str) -> Vec<u32> {
    list.split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Kills processes that are not our own children.
pub fn kill_all(processes: &[u32]) {
    for &process in processes {
        let _ = kill(Pid::from_raw(process as i32), Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn bound_child_dropped_is_gone() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let child = BoundChild::spawn(command, None).unwrap();
        let path = format!("/proc/{}", child.id());
        assert!(fs::exists(&path).unwrap());
        drop(child);
        assert!(!fs::exists(&path).unwrap());
    }

    #[test]
    fn family_of_shell_has_its_child() {
        let mut command = Command::new("sh");
        command
            .args(["-c", "sleep 600 & echo $!; wait"])
            .stdout(Stdio::piped());
        let mut child = BoundChild::spawn(command, None).unwrap();
        let mut output = io::BufReader::new(child.inner().stdout.take().unwrap());
        let mut line = String::new();
        io::BufRead::read_line(&mut output, &mut line).unwrap();
        let sleeper: u32 = line.trim().parse().unwrap();
        let family = family(child.id());
        kill_all(&[sleeper]);
        assert_eq!(family, [child.id(), sleeper]);
    }
}
