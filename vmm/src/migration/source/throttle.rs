//! Slowing down a guest that writes faster than the link carries.

use std::time::{Duration, Instant};

use crate::vm::migratable::MigrationSource;

/// A vCPU is held once in each of these.
const PERIOD: Duration = Duration::from_millis(20);
/// From this share on, in per cent, the guest has to stand nearly still: in a fifth of a millisecond
/// a vCPU writes a hundred pages, and fifty such times a second are more than a slow link carries.
const MOST: u8 = 99;
/// So long it is held then, and so long it runs.
const LAST: (Duration, Duration) = (Duration::from_micros(99_800), Duration::from_micros(200));

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
        self.percent = percent.min(MOST);
    }

    /// Begins the next hold if it is time. Returns how long to wait at most until the next call,
    /// of `most`.
    pub fn tick(&mut self, most: Duration) -> Duration {
        if self.percent == 0 {
            return most;
        }
        let now = Instant::now();
        if now >= self.next {
            let percent = u32::from(self.percent);
            let (held, run) = match self.percent {
                0..MOST => (PERIOD * percent / 100, PERIOD * (100 - percent) / 100),
                _ => LAST,
            };
            let all = self.guest.hold(held);
            // One that woke late gets its share of the period, and no more.
            self.next = now + if all { held + run } else { run };
        }
        most.min(self.next.saturating_duration_since(now))
    }
}
