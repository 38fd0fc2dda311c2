//! From a counter that only grows to a rate.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Two samples that are closer than this say more about the clock than about the counter.
const SHORTEST: Duration = Duration::from_millis(50);

/// One counter, with its last sample.
///
/// Time is the host's monotonic clock: steps of the time of day change nothing. A sample that is
/// left out makes the next rate the mean of the longer time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    last: Option<(Instant, u64)>,
}

impl Rate {
    /// Growth a second since the sample before. `None`: there was none, it was a moment ago, or the
    /// counter has fallen, which means that it counts anew.
    pub fn per_second(&mut self, at: Instant, counter: u64) -> Option<f64> {
        let Some((before, last)) = self.last else {
            self.last = Some((at, counter));
            return None;
        };
        let elapsed = at.checked_duration_since(before)?;
        if elapsed < SHORTEST {
            return None;
        }
        self.last = Some((at, counter));
        let grown = counter.checked_sub(last)?;
        Some(grown as f64 / elapsed.as_secs_f64())
    }
}

/// Counters of the same kind, by name: those of all of a guest's disks, say.
///
/// Each has its own rate, so that one that comes or goes leaves no jump in their sum.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    by_name: HashMap<String, Rate>,
}

impl Rates {
    /// Growth of all of them a second. `None`: not one has a rate.
    pub fn per_second<'a>(
        &mut self,
        at: Instant,
        counters: impl Iterator<Item = (&'a str, u64)>,
    ) -> Option<f64> {
        let mut before = std::mem::take(&mut self.by_name);
        let mut sum = None;
        for (name, counter) in counters {
            let mut rate = before.remove(name).unwrap_or_default();
            if let Some(rate) = rate.per_second(at, counter) {
                sum = Some(sum.unwrap_or(0.0) + rate);
            }
            self.by_name.insert(name.to_owned(), rate);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn close(rate: Option<f64>, expected: f64) -> bool {
        rate.is_some_and(|rate| (rate - expected).abs() < 1e-6)
    }

    #[test]
    fn first_sample_has_no_rate_and_the_second_has() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert_eq!(rate.per_second(start, 1_000_000), None);
        let second = rate.per_second(start + 10 * SECOND, 1_000_500);
        assert!(close(second, 50.0), "{second:?}");
    }

    #[test]
    fn counter_that_falls_begins_anew() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        rate.per_second(start, 1_000_000);
        assert_eq!(rate.per_second(start + SECOND, 10), None);
        let next = rate.per_second(start + 2 * SECOND, 30);
        assert!(close(next, 20.0), "{next:?}");
    }

    #[test]
    fn rate_after_a_gap_is_the_mean_of_the_gap() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        rate.per_second(start, 0);
        let late = rate.per_second(start + 60 * SECOND, 600);
        assert!(close(late, 10.0), "{late:?}");
    }

    #[test]
    fn samples_in_the_same_moment_have_no_rate_and_lose_nothing() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        rate.per_second(start, 0);
        assert_eq!(rate.per_second(start, 1000), None);
        let moment = Duration::from_micros(1);
        assert_eq!(rate.per_second(start + moment, 1000), None);
        assert!(close(rate.per_second(start + SECOND, 1000), 1000.0));
    }

    #[test]
    fn sample_from_before_the_last_one_is_passed_over() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        rate.per_second(start + SECOND, 100);
        assert_eq!(rate.per_second(start, 50), None);
        assert!(close(rate.per_second(start + 2 * SECOND, 200), 100.0));
    }

    #[test]
    fn counter_that_comes_and_goes_leaves_no_jump_in_the_sum() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let (a, b) = ("a", "b");
        let mut sum = |second: u32, counters: &[(&str, u64)]| {
            rates.per_second(start + second * SECOND, counters.iter().copied())
        };
        assert_eq!(sum(0, &[(a, 0), (b, 1_000_000)]), None);
        assert!(close(sum(1, &[(a, 10), (b, 1_000_001)]), 11.0));
        assert!(close(sum(2, &[(a, 20)]), 10.0));
        assert!(close(sum(3, &[(a, 30), (b, 1_000_002)]), 10.0));
        assert!(close(sum(4, &[(a, 40), (b, 1_000_003)]), 11.0));
        assert_eq!(sum(5, &[]), None);
    }

    proptest! {
        #[test]
        fn no_rate_is_negative_or_exceeds_what_was_counted(
            samples in prop::collection::vec((0..20_000_u64, any::<u64>()), 1..20)
        ) {
            let (mut rate, mut at) = (Rate::default(), Instant::now());
            for (step_ms, counter) in samples {
                at += Duration::from_millis(step_ms);
                if let Some(rate) = rate.per_second(at, counter) {
                    prop_assert!(rate >= 0.0);
                    prop_assert!(rate <= counter as f64 / SHORTEST.as_secs_f64());
                }
            }
        }
    }
}
