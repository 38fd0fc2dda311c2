//! How long a worker waits awake before it sleeps.
//!
//! To sleep and be woken costs 5 to 50 µs and, on the driver's side, a VM exit. Where the next
//! event lately came sooner than that, waiting awake for it is cheaper for both; where it did
//! not, waiting awake is wasted. So the budget grows after a short sleep and shrinks after a
//! long one, down to nothing, and is never more than [`LONGEST`]. A host with one CPU never waits
//! awake: nobody else could make the event happen.

use std::time::{Duration, Instant};

const LONGEST: Duration = Duration::from_micros(32);
const SHORTEST: Duration = Duration::from_micros(4);

/// The budget of one worker.
pub(super) struct Spin {
    longest: Duration,
    budget: Duration,
    asleep_since: Option<Instant>,
}

impl Default for Spin {
    fn default() -> Self {
        let alone = std::thread::available_parallelism().is_ok_and(|count| count.get() == 1);
        Self {
            longest: if alone { Duration::ZERO } else { LONGEST },
            budget: Duration::ZERO,
            asleep_since: None,
        }
    }
}

impl Spin {
    /// The worker goes to sleep now.
    pub fn sleeps(&mut self) {
        self.asleep_since = Some(Instant::now());
    }

    /// The worker was woken by an event.
    pub fn wakes(&mut self) {
        if let Some(since) = self.asleep_since.take() {
            self.slept(since.elapsed());
        }
    }

    fn slept(&mut self, duration: Duration) {
        if duration <= self.longest {
            self.budget = (self.budget * 2).clamp(SHORTEST, self.longest);
        } else {
            self.budget /= 2;
            if self.budget < SHORTEST {
                self.budget = Duration::ZERO;
            }
        }
    }

    /// Waits awake, within the budget, until `ready`; returns whether it was.
    pub fn until(&self, now: Instant, mut ready: impl FnMut() -> bool) -> bool {
        if self.budget.is_zero() {
            return false;
        }
        let end = now + self.budget;
        loop {
            for _ in 0..8 {
                if ready() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= end {
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin() -> Spin {
        Spin {
            longest: LONGEST,
            budget: Duration::ZERO,
            asleep_since: None,
        }
    }

    #[test]
    fn budget_after_short_sleeps_grows_to_the_longest_and_no_more() {
        let mut spin = spin();
        for _ in 0..10 {
            spin.slept(Duration::from_micros(10));
        }
        assert_eq!(spin.budget, LONGEST);
    }

    #[test]
    fn budget_after_long_sleeps_is_nothing() {
        let mut spin = spin();
        spin.slept(Duration::from_micros(10));
        assert!(!spin.budget.is_zero());
        for _ in 0..4 {
            spin.slept(Duration::from_millis(1));
        }
        assert!(spin.budget.is_zero());
        assert!(!spin.until(Instant::now(), || panic!("no budget, no look")));
    }
}
