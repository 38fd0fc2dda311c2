//! When to stop the guest, and what to do if it writes too fast.
//!
//! One pure function of what was measured. What decides is how long the guest would stand:
//!
//! ```text
//! transfer  = (bytes on their way + dirty pages × wire bytes a page) / send rate
//! predicted = fixed cost + transfer
//! growth    = dirty rate × wire bytes a page / send rate
//! ```
//! A round leaves `growth` times the transfer of the round before, until the whole working set is
//! dirty each time. Below 1 the rounds get shorter by themselves.
//!
//! The target is for all of it. Rounds do not lower the fixed cost, though, and a guest on a busy
//! host moves all the same: its pages may take half of the target in any case.
//!
//! - Predicted at or below that: the guest is stopped, unless one more round promises a
//!   quarter less and the rounds since the target was first met stay within a fifth of the time
//!   until then and 100 ms.
//! - Above it, and `growth` is about 1 or more (0.7 if they are held already), or two rounds brought no tenth less: the vCPUs are held
//!   for `p` per cent of their time, so that the next round leaves half. With `p₀` of now,
//!
//!   ```text
//!   p = 100 − (100 − p₀) × 0.5 / growth
//!   ```
//!   rounded up to a step of 20, 40, 60, 80, 95, 99, and a step up in any case, since the dirty
//!   rate is measured too low when the whole working set is dirty.
//!   Where the guest may leave pages behind, it does that instead of being held.
//! - Else: another round.
//!
//! The guest is never stopped for longer than that: if nothing helps, the time runs out.

#[cfg(test)]
mod tests;

use std::time::Duration;

/// What vCPUs are held for, in per cent of their time, one step after the other.
const STEPS: [u8; 6] = [20, 40, 60, 80, 95, 99];

/// Another round has to promise to bring the prediction to this share.
const WORTHWHILE: f64 = 0.75;

/// A round that leaves more than this share of the prediction before it has brought nothing.
const IMPROVED: f64 = 0.9;

/// From this growth on rounds do not get shorter in any useful time…
const HOPELESS: f64 = 0.95;

/// … and from this one on a guest that is held already is held for longer than it needs to be.
const HOPELESS_THROTTLED: f64 = 0.7;

/// So much of the time until the target was met may be spent on coming further below it…
const EXTRA_SHARE: f64 = 0.2;

/// … and this.
const EXTRA: Duration = Duration::from_millis(100);

/// After so many rounds below the target without a lower prediction there will be none.
const TRIES: usize = 2;

/// So many rounds below the target are made at most while the prediction is worse than it was.
const MOST_TRIES: usize = 8;

/// What a round takes beside its transfer: the dirty log, threads that wake.
const ROUND_COST: Duration = Duration::from_micros(200);

/// A prediction that was made at the end of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// When, since the start of the migration.
    pub elapsed: Duration,
    /// How long the guest would have stood.
    pub downtime: Duration,
}

/// What is known at the end of a round, or within one.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// What this round has still to send, in bytes on the wire: 0 at its end. Within a round
    /// nothing but [`Decision::Throttle`] or [`Decision::LeavePages`] can be gained, and that only
    /// if [`Self::rewrites_measured`]; every 50 ms is often enough.
    pub unsent_bytes: u64,
    /// Pages that were written since they were sent.
    pub dirty_pages: u64,
    /// Pages that the guest makes dirty, a second, under the present throttle. The shorter the
    /// time over which it was measured, the better: a page that is written twice counts once.
    pub dirty_pages_per_s: f64,
    /// What a dirty page takes on the wire, in bytes, by the last round or by a trial.
    pub wire_bytes_per_page: f64,
    /// Whether that was measured on pages that had been sent before, so that it holds for those
    /// that are written again and again: differences may make them a fortieth of what the first
    /// round saw.
    pub rewrites_measured: bool,
    /// What the destination acknowledges, in bytes a second; the lower one of that and a cap.
    pub send_bytes_per_s: u64,
    /// Sent and not acknowledged, in bytes.
    pub in_flight_bytes: u64,
    /// What the switchover takes without any page: pause, state, restore, round trips.
    pub fixed_cost: Duration,
    /// Since the start of the migration.
    pub elapsed: Duration,
    /// Share of their time for which vCPUs are held, in per cent.
    pub throttle_percent: u8,
    /// The predictions at the ends of the rounds before, the oldest first. Their number is that of
    /// the rounds.
    pub earlier: &'a [Prediction],
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// The guest is not stopped if it would stand for longer, unless it is the fixed cost that
    /// leaves less than half of this for pages.
    pub downtime: Duration,
    /// The migration is given up after this time.
    pub timeout: Duration,
    /// A guest that writes too fast may leave pages behind, and is not held then.
    pub may_leave_pages: bool,
}

impl Targets {
    /// With a downtime that leaves half of the present one for pages.
    fn leaving_room(&self, fixed_cost: Duration) -> Self {
        Self {
            downtime: self
                .downtime
                .max(fixed_cost.saturating_add(self.downtime / 2)),
            ..*self
        }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another round, or on with this one. If no page is dirty: wait for the acknowledgements.
    Iterate,
    /// Stop the guest.
    SwitchOver,
    /// Hold the vCPUs more, and then as with [`Self::Iterate`].
    Throttle {
        /// For this share of their time, in per cent; more than now, 99 at most.
        percent: u8,
    },
    /// Stop the guest and let it run at the destination, which fetches the pages that it has left
    /// behind.
    LeavePages,
    /// Give up; the guest goes on here.
    Abort {
        /// Why.
        reason: AbortReason,
    },
}

/// Why a migration is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AbortReason {
    /// [`Targets::timeout`] has passed.
    #[error("it did not come below the downtime target in time")]
    Timeout,
}

/// What to do after this round, or within it.
pub fn decide(observation: &Observation, targets: &Targets) -> Decision {
    if observation.elapsed >= targets.timeout {
        return Decision::Abort {
            reason: AbortReason::Timeout,
        };
    }
    let targets = &targets.leaving_room(observation.fixed_cost);
    let predicted = predicted_downtime(observation);
    let within_round = observation.unsent_bytes > 0;
    if !within_round && predicted <= targets.downtime {
        return if is_worth_another_round(observation, targets, predicted) {
            Decision::Iterate
        } else {
            Decision::SwitchOver
        };
    }
    let limit = if observation.throttle_percent == 0 {
        HOPELESS
    } else {
        HOPELESS_THROTTLED
    };
    let hopeless = observation.rewrites_measured && growth(observation) >= limit;
    let stalled = !within_round && has_stalled(observation.earlier, predicted);
    if !hopeless && !stalled {
        return Decision::Iterate;
    }
    if targets.may_leave_pages {
        return Decision::LeavePages;
    }
    match next_percent(observation) {
        Some(percent) => Decision::Throttle { percent },
        None => Decision::Iterate,
    }
}

/// How long the guest would stand if it was stopped now; [`Duration::MAX`] if nothing is known
/// about the send rate.
pub fn predicted_downtime(observation: &Observation) -> Duration {
    let bytes = observation.in_flight_bytes as f64
        + observation.unsent_bytes as f64
        + wire_bytes(observation, observation.dirty_pages as f64);
    observation
        .fixed_cost
        .saturating_add(transfer(observation, bytes))
}

/// When the target will be met if it goes on like this, from now; `None` if it will not be, or
/// that cannot be told.
pub fn expected_switchover(observation: &Observation, targets: &Targets) -> Option<Duration> {
    let targets = targets.leaving_room(observation.fixed_cost);
    let allowed = targets.downtime.checked_sub(observation.fixed_cost)?;
    let unsent = transfer(observation, observation.unsent_bytes as f64);
    let growth = growth(observation);
    let dirty = wire_bytes(observation, observation.dirty_pages as f64);
    let mut left = transfer(observation, dirty).as_secs_f64() + unsent.as_secs_f64() * growth;
    let allowed = allowed.as_secs_f64();
    let mut total = unsent.as_secs_f64();
    if left > allowed {
        if growth >= 1.0 || allowed <= 0.0 {
            return None;
        }
        // Rounds of left, left × growth, left × growth², … until one is short enough.
        let rounds = ((allowed / left).ln() / growth.max(1e-9).ln()).ceil();
        left *= (1.0 - growth.powf(rounds)) / (1.0 - growth);
        total += left;
    }
    Duration::try_from_secs_f64(total).ok()
}

/// What the next round leaves, as a share of this one's transfer.
fn growth(observation: &Observation) -> f64 {
    let bytes = wire_bytes(observation, observation.dirty_pages_per_s);
    bytes / observation.send_bytes_per_s.max(1) as f64
}

fn wire_bytes(observation: &Observation, pages: f64) -> f64 {
    pages * observation.wire_bytes_per_page
}

fn transfer(observation: &Observation, bytes: f64) -> Duration {
    if bytes <= 0.0 {
        return Duration::ZERO;
    }
    let seconds = bytes / observation.send_bytes_per_s as f64;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn is_worth_another_round(
    observation: &Observation,
    targets: &Targets,
    predicted: Duration,
) -> bool {
    let earlier = observation.earlier;
    let met = earlier
        .iter()
        .position(|prediction| prediction.downtime <= targets.downtime);
    let (since, below) = match met {
        Some(first) => (earlier[first].elapsed, &earlier[first..]),
        None => (observation.elapsed, &[][..]),
    };
    let dirty = wire_bytes(observation, observation.dirty_pages as f64);
    let in_flight = observation.in_flight_bytes as f64;
    let round = ROUND_COST + transfer(observation, dirty.max(in_flight));
    let until = observation.elapsed.saturating_add(round);
    if until > since + since.mul_f64(EXTRA_SHARE) + EXTRA {
        return false;
    }
    let near = |best: Duration| predicted.mul_f64(WORTHWHILE) <= best;
    match below.iter().map(|prediction| prediction.downtime).min() {
        // The guest wrote more than usual: it was better and will be again.
        Some(best) if !near(best) => below.len() < MOST_TRIES,
        Some(_) if is_fruitless(below, predicted) => false,
        _ => expected(observation, round) < predicted.mul_f64(WORTHWHILE),
    }
}

/// Whether the last rounds did not keep what they promised.
fn is_fruitless(below: &[Prediction], predicted: Duration) -> bool {
    let (before, after) = below.split_at(below.len().saturating_sub(TRIES - 1));
    let least = |of: &[Prediction]| of.iter().map(|p| p.downtime).min();
    let after = least(after).map_or(predicted, |least| least.min(predicted));
    least(before).is_some_and(|before| after > before.mul_f64(IMPROVED))
}

/// What would be predicted after another round of this length.
fn expected(observation: &Observation, round: Duration) -> Duration {
    let dirty = wire_bytes(observation, observation.dirty_pages as f64);
    let written = observation.dirty_pages_per_s * round.as_secs_f64();
    let in_flight = dirty.min(observation.in_flight_bytes as f64);
    let bytes = wire_bytes(observation, written) + in_flight;
    observation
        .fixed_cost
        .saturating_add(transfer(observation, bytes))
}

/// Whether the last two rounds brought nothing.
fn has_stalled(earlier: &[Prediction], predicted: Duration) -> bool {
    let [.., before, last] = earlier else {
        return false;
    };
    last.downtime.min(predicted) > before.downtime.mul_f64(IMPROVED)
}

/// The least step above the present percentage with which the next round leaves half; `None` if
/// there is no step left.
fn next_percent(observation: &Observation) -> Option<u8> {
    let now = f64::from(observation.throttle_percent.min(100));
    let wanted = 100.0 - (100.0 - now) * 0.5 / growth(observation).max(0.5);
    let mut above = STEPS
        .into_iter()
        .filter(|step| *step > observation.throttle_percent);
    let last = STEPS[STEPS.len() - 1];
    above
        .find(|step| f64::from(*step) >= wanted)
        .or((observation.throttle_percent < last).then_some(last))
}
