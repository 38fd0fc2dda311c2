//! The switchover: the guest stands from its pause here until it runs at the destination.

use std::time::{Duration, Instant};

use pindah_vmm_api::{
    MigrateRequest, MigrationPhase, MigrationReport, PauseReason, RoundReport, SwitchoverReport,
};

use super::precopy::Precopy;
use super::sender::Sender;
use super::{MigrationError, QUIESCE};
use crate::migration::checksum;
use crate::migration::connection::ConnectionError;
use crate::migration::progress::Progress;
use crate::migration::protocol::{Commit, Kind, Reason, Running};
use crate::vm::migratable::{MigratableError, MigrationSource};

/// How long the destination may take from COMMIT to its answer: pages, locks, disks' metadata.
const ANSWER: Duration = Duration::from_secs(30);
/// How long to try to win the guest back from a destination that does not answer: a NAS whose
/// leases last for 10 s frees the locks of a host that has gone by then.
const WIN_BACK: Duration = Duration::from_secs(12);

/// Moves a guest whose memory is there but for what is pending.
pub fn run(
    guest: &dyn MigrationSource,
    request: &MigrateRequest,
    mut precopy: Precopy<'_>,
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
    };
    let committed = last.send(request, ran, &mut steps, &mut report);
    let (state_bytes, answer) = match committed {
        Ok(state_bytes) => (state_bytes, last.answer()),
        Err(Uncommitted(error)) => {
            go_on(guest, ran);
            return Err(error);
        }
    };
    match answer {
        Ok(running) => {
            report.answer_us = steps.next();
            report.drain_us = running.drain_us;
            report.ownership_us = running.ownership_us;
            report.restore_us = running.restore_us;
            report.resume_us = running.resume_us;
            Ok(MigrationReport {
                total_ms: progress.elapsed().as_millis() as u64,
                downtime_us: paused.elapsed().as_micros() as u64,
                sent_bytes: sender.wire_bytes(),
                pages: sender.statistics(),
                rounds: precopy.rounds,
                switchover: report,
                state_bytes,
                throttle_percent: precopy.throttle_percent,
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
enum NoAnswer {
    /// It will never run it.
    Aborted(String),
    /// There is none.
    Lost(String),
}

struct LastRound<'a, 'b, 'c> {
    guest: &'a dyn MigrationSource,
    sender: &'a mut Sender<'b>,
    precopy: &'a mut Precopy<'c>,
    progress: &'a Progress,
}

impl LastRound<'_, '_, '_> {
    /// The last pages, the state and COMMIT. Returns the state's size once COMMIT may have
    /// reached the destination.
    fn send(
        &mut self,
        request: &MigrateRequest,
        ran: bool,
        steps: &mut Steps,
        report: &mut SwitchoverReport,
    ) -> Result<u64, Uncommitted> {
        self.send_pages()?;
        report.last_pages_us = steps.next();
        let state = self.guest.save()?.encode().map_err(MigrationError::from)?;
        report.save_us = steps.next();
        let commit = Commit {
            bytes: self.sender.sent(),
            checksum: request
                .verify_memory
                .then(|| checksum::of(&self.guest.memory())),
            paused: !ran,
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

    fn answer(&mut self) -> Result<Running, NoAnswer> {
        let deadline = Instant::now() + ANSWER;
        let lost = |error: ConnectionError| NoAnswer::Lost(crate::causes::chain(&error));
        loop {
            let frame = self.sender.control.receive(deadline).map_err(lost)?;
            match frame.kind {
                Kind::Ack => {}
                Kind::Running => return frame.message().map_err(lost),
                Kind::Aborted => {
                    let Reason { message } = frame.message().map_err(lost)?;
                    return Err(NoAnswer::Aborted(message));
                }
                kind => return Err(NoAnswer::Lost(format!("it sent {kind:?} instead"))),
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
