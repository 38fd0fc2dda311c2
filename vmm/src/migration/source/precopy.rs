//! Precopy: rounds over the pages that were written, while the guest runs.

use std::time::{Duration, Instant};

use pindah_vmm_api::{MigrateRequest, MigrationMode, MigrationPhase, RoundReport};

use super::sender::Sender;
use super::{MigrationError, Rehearsal};
use crate::memory::PAGE_SIZE;
use crate::migration::convergence::{
    Decision, Observation, Prediction, Targets, decide, expected_switchover, predicted_downtime,
};
use crate::migration::pending::Pending;
use crate::migration::progress::Progress;
use crate::vm::migratable::MigrationSource;

/// A chunk whose pages are protected anew takes the link about this long.
const CHUNK_TIME: Duration = Duration::from_millis(5);
/// Chunks in words of 64 pages: a MiB at least, 64 MiB at most.
const CHUNK_WORDS: std::ops::RangeInclusive<u64> = 4..=256;
/// How often to look within a round whether the guest writes too fast.
const LOOK: Duration = Duration::from_millis(50);
/// How long to wait where nothing is dirty and another round promises something.
const PAUSE: Duration = Duration::from_millis(1);

/// In a round so many pages tell what a page takes on the wire.
const TRIAL_PAGES: u64 = 256;

/// How precopy ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The pages that are pending go while the guest stands.
    SendPages,
    /// They stay behind, and the guest runs without them.
    LeavePages,
}

/// The rounds so far, and the pages that are left.
pub struct Precopy<'a> {
    guest: &'a dyn MigrationSource,
    progress: &'a Progress,
    targets: Targets,
    /// What was learned before.
    pub rehearsal: Rehearsal,
    /// Pages that the destination does not have as they are now.
    pub pending: Pending,
    /// Pages that were dirty a round ago: those that are again wait for the end of the round.
    before: Pending,
    /// The rounds.
    pub rounds: Vec<RoundReport>,
    predictions: Vec<Prediction>,
    dirty_pages_per_s: f64,
    logged: Instant,
    /// What vCPUs are held for, in per cent of their time; it only rises.
    pub throttle_percent: u8,
}

impl<'a> Precopy<'a> {
    /// Before the first round, with the dirty log just started.
    pub fn new(
        guest: &'a dyn MigrationSource,
        request: &MigrateRequest,
        rehearsal: Rehearsal,
        progress: &'a Progress,
    ) -> Self {
        let memory = guest.memory();
        Self {
            guest,
            progress,
            targets: Targets {
                downtime: Duration::from_millis(request.downtime_target_ms),
                timeout: Duration::from_secs(request.timeout_s),
                may_leave_pages: request.mode == MigrationMode::Hybrid,
            },
            rehearsal,
            pending: Pending::all(&memory),
            before: Pending::none(&memory),
            rounds: Vec::new(),
            predictions: Vec::new(),
            dirty_pages_per_s: 0.0,
            logged: Instant::now(),
            throttle_percent: 0,
        }
    }

    /// Rounds until the guest may be stopped.
    pub fn run(&mut self, sender: &mut Sender<'_>) -> Result<Ending, MigrationError> {
        self.progress
            .update(|status| status.phase = MigrationPhase::Precopy);
        self.first_round(sender)?;
        loop {
            self.take_dirty()?;
            let observation = self.observe(sender, 0, None);
            let decision = decide(&observation, &self.targets);
            let prediction = Prediction {
                elapsed: observation.elapsed,
                downtime: predicted_downtime(&observation),
            };
            let expected = expected_switchover(&observation, &self.targets);
            self.tell(&prediction, expected);
            self.predictions.push(prediction);
            match decision {
                Decision::SwitchOver => return Ok(Ending::SendPages),
                Decision::LeavePages => return Ok(Ending::LeavePages),
                Decision::Abort { reason } => {
                    return Err(MigrationError::GivenUp {
                        reason,
                        after: self.progress.elapsed(),
                    });
                }
                Decision::Throttle { percent } => self.throttle(percent, sender),
                Decision::Iterate => {}
            }
            if self.pending.count() == 0 {
                sender.idle(PAUSE)?;
            } else if self.round(sender)? == Some(Ending::LeavePages) {
                return Ok(Ending::LeavePages);
            }
        }
    }

    /// Adds to the pages that are pending what was written since the last look.
    pub fn take_dirty(&mut self) -> Result<(), MigrationError> {
        let dirty = self.guest.take_dirty()?;
        let fresh = self.pending.add(&dirty);
        let time = self.logged.elapsed().as_secs_f64();
        self.logged = Instant::now();
        self.dirty_pages_per_s = fresh as f64 / time.max(1e-4);
        Ok(())
    }

    fn throttle(&mut self, percent: u8, sender: &mut Sender<'_>) {
        self.throttle_percent = percent;
        sender.end_low_priority();
        sender.set_throttle(percent);
    }

    /// Within a round of which so many pages are left: a guest that writes too fast is held at
    /// once, or goes, and not when all of it is sent in vain.
    fn look(
        &mut self,
        unsent_pages: u64,
        so_far: RoundReport,
        sender: &mut Sender<'_>,
    ) -> Result<Option<Ending>, MigrationError> {
        if unsent_pages == 0 || self.logged.elapsed() < LOOK {
            return Ok(None);
        }
        self.take_dirty()?;
        let observation = self.observe(sender, unsent_pages, Some(so_far));
        match decide(&observation, &self.targets) {
            Decision::Throttle { percent } => self.throttle(percent, sender),
            Decision::LeavePages => return Ok(Some(Ending::LeavePages)),
            _ => {}
        }
        Ok(None)
    }

    /// All pages that were ever written, once.
    fn first_round(&mut self, sender: &mut Sender<'_>) -> Result<(), MigrationError> {
        let start = Instant::now();
        let (before, mut pages) = (sender.sent(), 0);
        for chunk in self.pending.chunks(Self::chunk_words(sender)) {
            let all = self.pending.words(chunk).to_vec();
            self.guest
                .clear_dirty(chunk.region, chunk.first_page, chunk.pages, &all)?;
            // After the clear: a page that is touched from now on is in the log.
            let touched = self
                .guest
                .touched(chunk.region, chunk.first_page, chunk.pages);
            let count = |words: &[u64]| -> u64 {
                words.iter().map(|word| u64::from(word.count_ones())).sum()
            };
            sender.count_untouched(count(&all) - count(&touched));
            pages += count(&touched);
            let runs = self.pending.runs(chunk, &touched);
            self.pending.remove(chunk, &all);
            self.show_remaining();
            sender.send(&runs)?;
            sender.mind_share();
        }
        self.end_round(sender, start, before, pages)
    }

    /// All pages that are pending, or fewer if the guest is not to wait for the others.
    fn round(&mut self, sender: &mut Sender<'_>) -> Result<Option<Ending>, MigrationError> {
        let start = Instant::now();
        let (before, pages) = (sender.sent(), self.pending.count());
        let mut unsent = pages;
        let dirty = self.pending.clone();
        let hot = self.pending.intersection(&self.before);
        let cold = self.pending.without(&hot);
        for part in [cold, hot] {
            for chunk in part.chunks(Self::chunk_words(sender)) {
                let words = part.words(chunk);
                self.guest
                    .clear_dirty(chunk.region, chunk.first_page, chunk.pages, words)?;
                let runs = part.runs(chunk, words);
                self.pending.remove(chunk, words);
                self.show_remaining();
                sender.send(&runs)?;
                unsent -= runs.iter().map(|&(_, pages)| u64::from(pages)).sum::<u64>();
                let so_far = RoundReport {
                    pages: pages - unsent - sender.pages_ahead(),
                    wire_bytes: sender.sent() - before,
                    duration_us: 0,
                };
                if let Some(ending) = self.look(unsent, so_far, sender)? {
                    self.end_round(sender, start, before, pages - unsent)?;
                    return Ok(Some(ending));
                }
                sender.mind_share();
            }
        }
        self.before = dirty;
        self.end_round(sender, start, before, pages)?;
        Ok(None)
    }

    fn end_round(
        &mut self,
        sender: &mut Sender<'_>,
        start: Instant,
        sent_before: u64,
        pages: u64,
    ) -> Result<(), MigrationError> {
        sender.drain()?;
        self.rounds.push(RoundReport {
            pages,
            wire_bytes: sender.sent() - sent_before,
            duration_us: start.elapsed().as_micros() as u64,
        });
        Ok(())
    }

    fn chunk_words(sender: &Sender<'_>) -> usize {
        let rate = sender.capped_rate().unwrap_or(0) as f64;
        let words = rate * CHUNK_TIME.as_secs_f64() / (64 * PAGE_SIZE) as f64;
        (words as u64).clamp(*CHUNK_WORDS.start(), *CHUNK_WORDS.end()) as usize
    }

    /// What is known while so many pages of a round are left, of which so much is sent. A guest that
    /// may leave pages goes by what the first pages of its second round take; one that would be
    /// held waits for the whole round.
    fn observe(
        &self,
        sender: &Sender<'_>,
        unsent_pages: u64,
        so_far: Option<RoundReport>,
    ) -> Observation<'_> {
        let trial = so_far.filter(|part| self.targets.may_leave_pages && part.pages >= TRIAL_PAGES);
        let last = self.rounds.iter().rev().find(|round| round.pages > 0);
        let last = trial.as_ref().or(last);
        let wire_bytes_per_page = last.map_or(PAGE_SIZE as f64, |round| {
            round.wire_bytes as f64 / round.pages as f64
        });
        // Those that are being encoded are pending no more.
        let unsent_on_wire = (unsent_pages + sender.pages_ahead()) as f64;
        Observation {
            unsent_bytes: (unsent_on_wire * wire_bytes_per_page) as u64,
            dirty_pages: self.pending.count() - unsent_pages,
            dirty_pages_per_s: self.dirty_pages_per_s,
            wire_bytes_per_page,
            rewrites_measured: self.rounds.len() > 1 || trial.is_some(),
            send_bytes_per_s: sender.capped_rate().unwrap_or(u64::MAX),
            in_flight_bytes: sender.in_flight(),
            fixed_cost: self.rehearsal.fixed_cost,
            elapsed: self.progress.elapsed(),
            throttle_percent: self.throttle_percent,
            earlier: &self.predictions,
        }
    }

    fn show_remaining(&self) {
        let remaining_bytes = self.pending.count() * PAGE_SIZE;
        let round = self.rounds.len() as u32 + 1;
        self.progress.update(|status| {
            status.remaining_bytes = remaining_bytes;
            status.round = round;
        });
    }

    fn tell(&self, prediction: &Prediction, expected: Option<Duration>) {
        let (remaining_bytes, dirty) = (self.pending.count() * PAGE_SIZE, self.dirty_pages_per_s);
        self.progress.update(|status| {
            status.round = self.rounds.len() as u32 + 1;
            status.remaining_bytes = remaining_bytes;
            status.dirty_bytes_per_s = (dirty * PAGE_SIZE as f64) as u64;
            status.predicted_downtime_us = prediction.downtime.as_micros() as u64;
            status.throttle_percent = self.throttle_percent;
            status.eta_ms = expected.map(|time| time.as_millis() as u64);
        });
        tracing::debug!(
            round = self.rounds.len(),
            pages = remaining_bytes / PAGE_SIZE,
            dirty_pages_per_s = dirty as u64,
            predicted_us = prediction.downtime.as_micros() as u64,
            throttle = self.throttle_percent,
            last = ?self.rounds.last(),
            "round"
        );
    }
}
