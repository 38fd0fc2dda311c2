//! Source and destination, running, and what the guest writes on both sides.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::guest::{self, PATIENCE};
use crate::migration::clock::Timed;
use crate::migration::lines::{self, Joined};
use crate::migration::output::Output;
use crate::migration::{Migrates, Move, cpu};
use crate::process::{self, BoundChild};
use crate::subject::Subject;

/// Heartbeats after the move that are looked at: the first may have begun before its end, and of
/// some others one is not late.
const BEATS_AFTER: usize = 5;

/// What a tick of the guest and a byte's way add to a line's time, besides the lines' own spread.
const TOLD_APART_US: f64 = 1000.0;

/// Both processes; they are gone when this is dropped.
pub struct Pair<'a> {
    source: Side<'a>,
    destination: Side<'a>,
    greeting: Option<&'static [u8]>,
    started: Instant,
}

/// What the guest said, and how its clock fared.
pub struct Story {
    /// The lines of both sides.
    pub lines: Joined,
    /// How much longer the move took by the host's clock than by the guest's, in microseconds.
    pub stood_us: f64,
    /// How wrong that may be, in microseconds.
    pub unsure_us: f64,
}

impl Story {
    /// The blackout, in microseconds: the longest pause that the guest saw, and what its clock hid
    /// of it. What the host's clock cannot tell from nothing is nothing.
    pub fn blackout_us(&self) -> Option<f64> {
        let gap = self.lines.longest_gap_us()?;
        let is_hidden = gap < 0.0 || self.stood_us.abs() >= self.unsure_us;
        Some(if is_hidden { gap + self.stood_us } else { gap })
    }
}

struct Side<'a> {
    subject: &'a dyn Subject,
    child: BoundChild,
    output: Output,
    log: PathBuf,
}

impl<'a> Pair<'a> {
    /// Starts both. What they say goes to two files in `logs`.
    ///
    /// # Errors
    /// If the subject cannot do it.
    pub fn start(
        subject: &'a dyn Subject,
        migrates: &dyn Migrates,
        order: &Move,
        logs: &Path,
    ) -> Result<Self> {
        let log = |side| logs.join(format!("{}-{side}.log", subject.name()));
        let started = Instant::now();
        let command = migrates.destination(order)?;
        let namespace = order.link.destination();
        let destination = Side::start(subject, command, namespace, log("destination"))?;
        let command = migrates.source(order)?;
        let source = Side::start(subject, command, order.link.source(), log("source"))?;
        Ok(Self {
            source,
            destination,
            greeting: migrates.greeting(),
            started,
        })
    }

    /// Whose they are.
    pub fn subject_name(&self) -> &str {
        self.source.subject.name()
    }

    /// Waits until the guest runs and the destination has said that it waits, if it says so.
    ///
    /// # Errors
    /// If it takes too long.
    pub fn wait_until_ready(&self) -> Result<()> {
        let ready = |bytes: &[u8]| lines::has(bytes, "ready").then_some(());
        self.source
            .output
            .wait_for("`ready` line", PATIENCE, ready)?;
        let Some(greeting) = self.greeting else {
            return Ok(());
        };
        let greets = |bytes: &[u8]| after_greeting(bytes, greeting).map(|_| ());
        self.destination
            .output
            .wait_for("greeting", PATIENCE, greets)
    }

    /// Processor time of both so far.
    ///
    /// # Errors
    /// If one of them is gone without a trace.
    pub fn cpu(&self) -> Result<Duration> {
        Ok(self.source.cpu()? + self.destination.cpu()?)
    }

    /// Where the guest is in its story: how much the source has written.
    pub fn mark(&self) -> usize {
        self.source.output.taken().bytes.len()
    }

    /// All that the guest said until now and a little longer. Its move began at `mark`.
    ///
    /// # Errors
    /// If the guest does not run at the destination.
    pub fn story(&self, mark: usize) -> Result<Story> {
        let output = &self.destination.output;
        let end = output.taken().bytes.len();
        let wanted = BEATS_AFTER + lines::whole_beats(&output.taken().bytes);
        let beats = |bytes: &[u8]| (lines::whole_beats(bytes) >= wanted).then_some(());
        output.wait_for("heartbeats at the destination", PATIENCE, beats)?;
        let (source, destination) = (self.source.output.taken(), output.taken());
        let ahead = |timed: &Timed, range| timed.ahead(range, self.started);
        let before = ahead(&source, 0..mark).context("no line of the source")?;
        let after = ahead(&destination, end..usize::MAX).context("no line")?;
        let guests = match self.greeting {
            Some(greeting) => after_greeting(&destination.bytes, greeting).unwrap_or_default(),
            None => &destination.bytes[..],
        };
        Ok(Story {
            lines: Joined::new(&source.bytes, guests),
            stood_us: after.soonest_us - before.soonest_us,
            unsure_us: before.spread_us + after.spread_us + TOLD_APART_US,
        })
    }

    /// The end of what both wrote to standard error.
    pub fn messages(&self) -> String {
        let said = |side: &Side| guest::tail(&side.log);
        format!(
            "source{}; destination{}",
            said(&self.source),
            said(&self.destination)
        )
    }
}

impl<'a> Side<'a> {
    fn start(
        subject: &'a dyn Subject,
        mut command: Command,
        namespace: Arc<std::os::fd::OwnedFd>,
        log: PathBuf,
    ) -> Result<Self> {
        let messages = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(messages);
        let mut child = BoundChild::spawn(command, Some(namespace))?;
        let stdout = child.inner().stdout.take();
        let output = Output::of(stdout.context("the output is a pipe")?);
        Ok(Self {
            subject,
            child,
            output,
            log,
        })
    }

    fn cpu(&self) -> Result<Duration> {
        let processes = self.subject.processes(self.child.id());
        processes.into_iter().map(cpu::used).sum()
    }
}

impl Drop for Side<'_> {
    fn drop(&mut self) {
        let leader = self.child.id();
        let mut others = self.subject.processes(leader);
        others.retain(|process| *process != leader);
        process::kill_all(&others);
    }
}

/// What follows the greeting's line, once that is whole.
fn after_greeting<'b>(bytes: &'b [u8], greeting: &[u8]) -> Option<&'b [u8]> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    bytes.starts_with(greeting).then(|| &bytes[end + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blackout_counts_what_the_clock_hid() {
        let beat = b"\n{\"ev\":\"beat\",\"gap_max_us\":700}\n";
        let blackout = |stood_us| {
            let story = Story {
                lines: Joined::new(b"", beat),
                stood_us,
                unsure_us: 1000.0,
            };
            story.blackout_us()
        };
        assert_eq!(blackout(0.0), Some(700.0));
        assert_eq!(blackout(-200.0), Some(700.0));
        assert_eq!(blackout(50_000.0), Some(50_700.0));
    }

    #[test]
    fn after_greeting_waits_for_its_line() {
        let after = |bytes: &'static [u8]| after_greeting(bytes, b"listening on ");
        assert_eq!(after(b"listening on 127.0.0"), None);
        assert_eq!(
            after(b"listening on 127.0.0.1:1\nt\":1}"),
            Some(&b"t\":1}"[..])
        );
        assert_eq!(after(b"panic\n"), None);
    }
}
