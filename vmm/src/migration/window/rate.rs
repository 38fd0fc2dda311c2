//! How fast the destination puts bytes in place.

use std::time::Duration;

/// How many rounds the recent rate looks back.
const ROUNDS: usize = 4;

/// How long the smooth rate remembers.
const MEMORY: Duration = Duration::from_millis(50);

/// The rate over the last rounds, and a smooth one.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// Bytes a second, the newest last.
    rounds: [u64; ROUNDS],
    /// Bytes a second.
    smooth: f64,
    /// How long it was measured for, up to [`MEMORY`]. Zero: what there is may only have been
    /// limited by the sender, so the first true sample replaces it.
    measured: Duration,
}

impl Rate {
    /// A round of `length` in which `bytes` were put in place. If the sender was what limited it,
    /// the rates are not lowered.
    pub(super) fn add(&mut self, bytes: u64, length: Duration, limited: bool) {
        let sample = bytes as f64 / length.as_secs_f64().max(1e-9);
        if limited {
            if let Some(last) = self.rounds.last_mut() {
                *last = (*last).max(sample as u64);
            }
            if sample > self.smooth {
                self.approach(sample, length);
            }
            return;
        }
        self.rounds.rotate_left(1);
        self.rounds[ROUNDS - 1] = sample as u64;
        self.measured = (self.measured + length).min(MEMORY);
        self.approach(sample, length);
    }

    /// The rounds so far no longer tell how fast the link is.
    pub(super) fn forget(&mut self) {
        self.rounds = [0; ROUNDS];
    }

    /// The highest of the last rounds, in bytes a second; `None` before the first.
    pub(super) fn recent(&self) -> Option<u64> {
        self.rounds.iter().max().copied().filter(|&rate| rate > 0)
    }

    /// The mean of some 50 ms, in bytes a second; `None` before it is measured.
    pub(super) fn smooth(&self) -> Option<u64> {
        (self.smooth >= 1.0).then_some(self.smooth as u64)
    }

    fn approach(&mut self, sample: f64, length: Duration) {
        let memory = self.measured.max(length).as_secs_f64();
        let share = if memory > 0.0 {
            length.as_secs_f64() / memory
        } else {
            1.0
        };
        self.smooth += (sample - self.smooth) * share.min(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn idle_rounds_only_raise_the_rate() {
        let mut rate = Rate::default();
        assert_eq!((rate.smooth(), rate.recent()), (None, None));
        for _ in 0..100 {
            rate.add(1000, MS, false);
        }
        for _ in 0..100 {
            rate.add(10, MS, true);
        }
        assert_eq!(rate.smooth(), Some(1_000_000));
        assert_eq!(rate.recent(), Some(1_000_000));
        for _ in 0..500 {
            rate.add(2000, MS, true);
        }
        assert!(rate.smooth() > Some(1_990_000));
        assert_eq!(rate.recent(), Some(2_000_000));
    }

    #[test]
    fn slower_link_is_seen_within_its_memory() {
        let mut rate = Rate::default();
        for _ in 0..100 {
            rate.add(10_000, MS, false);
        }
        for _ in 0..150 {
            rate.add(1000, MS, false);
        }
        assert!(rate.smooth() < Some(1_500_000), "{:?}", rate.smooth());
        assert_eq!(rate.recent(), Some(1_000_000));
    }
}
