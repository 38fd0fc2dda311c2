//! Talking to a guest over its serial console.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::channel::Process;
use crate::output::Output;

/// What the guest's side prints when it listens.
const READY: &str = "@ready@";
/// Ids of commands, of all consoles: who attaches to a guest a second time may be shown answers to
/// what was asked before.
static NEXT_ID: AtomicU32 = AtomicU32::new(1);

/// The host's side of `assets/guest-console`; the process's standard input and
/// output are the guest's serial port.
pub struct Console {
    process: Process,
    /// How much of the output has been dealt with.
    seen: usize,
}

impl Console {
    /// Of a process that has just been started.
    pub fn new(process: Process) -> Self {
        Self { process, seen: 0 }
    }

    /// Waits until the guest listens; again after each reset.
    ///
    /// # Errors
    /// If it does not within `limit`, or the process ends.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let seen = self.seen;
        self.seen += self.process.wait_for("ready guest", limit, |output| {
            Some(find(&output[seen..], READY)? + READY.len())
        })?;
        Ok(())
    }

    /// Waits until the guest has printed `text` since the last thing waited for.
    ///
    /// # Errors
    /// If it does not within `limit`, or the process ends.
    pub fn wait_for_text(&mut self, text: &str, limit: Duration) -> Result<()> {
        let seen = self.seen;
        let what = format!("“{text}” on the guest's console");
        self.seen += self.process.wait_for(&what, limit, |output| {
            Some(find(&output[seen..], text)? + text.len())
        })?;
        Ok(())
    }

    /// Runs a shell command in the guest; standard output and error come as one.
    ///
    /// # Errors
    /// If it takes longer than `limit`, or the process ends.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        let id = self.send(command)?;
        let seen = self.seen;
        let begin = format!("@{id} ");
        let what = format!("end of `{command}` in the guest");
        let (end, answer) = self.process.wait_for(&what, limit, |output| {
            let start = seen + find(&output[seen..], &begin)? + begin.len();
            let length = find(&output[start..], "@")?;
            let answer = output[start..start + length].to_vec();
            Some((start + length + 1, answer))
        })?;
        self.seen = end;
        let answer = String::from_utf8(answer).context("the guest's answer is not text")?;
        let (status, printed) = answer
            .split_once(' ')
            .context("the guest's answer is broken")?;
        Ok(Output {
            command: command.to_string(),
            status: status
                .parse()
                .context("the guest's exit status is broken")?,
            stdout: BASE64
                .decode(printed)
                .context("the guest's output is broken")?,
            stderr: Vec::new(),
        })
    }

    /// Starts a shell command in the guest and waits for no answer: for those
    /// that end it. Returns by what its answer can be told.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn send(&mut self, command: &str) -> Result<u32> {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let line = format!("{id} {}\n", BASE64.encode(command));
        self.process.write(line.as_bytes())?;
        Ok(id)
    }

    /// All that the guest has printed, as far as received.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.process.stdout()).into_owned()
    }

    /// The process behind it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Gives the process back, to wait for its end.
    pub fn into_process(self) -> Process {
        self.process
    }
}

fn find(output: &[u8], text: &str) -> Option<usize> {
    output
        .windows(text.len())
        .position(|window| window == text.as_bytes())
}
