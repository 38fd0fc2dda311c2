//! Slowing down a guest that writes faster than the link carries.

use std::time::{Duration, Instant};

use crate::vm::migratable::MigrationSource;

/// A vCPU is held once in each of these.
const PERIOD: Duration = Duration::from_millis(20);

/// When to ask again where a vCPU wakes late from being held.
const SOON: Duration = Duration::from_millis(1);

/// Holds all vCPUs for a share of their time. It has no clock of its own: who sends pages calls
/// [`Self::tick`] all the while, and a sender that stands still holds nobody.
pub struct Throttle<'a> {
    guest: &'a dyn MigrationSource,
    percent: u8,
    next: Instant,
}

impl<'a> Throttle<'a> {
    /// One that holds nobody.
    pub fn new(guest: &'a dyn MigrationSource) -> Self {
        Self {
            guest,
            percent: 0,
            next: Instant::now(),
        }
    }

    /// Holds the vCPUs for this share of their time, in per cent.
    pub fn set(&mut self, percent: u8) {
        self.percent = percent.min(99);
    }

    /// Begins the next hold if it is time. Returns how long to wait at most until the next call,
    /// of `most`.
    pub fn tick(&mut self, most: Duration) -> Duration {
        if self.percent == 0 {
            return most;
        }
        let now = Instant::now();
        if now >= self.next {
            let all = self.guest.hold(PERIOD * self.percent.into() / 100);
            self.next = now + if all { PERIOD } else { SOON };
        }
        most.min(self.next.saturating_duration_since(now))
    }
}
