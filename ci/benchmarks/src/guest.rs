//! A running VMM with the probe in it.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use crate::artifacts::Artifacts;
use crate::interrupt;
use crate::process::{self, BoundChild};
use crate::subject::{Machine, Subject};

/// Longest time until a guest must have said what it has to say, besides what it was told to do.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// A line of the probe is far shorter.
const LINE_MAX: usize = 64 * 1024;

/// A subject with the probe in it; both are gone when this is dropped.
pub struct Guest<'a> {
    subject: &'a dyn Subject,
    child: BoundChild,
    started: Instant,
    first_byte: Option<Duration>,
    unread: Vec<u8>,
    log: PathBuf,
}

impl<'a> Guest<'a> {
    /// Starts `machine` under `subject`, and does not wait for anything.
    ///
    /// # Errors
    /// If the subject cannot do it.
    pub fn start(
        subject: &'a dyn Subject,
        machine: &Machine,
        tuning: &str,
        artifacts: &Artifacts,
    ) -> Result<Self> {
        let log = artifacts.directory.join(format!("{}.log", subject.name()));
        let messages = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = subject.command(machine, tuning, &artifacts.directory)?;
        // The input stays open and silent: to some VMMs its end is the end of the guest.
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(messages);
        let namespace = machine.network.as_ref().map(|network| network.namespace());
        let started = Instant::now();
        let child = BoundChild::spawn(command, namespace)?;
        Ok(Self {
            subject,
            child,
            started,
            first_byte: None,
            unread: Vec::new(),
            log,
        })
    }

    /// Time from the start of the process to the first byte of the guest's own instructions.
    pub fn first_byte(&mut self) -> Result<Duration> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(time) = self.first_byte {
                return Ok(time);
            }
            self.receive(deadline, "first byte")?;
        }
    }

    /// Waits for the probe's next line of kind `event` that `wanted` likes.
    ///
    /// # Errors
    /// If the subject ends, the probe reports an error, or nothing comes within `patience`.
    pub fn wait_for(
        &mut self,
        event: &str,
        patience: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + patience;
        loop {
            while let Some(line) = self.next_line() {
                let value = self.understand(&line)?;
                if value["ev"] == event && wanted(&value) {
                    return Ok(value);
                }
            }
            self.receive(deadline, &format!("`{event}` line"))?;
        }
    }

    /// The subject's processes.
    pub fn processes(&self) -> Vec<u32> {
        self.subject.processes(self.child.id())
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.unread.iter().position(|byte| *byte == b'\n')?;
        Some(self.unread.drain(..=end).collect())
    }

    fn understand(&self, line: &[u8]) -> Result<Value> {
        let text = String::from_utf8_lossy(line);
        let Ok(value) = serde_json::from_slice::<Value>(line) else {
            bail!(
                "not a line of the probe: {}{}",
                text.trim(),
                self.messages()
            );
        };
        if value["ev"] == "error" {
            bail!("the probe says: {}", value["message"]);
        }
        Ok(value)
    }

    /// Waits for some bytes and takes them.
    fn receive(&mut self, deadline: Instant, what: &str) -> Result<()> {
        loop {
            interrupt::check()?;
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                bail!("no {what} in time{}", self.messages());
            }
            if self.poll(rest.min(interrupt::SLICE))? {
                return self.read(what);
            }
        }
    }

    /// Whether there is something to read.
    fn poll(&mut self, patience: Duration) -> Result<bool> {
        let output = self.child.inner().stdout.as_ref();
        let output = output.expect("the output is a pipe").as_fd();
        let timeout = PollTimeout::try_from(patience.max(Duration::from_millis(1)))?;
        match poll(&mut [PollFd::new(output, PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => Ok(false),
            Ok(_) => Ok(true),
            Err(error) => Err(error).context("waiting for the serial line"),
        }
    }

    fn read(&mut self, what: &str) -> Result<()> {
        let now = Instant::now();
        let mut bytes = [0; 4096];
        let output = self.child.inner().stdout.as_mut();
        let len = output.expect("the output is a pipe").read(&mut bytes)?;
        if len == 0 {
            let status = self.child.kill()?;
            bail!("ended before its {what}, {status}{}", self.messages());
        }
        if self.first_byte.is_none() {
            if bytes[0] != b'{' {
                bail!("something else than the guest writes to the serial line first");
            }
            self.first_byte = Some(now - self.started);
        }
        self.unread.extend_from_slice(&bytes[..len]);
        if self.unread.len() > LINE_MAX {
            bail!("a line of the serial line is too long");
        }
        Ok(())
    }

    fn messages(&self) -> String {
        tail(&self.log)
    }
}

/// The end of what a subject wrote to standard error, as a file has it.
pub fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(3)..];
    if tail.is_empty() {
        return String::new();
    }
    format!(": {}", tail.join(" / "))
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let leader = self.child.id();
        let mut others = self.processes();
        others.retain(|process| *process != leader);
        process::kill_all(&others);
    }
}
