//! The switchover: the guest stands from its pause here until it runs at the destination.

use std::time::{Duration, Instant};

use pindah_vmm_api::{
    MigrateRequest, MigrationPhase, MigrationReport, PauseReason, RoundReport, SwitchoverReport,
};

use super::postcopy::{self, Postcopy};
use super::precopy::{Ending, Precopy};
use super::sender::Sender;
use super::{MigrationError, QUIESCE};
use crate::migration::checksum;
use crate::migration::connection::{ConnectionError, Frame};
use crate::migration::pending::Pending;
use crate::migration::progress::Progress;
use crate::migration::protocol::{Commit, FailedDisk, Kind, Reason, Running};
use crate::vm::migratable::{MigratableError, MigrationSource};

/// How long the destination may take from COMMIT to its answer: pages, locks, disks' metadata.
pub const ANSWER: Duration = Duration::from_secs(30);
/// How long to try to win the guest back from a destination that does not answer: a NAS whose
/// leases last for 10 s frees the locks of a host that has gone by then.
const WIN_BACK: Duration = Duration::from_secs(12);

/// Moves a guest whose memory is there but for what is pending, and that too unless it stays
/// behind.
pub fn run(
    guest: &dyn MigrationSource,
    request: &MigrateRequest,
    mut precopy: Precopy<'_>,
    ending: Ending,
    sender: &mut Sender<'_>,
    progress: &Progress,
) -> Result<MigrationReport, MigrationError> {
    progress.update(|status| status.phase = MigrationPhase::Switchover);
    sender.set_throttle(0);
    let mut steps = Steps::start();
    let mut report = SwitchoverReport::default();
    if let Err(busy) = guest.quiesce(Instant::now() + QUIESCE) {
        guest.unquiesce();
        return Err(busy.into());
    }
    report.quiesce_us = steps.next();
    let paused = Instant::now();
    let ran = match guest.pause(PauseReason::Migration) {
        Ok(ran) => ran,
        Err(error) => {
            guest.unquiesce();
            return Err(error.into());
        }
    };
    report.pause_us = steps.next();
    let mut last = LastRound {
        guest,
        sender,
        precopy: &mut precopy,
        progress,
        left: None,
    };
    let committed = last.send(request, ending, ran, &mut steps, &mut report);
    let state_bytes = match committed {
        Ok(state_bytes) => state_bytes,
        Err(Uncommitted(error)) => {
            go_on(guest, ran);
            return Err(error);
        }
    };
    let mut left_behind = None;
    let answer = match last.left.take() {
        None => last.answer(),
        Some(pages) => left_behind
            .insert(Postcopy::new(last.sender, pages, progress))
            .until_running(),
    };
    match answer {
        Ok(running) => {
            let downtime = paused.elapsed();
            report.answer_us = steps.next();
            report.drain_us = running.drain_us;
            report.ownership_us = running.ownership_us;
            report.restore_us = running.restore_us;
            report.resume_us = running.resume_us;
            let postcopy = left_behind.map(Postcopy::finish).transpose();
            let postcopy = postcopy.inspect_err(|_| guest.lose())?;
            Ok(MigrationReport {
                total_ms: progress.elapsed().as_millis() as u64,
                downtime_us: downtime.as_micros() as u64,
                sent_bytes: sender.wire_bytes(),
                pages: sender.statistics(),
                rounds: precopy.rounds,
                switchover: report,
                state_bytes,
                throttle_percent: precopy.throttle_percent,
                postcopy,
            })
        }
        Err(NoAnswer::Aborted(message)) => {
            // It has said that the guest will never run there.
            match guest.take_back(ANSWER) {
                Ok(()) => {
                    go_on(guest, ran);
                    Err(MigrationError::Refused(message))
                }
                Err(error) => Err(in_doubt(guest, message, &error)),
            }
        }
        Err(NoAnswer::Lost(after)) => match guest.win_back(WIN_BACK) {
            Ok(()) => {
                tracing::warn!("the destination did not answer ({after}); the guest was won back");
                go_on(guest, ran);
                Err(MigrationError::Refused(after))
            }
            Err(error) => Err(in_doubt(guest, after, &error)),
        },
    }
}

/// The guest was given away, and the right to run it did not come back.
fn in_doubt(guest: &dyn MigrationSource, after: String, error: &MigratableError) -> MigrationError {
    guest.doubt();
    MigrationError::InDoubt {
        after,
        why: crate::causes::chain(error),
    }
}

/// The guest runs on here, if it did before.
fn go_on(guest: &dyn MigrationSource, ran: bool) {
    guest.unquiesce();
    if ran && let Err(error) = guest.resume() {
        tracing::error!("the guest stays paused after its migration failed: {error}");
    }
}

/// Nothing was sent that would let the destination run the guest.
struct Uncommitted(MigrationError);

impl<E: Into<MigrationError>> From<E> for Uncommitted {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

/// Why the destination's answer is not that it runs the guest.
pub enum NoAnswer {
    /// It will never run it.
    Aborted(String),
    /// There is none.
    Lost(String),
}

impl NoAnswer {
    /// There is none since the connection is broken.
    pub fn of(error: &ConnectionError) -> Self {
        Self::Lost(crate::causes::chain(error))
    }

    /// What `frame` says, if it is the answer.
    pub fn or_running(frame: &Frame<'_>) -> Result<Option<Running>, Self> {
        match frame.kind {
            Kind::Ack | Kind::Dropped => Ok(None),
            Kind::Running => frame.message().map(Some).map_err(|error| Self::of(&error)),
            Kind::Aborted => {
                let Reason { message } = frame.message().map_err(|error| Self::of(&error))?;
                Err(Self::Aborted(message))
            }
            kind => Err(Self::Lost(format!("it sent {kind:?} instead"))),
        }
    }
}

struct LastRound<'a, 'b, 'c> {
    guest: &'a dyn MigrationSource,
    sender: &'a mut Sender<'b>,
    precopy: &'a mut Precopy<'c>,
    progress: &'a Progress,
    /// Pages that stay behind.
    left: Option<Pending>,
}

impl LastRound<'_, '_, '_> {
    /// The last pages, the state and COMMIT. Returns the state's size once COMMIT may have
    /// reached the destination.
    fn send(
        &mut self,
        request: &MigrateRequest,
        ending: Ending,
        ran: bool,
        steps: &mut Steps,
        report: &mut SwitchoverReport,
    ) -> Result<u64, Uncommitted> {
        match ending {
            Ending::SendPages => self.send_pages()?,
            Ending::LeavePages => self.leave_pages()?,
        }
        report.last_pages_us = steps.next();
        let state = self.guest.save()?.encode().map_err(MigrationError::from)?;
        report.save_us = steps.next();
        let commit = Commit {
            bytes: self.sender.sent(),
            left_pages: self.left.as_ref().map_or(0, Pending::count),
            checksum: (request.verify_memory && self.left.is_none())
                .then(|| checksum::of(&self.guest.memory())),
            paused: !ran,
            failed: FailedDisk::of(self.guest.pause_reason()),
            clock_ahead_ns: self.precopy.rehearsal.clock_ahead_ns,
        };
        let deadline = Instant::now() + ANSWER;
        let control = &mut self.sender.control;
        control
            .send_frame(Kind::State, &state, deadline)
            .map_err(MigrationError::from)?;
        if !self.progress.commit() {
            return Err(Uncommitted(MigrationError::Cancelled));
        }
        control.ignore_cancel();
        self.guest.give_up();
        let before = control.wire_bytes();
        if let Err(error) = control.send_message(Kind::Commit, &commit, deadline) {
            // Once a byte of it has left, the destination may have it, whatever became of the rest.
            if control.wire_bytes() == before && self.guest.take_back(ANSWER).is_ok() {
                return Err(Uncommitted(error.into()));
            }
            tracing::warn!("COMMIT: {error}");
        }
        report.commit_us = steps.next();
        Ok(state.len() as u64)
    }

    fn send_pages(&mut self) -> Result<(), MigrationError> {
        let start = Instant::now();
        let before = self.sender.sent();
        self.precopy.take_dirty()?;
        let pending = &self.precopy.pending;
        let pages = pending.count();
        for chunk in pending.chunks(64) {
            let runs = pending.runs(chunk, pending.words(chunk));
            self.sender.send_now(&runs)?;
        }
        self.sender.flush()?;
        self.precopy.rounds.push(RoundReport {
            pages,
            wire_bytes: self.sender.sent() - before,
            duration_us: start.elapsed().as_micros() as u64,
        });
        Ok(())
    }

    /// The pages that are pending stay behind. The destination knows it of those that were when
    /// precopy ended.
    fn leave_pages(&mut self) -> Result<(), MigrationError> {
        let known = self.precopy.pending.clone();
        self.precopy.take_dirty()?;
        let pages = self.precopy.pending.clone();
        postcopy::send(&pages.without(&known), self.sender)?;
        self.left = (pages.count() > 0).then_some(pages);
        self.sender.flush()
    }

    fn answer(&mut self) -> Result<Running, NoAnswer> {
        let deadline = Instant::now() + ANSWER;
        loop {
            let frame = self.sender.control.receive(deadline);
            let frame = frame.map_err(|error| NoAnswer::of(&error))?;
            if let Some(running) = NoAnswer::or_running(&frame)? {
                return Ok(running);
            }
        }
    }
}

/// A stopwatch with laps.
struct Steps(Instant);

impl Steps {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// Microseconds since the last call.
    fn next(&mut self) -> u64 {
        let now = Instant::now();
        let lap = now.duration_since(self.0);
        self.0 = now;
        lap.as_micros() as u64
    }
}
