//! Source and destination, running, and what the guest writes on both sides.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::guest::{self, PATIENCE};
use crate::migration::lines::{self, Joined};
use crate::migration::output::Output;
use crate::migration::{Migrates, Move, cpu};
use crate::process::{self, BoundChild};
use crate::subject::Subject;

/// Heartbeats after the move that are looked at: the first may have begun before its end.
const BEATS_AFTER: usize = 2;

/// Both processes; they are gone when this is dropped.
pub struct Pair<'a> {
    source: Side<'a>,
    destination: Side<'a>,
    greeting: Option<&'static [u8]>,
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
        let command = migrates.destination(order)?;
        let namespace = order.link.destination();
        let destination = Side::start(subject, command, namespace, log("destination"))?;
        let command = migrates.source(order)?;
        let source = Side::start(subject, command, order.link.source(), log("source"))?;
        Ok(Self {
            source,
            destination,
            greeting: migrates.greeting(),
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
        self.source.output.bytes().len()
    }

    /// All that the guest said, until now and a little longer.
    ///
    /// # Errors
    /// If the guest does not run at the destination.
    pub fn story(&self) -> Result<Joined> {
        let wanted = BEATS_AFTER + lines::whole_beats(&self.destination.output.bytes());
        let beats = |bytes: &[u8]| (lines::whole_beats(bytes) >= wanted).then_some(());
        let output = &self.destination.output;
        output.wait_for("heartbeats at the destination", PATIENCE, beats)?;
        let destination = output.bytes();
        let destination = match self.greeting {
            Some(greeting) => after_greeting(&destination, greeting).unwrap_or_default(),
            None => &destination[..],
        };
        Ok(Joined::new(&self.source.output.bytes(), destination))
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
