//! The blackout that the guest itself sees: time between two of a vCPU's steps.
//!
//! A step that follows a sleep would have come within `tick` anyway, so a blackout that began in
//! the sleep is between `len - slept` and `len`; on a vCPU that spins both are the same.

/// A pause between two steps that was longer than the threshold. All in TSC cycles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// When the last step before it was made.
    pub start: u64,
    /// From there to the next step.
    pub len: u64,
    /// How much of it may have been planned sleep.
    pub slept: u64,
}

/// Watches one vCPU's steps.
#[derive(Clone, Copy, Debug)]
pub struct GapWatch {
    last: u64,
    slept: u64,
    max: u64,
}

impl GapWatch {
    /// Starts at `now`.
    pub fn new(now: u64) -> Self {
        Self {
            last: now,
            slept: 0,
            max: 0,
        }
    }

    /// A step at `now`: the pause before it if it was at least `threshold` long.
    pub fn step(&mut self, now: u64, threshold: u64) -> Option<Gap> {
        let gap = Gap {
            start: self.last,
            len: now.saturating_sub(self.last),
            slept: self.slept,
        };
        self.last = now;
        self.slept = 0;
        self.max = self.max.max(gap.len);
        (gap.len >= threshold).then_some(gap)
    }

    /// How far the clock went back since the last step, if it did.
    pub fn went_back(&self, now: u64) -> Option<u64> {
        self.last.checked_sub(now).filter(|&back| back > 0)
    }

    /// The next step comes after a sleep of at most `tick`.
    pub fn sleeps(&mut self, tick: u64) {
        self.slept = tick;
    }

    /// Longest pause since the last call.
    pub fn take_max(&mut self) -> u64 {
        core::mem::take(&mut self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_over_threshold_is_a_gap() {
        let mut watch = GapWatch::new(100);
        assert_eq!(watch.step(150, 100), None);
        watch.sleeps(30);
        assert_eq!(
            watch.step(400, 100),
            Some(Gap {
                start: 150,
                len: 250,
                slept: 30
            })
        );
        assert_eq!(watch.step(401, 100), None);
        assert_eq!(watch.take_max(), 250);
        assert_eq!(watch.take_max(), 0);
    }

    #[test]
    fn clock_that_goes_back_is_no_gap_but_is_seen() {
        let mut watch = GapWatch::new(100);
        assert_eq!(watch.went_back(90), Some(10));
        assert_eq!(watch.went_back(100), None);
        assert_eq!(watch.step(90, 1), None);
    }
}
