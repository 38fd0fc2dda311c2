//! The time that an exercise runs, and the lines that it prints meanwhile.

use core::fmt::Display;

use pindah_probe::histogram::Histogram;
use pindah_probe::json::{Hundredths, Line};

use crate::serial::Output;
use crate::tsc::Clock;

/// Seconds that begin with the first step.
pub struct Window {
    clock: Clock,
    start: u64,
    end: u64,
    next_line: u64,
}

impl Window {
    /// `seconds` from `now` on; 0 means for ever.
    pub fn new(clock: Clock, now: u64, seconds: u64) -> Self {
        let end = match seconds {
            0 => u64::MAX,
            _ => now + clock.hz * seconds,
        };
        Self {
            clock,
            start: now,
            end,
            next_line: now + clock.hz,
        }
    }

    /// Whether the time is over.
    pub fn over(&self, now: u64) -> bool {
        now >= self.end
    }

    /// Once a second.
    pub fn line_due(&mut self, now: u64) -> bool {
        if now < self.next_line {
            return false;
        }
        self.next_line = now + self.clock.hz;
        true
    }

    /// So many a second, since the start.
    pub fn per_second(&self, now: u64, count: u64) -> u64 {
        let us = self.clock.span_us(now - self.start).max(1);
        (u128::from(count) * 1_000_000 / u128::from(us)) as u64
    }

    /// MiB a second, since the start.
    pub fn mib_per_second(&self, now: u64, bytes: u64) -> impl Display {
        let us = self.clock.span_us(now - self.start).max(1);
        let bytes_per_second = u128::from(bytes) * 1_000_000 / u128::from(us);
        Hundredths((bytes_per_second * 100 / (1 << 20)) as u64)
    }

    /// Adds latencies, which were recorded in TSC cycles.
    pub fn latencies<'a>(&self, line: Line<'a, Output>, histogram: &Histogram) -> Line<'a, Output> {
        let us = |cycles| Hundredths(self.clock.span_ns(cycles) / 10);
        line.num("p50_us", us(histogram.quantile(500)))
            .num("p99_us", us(histogram.quantile(990)))
            .num("max_us", us(histogram.max()))
    }
}
