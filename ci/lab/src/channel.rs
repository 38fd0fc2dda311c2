//! The harness's end of the connection to a server's agent: many commands at
//! once over one stream of frames.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;

use crate::output::{Output, tail};
use crate::wire::{self, Frame, Kind, MAX_PAYLOAD, Start};

/// A write to a server that takes longer than this means that it is dead.
const WRITE_LIMIT: Duration = Duration::from_secs(120);

/// A connection to an agent.
pub(crate) struct Channel {
    writer: Mutex<UnixStream>,
    commands: Arc<Mutex<Commands>>,
    next_id: AtomicU32,
}

#[derive(Default)]
struct Commands {
    running: HashMap<u32, Sender<Frame>>,
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Channel {
    /// Starts to read frames from `stream`. The receiver gets one frame, the
    /// agent's Hello.
    pub(crate) fn new(stream: UnixStream) -> Result<(Self, Receiver<Frame>)> {
        let reader = stream.try_clone()?;
        stream.set_write_timeout(Some(WRITE_LIMIT))?;
        let (hello, wait_hello) = channel();
        let commands = Arc::new(Mutex::new(Commands::default()));
        lock(&commands).running.insert(0, hello);
        let dispatcher = commands.clone();
        thread::spawn(move || dispatch(reader, &dispatcher));
        let channel = Self {
            writer: Mutex::new(stream),
            commands,
            next_id: AtomicU32::new(1),
        };
        Ok((channel, wait_hello))
    }

    /// Starts a program in the server.
    pub(crate) fn start(self: &Arc<Self>, argv: &[&str]) -> Result<Process> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, frames) = channel();
        {
            let mut commands = lock(&self.commands);
            if commands.closed {
                bail!("the server's agent is gone");
            }
            commands.running.insert(id, sender);
        }
        let start = Start {
            argv: argv.iter().map(ToString::to_string).collect(),
        };
        self.send(id, Kind::Start, &serde_json::to_vec(&start)?)?;
        Ok(Process {
            channel: self.clone(),
            id,
            frames,
            command: argv.join(" "),
            stdout: Vec::new(),
            stderr: Vec::new(),
            end: None,
        })
    }

    fn send(&self, id: u32, kind: Kind, payload: &[u8]) -> Result<()> {
        wire::write(&mut *lock(&self.writer), id, kind, payload)
            .with_context(|| format!("sending {kind:?} to the server's agent"))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // Ends the dispatcher; a failure means that it has ended.
        let _ = lock(&self.writer).shutdown(Shutdown::Both);
    }
}

fn dispatch(mut reader: UnixStream, commands: &Mutex<Commands>) {
    while let Ok(frame) = wire::read(&mut reader) {
        let mut commands = lock(commands);
        let last = matches!(frame.kind, Kind::Exited | Kind::Failed);
        let id = frame.id;
        if let Some(receiver) = commands.running.get(&id) {
            // Nobody waits for a command that was dropped.
            let _ = receiver.send(frame);
        }
        if last {
            commands.running.remove(&id);
        }
    }
    let mut commands = lock(commands);
    commands.closed = true;
    commands.running.clear();
}

/// A command that runs in a server; killed there when this is dropped.
///
/// Output arrives only while one of its methods runs.
pub struct Process {
    channel: Arc<Channel>,
    id: u32,
    frames: Receiver<Frame>,
    command: String,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    end: Option<Result<i32, String>>,
}

impl Process {
    /// Writes to its standard input.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        bytes
            .chunks(MAX_PAYLOAD)
            .try_for_each(|chunk| self.channel.send(self.id, Kind::Stdin, chunk))
    }

    /// Closes its standard input.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn close_stdin(&self) -> Result<()> {
        self.channel.send(self.id, Kind::CloseStdin, &[])
    }

    /// Sends a signal to it and its children.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.channel
            .send(self.id, Kind::Signal, &(signal as i32).to_le_bytes())
    }

    /// What it has printed until now, as far as it has been received.
    pub fn stdout(&self) -> &[u8] {
        &self.stdout
    }

    /// The same of its standard error.
    pub fn stderr(&self) -> &[u8] {
        &self.stderr
    }

    /// Waits until `found` in its standard output says something.
    ///
    /// # Errors
    /// If the command ends first, or the time is over.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut found: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(result) = found(&self.stdout) {
                return Ok(result);
            }
            if self.end.is_some() {
                return Err(self.complaint(&format!("ended before {what}")));
            }
            if !self.receive(deadline)? {
                return Err(self.complaint(&format!("no {what} within {limit:?}")));
            }
        }
    }

    /// Waits until its standard output contains `text`.
    ///
    /// # Errors
    /// If the command ends first, or the time is over.
    pub fn wait_for_text(&mut self, text: &str, limit: Duration) -> Result<()> {
        let contains = |out: &[u8]| String::from_utf8_lossy(out).contains(text).then_some(());
        self.wait_for(&format!("“{text}”"), limit, contains)
    }

    /// Waits for its end. A command that lasts longer is killed.
    ///
    /// # Errors
    /// If the time is over, the command could not be started or the server is gone.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        let deadline = Instant::now() + limit;
        while self.end.is_none() {
            if !self.receive(deadline)? {
                return Err(self.complaint(&format!("did not end within {limit:?}")));
            }
        }
        let status = match self.end.clone() {
            Some(Ok(status)) => status,
            Some(Err(why)) => return Err(anyhow!(why)),
            None => unreachable!("the loop above ends with an end"),
        };
        Ok(Output {
            command: self.command.clone(),
            status,
            stdout: std::mem::take(&mut self.stdout),
            stderr: std::mem::take(&mut self.stderr),
        })
    }

    /// Whether it has ended, as far as has been received.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn has_ended(&mut self) -> Result<bool> {
        while self.end.is_none() && self.receive(Instant::now())? {}
        Ok(self.end.is_some())
    }

    /// Takes one frame; false when the deadline passes first.
    fn receive(&mut self, deadline: Instant) -> Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let frame = match self.frames.recv_timeout(left) {
            Ok(frame) => frame,
            Err(RecvTimeoutError::Timeout) => return Ok(false),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(self.complaint("was running when the server went away"));
            }
        };
        match frame.kind {
            Kind::Stdout => self.stdout.extend_from_slice(&frame.payload),
            Kind::Stderr => self.stderr.extend_from_slice(&frame.payload),
            Kind::Exited => {
                let status = frame
                    .payload
                    .try_into()
                    .ok()
                    .context("exit without a status")?;
                self.end = Some(Ok(i32::from_le_bytes(status)));
            }
            Kind::Failed => {
                self.end = Some(Err(String::from_utf8_lossy(&frame.payload).into_owned()));
            }
            other => bail!("the agent sent {other:?}"),
        }
        Ok(true)
    }

    fn complaint(&self, what: &str) -> anyhow::Error {
        anyhow!(
            "`{}` {what}\n--- its stdout\n{}\n--- its stderr\n{}",
            self.command,
            tail(&self.stdout),
            tail(&self.stderr)
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.end.is_none() {
            // The server may be gone, and the command with it.
            let _ = self.signal(Signal::SIGKILL);
        }
    }
}
