//! Spreads work over time: so many units a second, evenly, without catching up after a pause.

/// How much of a second's work may be owed at once, as a fraction: 1/50, that is 20 ms.
const DEBT: u64 = 50;

/// Says how many units are due.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    units_per_s: u64,
    cycles_per_s: u64,
    last: u64,
    /// Work owed, in units times cycles a second.
    owed: u128,
}

impl Pacer {
    /// `units_per_s` from `now` on; `u64::MAX` means always as many as are asked for.
    pub fn new(units_per_s: u64, cycles_per_s: u64, now: u64) -> Self {
        Self {
            units_per_s,
            cycles_per_s,
            last: now,
            owed: 0,
        }
    }

    /// Units due at `now`, at most `most`; they count as done.
    pub fn take(&mut self, now: u64, most: u64) -> u64 {
        if self.units_per_s == u64::MAX {
            return most;
        }
        let elapsed = now.saturating_sub(self.last);
        self.last = now;
        let one = u128::from(self.cycles_per_s);
        let bound = (u128::from(self.units_per_s / DEBT) + 1) * one;
        self.owed = (self.owed + u128::from(elapsed) * u128::from(self.units_per_s)).min(bound);
        let due = ((self.owed / one) as u64).min(most);
        self.owed -= u128::from(due) * one;
        due
    }

    /// Whether a unit is still owed: no time to sleep.
    pub fn behind(&self) -> bool {
        self.units_per_s == u64::MAX || self.owed >= u128::from(self.cycles_per_s)
    }

    /// The rate it was made for.
    pub fn units_per_s(&self) -> u64 {
        self.units_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_over_a_second_gives_the_rate() {
        let mut pacer = Pacer::new(1000, 1_000_000, 0);
        let done: u64 = (1..=2000).map(|i| pacer.take(i * 500, 100)).sum();
        assert_eq!(done, 1000);
    }

    #[test]
    fn take_after_a_pause_owes_at_most_20_ms() {
        let mut pacer = Pacer::new(1000, 1_000_000, 0);
        assert_eq!(pacer.take(10_000_000, 1_000_000), 21);
        assert!(!pacer.behind());
    }

    #[test]
    fn take_beyond_most_leaves_the_rest() {
        let mut pacer = Pacer::new(1000, 1_000_000, 0);
        assert_eq!(pacer.take(10_000, 4), 4);
        assert!(pacer.behind());
        assert_eq!(pacer.take(10_000, 100), 6);
    }

    #[test]
    fn take_unbounded_gives_what_is_asked() {
        assert_eq!(Pacer::new(u64::MAX, 1, 0).take(0, 32), 32);
    }
}
