//! The destination: takes the guest's memory, then the guest.
//!
//! ```text
//! accept ─► preflight ─► rehearse, fill ─► COMMIT ─► drained ─► own ─► restore ─► run
//!   │           │              │                        └─────────┴────────┴─► Aborted
//!   └───────────┴──────────────┴─► the guest will not run here, and goes on at the source
//! ```
//! Everything up to COMMIT may fail, and the guest goes on at the source. After COMMIT the guest
//! is this side's: it runs here, or [`Kind::Aborted`] is sent and it never will. If some of its
//! pages stayed behind, [`postcopy`] fetches them from then on.

mod accept;
mod compatible;
mod error;
mod late;
mod postcopy;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use pindah_vmm_api::{MigrationPhase, PauseReason};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::checksum;
use super::connection::{Connection, ConnectionError, Frame, wait_readable};
use super::pages::Decoder;
use super::priority::{LowPriority, Priority};
use super::progress::Progress;
use super::protocol::{
    ANSWER_TIMEOUT, Ack, Commit, Dropped, FailedDisk, HEADER_BYTES, Kind, Reason, Rehearsed,
    Running, Welcome,
};
use super::tls::Identity;
use crate::clock::now_unix_ns;
use crate::vm::migratable::MigrationDestination;
use crate::vm::state::VmState;
use accept::Source;
pub use error::ReceiveError;
pub use postcopy::Postcopier;
use postcopy::{Fetching, Missing, Starter};

/// The source must send something at least this often; a throttled one on a slow link, or one
/// whose storage is slow, sends little.
const SILENCE: Duration = Duration::from_secs(60);
/// Acknowledge at least each so many bytes.
const ACK_BYTES: u64 = 256 << 10;
/// How long a source that goes may take to say why.
const FAREWELL: Duration = Duration::from_secs(1);

/// Where a guest comes from.
#[derive(Debug)]
pub struct Incoming {
    /// Listens already.
    pub listener: TcpListener,
    /// Who this side is.
    pub identity: Identity,
    /// How long to wait for the first connection.
    pub timeout: Duration,
    /// What it takes to let the guest run before all of its pages are here.
    pub postcopier: Option<Postcopier>,
}

/// Waits for a source, takes its guest and lets it run. Without a post-copier all of its memory
/// has to be here before.
///
/// # Errors
/// [`ReceiveError`]; the guest does not run here and never will, and the source knows or will
/// find out. With [`ReceiveError::Lost`] it ran, and stands still for good.
pub fn receive(
    machine: &dyn MigrationDestination,
    incoming: Incoming,
    priority: Priority,
    progress: &Progress,
) -> Result<Running, ReceiveError> {
    let Incoming {
        listener,
        identity,
        timeout,
        postcopier,
    } = incoming;
    let cancel = progress.cancel();
    let source = accept::accept(&listener, &identity, timeout, cancel)?;
    let mut arrival = Arrival::new(machine, source, priority, progress);
    let outcome = arrival
        .take(postcopier)
        .map_err(|error| arrival.explain(error));
    arrival.low_priority.end();
    match outcome {
        Ok(running) => {
            let phase = match arrival.fetching {
                None => MigrationPhase::Completed,
                Some(_) => MigrationPhase::Postcopy,
            };
            progress.update(|status| status.phase = phase);
            arrival.settle()?;
            Ok(running)
        }
        Err(error) => {
            if let Some(fetching) = arrival.fetching.take() {
                fetching.abandon();
            }
            arrival.refuse(&crate::causes::chain(&error));
            Err(error)
        }
    }
}

/// A guest on its way here.
struct Arrival<'a> {
    machine: &'a dyn MigrationDestination,
    progress: &'a Progress,
    low_priority: LowPriority,
    /// For the source.
    waited: Duration,
    control: Connection,
    data: Vec<Connection>,
    urgent: Option<Connection>,
    hello: super::protocol::Hello,
    decoder: Decoder,
    /// What stays behind, if the source may leave something.
    missing: Option<(Missing, Starter)>,
    /// What stayed behind, and is being fetched.
    fetching: Option<Fetching>,
    /// Bytes of page frames that are in place.
    in_place: u64,
    acknowledged: u64,
    /// Bit n: on the nth data connection nothing follows that is this side's before COMMIT.
    flushed: u32,
    state: Option<VmState>,
    commit: Option<Commit>,
}

impl<'a> Arrival<'a> {
    fn new(
        machine: &'a dyn MigrationDestination,
        source: Source,
        priority: Priority,
        progress: &'a Progress,
    ) -> Self {
        Self {
            machine,
            progress,
            low_priority: LowPriority::begin(priority),
            waited: Duration::ZERO,
            control: source.control,
            data: source.data,
            urgent: source.urgent,
            hello: source.hello,
            decoder: Decoder::new(machine.memory()),
            missing: None,
            fetching: None,
            in_place: 0,
            acknowledged: 0,
            flushed: 0,
            state: None,
            commit: None,
        }
    }

    fn take(&mut self, postcopier: Option<Postcopier>) -> Result<Running, ReceiveError> {
        self.preflight(postcopier)?;
        self.progress
            .update(|status| status.phase = MigrationPhase::Precopy);
        while self.commit.is_none() {
            self.serve()?;
        }
        if !self.progress.commit() {
            return Err(ConnectionError::Cancelled.into());
        }
        let commit = self.commit.take().expect("the loop ends with one");
        let committed = Instant::now();
        let state = self
            .state
            .take()
            .ok_or(ReceiveError::Unexpected("COMMIT without state"))?;
        while !self.open_data().is_empty() {
            self.serve_data()?;
        }
        self.check(&commit)?;
        if commit.left_pages > 0 {
            self.begin_postcopy(committed)?;
        }
        let mut running = Running {
            drain_us: committed.elapsed().as_micros() as u64,
            ..Running::default()
        };
        let mut lap = Instant::now();
        self.machine.take()?;
        running.ownership_us = next_lap(&mut lap);
        if let Err(error) = self.machine.restore(&state, commit.clock_ahead_ns) {
            self.machine.give_back();
            return Err(error.into());
        }
        running.restore_us = next_lap(&mut lap);
        if let Some(fetching) = &self.fetching
            && let Err(reason) = fetching.open_gate()
        {
            self.machine.give_back();
            return Err(ReceiveError::Unfetched(reason));
        }
        let failed = commit.failed.map(FailedDisk::into_reason);
        let reason = failed.unwrap_or(PauseReason::Requested);
        if let Err(error) = self.machine.start(commit.paused.then_some(reason)) {
            self.machine.give_back();
            return Err(error.into());
        }
        running.resume_us = next_lap(&mut lap);
        self.answer(Kind::Running, &running);
        Ok(running)
    }

    /// Whether the guest can run in the machine that was built here.
    fn preflight(&mut self, postcopier: Option<Postcopier>) -> Result<(), ReceiveError> {
        let memory = self.machine.memory();
        let regions: Vec<_> = memory
            .iter()
            .map(|region| (region.start_addr().0, region.len()))
            .collect();
        compatible::check(&self.hello, self.machine.config(), &regions)
            .map_err(ReceiveError::Unlike)?;
        if self.hello.may_leave_pages {
            self.prepare_postcopy(postcopier)?;
        }
        let welcome = Welcome {
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
            may_leave_pages: self.hello.may_leave_pages,
        };
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        Ok(self
            .control
            .send_message(Kind::Welcome, &welcome, deadline)?)
    }

    /// Waits for something to come, and takes all that is there.
    fn serve(&mut self) -> Result<(), ReceiveError> {
        let open = self.open_data();
        let data = open.iter().map(|&index| &self.data[index]);
        let all: Vec<_> = std::iter::once(&self.control).chain(data).collect();
        let start = Instant::now();
        let ready = wait_readable(&all, start + SILENCE, Some(self.progress.cancel()))?;
        self.waited += start.elapsed();
        self.low_priority.mind(self.waited, Duration::ZERO);
        for (bit, index) in (1..).zip(open) {
            if ready & 1 << bit != 0 {
                self.take_pages(index)?;
            }
        }
        self.acknowledge()?;
        if ready & 1 != 0 {
            self.take_messages()?;
        }
        Ok(())
    }

    /// The same for the data connections alone, when the guest is this side's already.
    fn serve_data(&mut self) -> Result<(), ReceiveError> {
        let open = self.open_data();
        let all: Vec<_> = open.iter().map(|&index| &self.data[index]).collect();
        let ready = wait_readable(&all, Instant::now() + SILENCE, None)?;
        for (bit, index) in (0..).zip(open) {
            if ready & 1 << bit != 0 {
                self.take_pages(index)?;
            }
        }
        Ok(())
    }

    /// The data connections on which something is to come. What follows behind a flush is for the
    /// post-copy thread.
    fn open_data(&self) -> Vec<usize> {
        let is_open = |index: &usize| self.flushed & 1 << index == 0;
        (0..self.data.len()).filter(is_open).collect()
    }

    fn take_pages(&mut self, index: usize) -> Result<(), ReceiveError> {
        let no_more = self.has_missing();
        while let Some(frame) = self.data[index].try_receive()? {
            match frame.kind {
                Kind::Pages if no_more => {
                    return Err(ReceiveError::Unexpected(
                        "pages after those that stay behind",
                    ));
                }
                Kind::Pages => {
                    self.decoder.apply(frame.body)?;
                    self.in_place += (HEADER_BYTES + frame.body.len()) as u64;
                }
                Kind::Flush => {
                    self.flushed |= 1 << index;
                    return Ok(());
                }
                _ => return Err(ReceiveError::Unexpected("no pages where they belong")),
            }
            if self.in_place - self.acknowledged >= ACK_BYTES {
                self.acknowledge()?;
            }
        }
        Ok(())
    }

    fn acknowledge(&mut self) -> Result<(), ReceiveError> {
        if self.in_place == self.acknowledged {
            return Ok(());
        }
        self.acknowledged = self.in_place;
        let ack = Ack {
            bytes: self.in_place,
        };
        let deadline = Instant::now() + SILENCE;
        let bytes = self.in_place;
        self.progress.update(|status| status.sent_bytes = bytes);
        Ok(self.control.send_message(Kind::Ack, &ack, deadline)?)
    }

    fn take_messages(&mut self) -> Result<(), ReceiveError> {
        let mut has_missing = self.has_missing();
        while let Some(frame) = self.control.try_receive()? {
            match frame.kind {
                Kind::Rehearse if has_missing => {
                    return Err(ReceiveError::Unexpected("a rehearsal without memory"));
                }
                Kind::Rehearse => {
                    let state = VmState::decode(frame.body)?;
                    let (came_unix_ns, start) = (now_unix_ns(), Instant::now());
                    self.machine.restore(&state, 0)?;
                    let rehearsed = Rehearsed {
                        restore_us: start.elapsed().as_micros() as u64,
                        came_unix_ns,
                        answered_unix_ns: now_unix_ns(),
                    };
                    let deadline = Instant::now() + ANSWER_TIMEOUT;
                    self.control
                        .send_message(Kind::Rehearsed, &rehearsed, deadline)?;
                }
                Kind::Leave => {
                    let Some((missing, _)) = &mut self.missing else {
                        return Err(ReceiveError::Unexpected("pages that may not stay behind"));
                    };
                    let pages = missing.leave(frame.body)?;
                    has_missing = missing.is_some();
                    let deadline = Instant::now() + ANSWER_TIMEOUT;
                    let dropped = Dropped { pages };
                    self.control
                        .send_message(Kind::Dropped, &dropped, deadline)?;
                }
                Kind::State => {
                    // The guest waits from now on.
                    self.low_priority.end();
                    self.state = Some(VmState::decode(frame.body)?);
                }
                Kind::Commit => {
                    self.commit = Some(frame.message()?);
                    return Ok(());
                }
                Kind::Cancel => return Err(cancelled(&frame)),
                _ => return Err(ReceiveError::Unexpected("a message out of turn")),
            }
        }
        Ok(())
    }

    fn check(&self, commit: &Commit) -> Result<(), ReceiveError> {
        if self.in_place != commit.bytes {
            return Err(ReceiveError::Missing {
                sent: commit.bytes,
                came: self.in_place,
            });
        }
        let missing = self.missing.as_ref();
        let named = missing.map_or(0, |(missing, _)| missing.count());
        if named != commit.left_pages {
            return Err(ReceiveError::LeftCount {
                left: commit.left_pages,
                named,
            });
        }
        let Some(theirs) = commit.checksum else {
            return Ok(());
        };
        if named > 0 {
            return Err(ReceiveError::Unexpected(
                "a checksum of pages that are not here",
            ));
        }
        match checksum::of(&self.machine.memory()) {
            ours if ours == theirs => Ok(()),
            ours => Err(ReceiveError::Checksum { ours, theirs }),
        }
    }

    /// A connection that ends may have been preceded by a word on another one.
    fn explain(&mut self, error: ReceiveError) -> ReceiveError {
        if !matches!(error, ReceiveError::Connection(ConnectionError::Closed)) {
            return error;
        }
        let deadline = Instant::now() + FAREWELL;
        while let Ok(frame) = self.control.receive(deadline) {
            if frame.kind == Kind::Cancel {
                return cancelled(&frame);
            }
        }
        error
    }

    /// Tells the source, as far as it listens.
    fn answer<T: serde::Serialize>(&mut self, kind: Kind, message: &T) {
        self.control.ignore_cancel();
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        if let Err(error) = self.control.send_message(kind, message, deadline) {
            tracing::warn!("the source was not told: {error}");
        }
    }

    fn refuse(&mut self, reason: &str) {
        let message = reason.to_owned();
        self.answer(Kind::Aborted, &Reason { message });
    }
}

fn cancelled(frame: &Frame<'_>) -> ReceiveError {
    match frame.message() {
        Ok(Reason { message }) => ReceiveError::Cancelled(message),
        Err(error) => error.into(),
    }
}

/// Microseconds since the last lap.
fn next_lap(lap: &mut Instant) -> u64 {
    let now = Instant::now();
    let time = now.duration_since(*lap);
    *lap = now;
    time.as_micros() as u64
}
