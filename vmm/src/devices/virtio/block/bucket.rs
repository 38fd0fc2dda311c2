//! A token bucket that holds one second's worth and may go into debt.
//!
//! It is kept as the moment at which it will be full again: what is taken moves that moment on by
//! the time in which it flows back, and time itself refills it. Nothing runs meanwhile.
//!
//! ```text
//!        now            full_at     now + BURST
//! ────────┼────────────────┼─────────────┼──────► time
//!         └─ taken so far ─┘             │
//!                          └─ there yet ─┘     debt: full_at beyond now + BURST
//! ```
//! Whoever finds a token takes what it needs, be it more than there is: so a request larger than
//! the bucket passes, and who comes next waits until the debt is paid. In any time `t` the bucket
//! gives at most `rate * (t + BURST)` and the last request on top.

use std::time::{Duration, Instant};

/// What flows into an empty bucket in this time fills it.
const BURST: Duration = Duration::from_secs(1);

/// A bucket of tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    tokens_per_s: u64,
    full_at: Instant,
}

impl Bucket {
    /// A full bucket, into which at least one token flows a second.
    pub fn new(tokens_per_s: u64, now: Instant) -> Self {
        Self {
            tokens_per_s: tokens_per_s.max(1),
            full_at: now,
        }
    }

    /// The rate that it was made for.
    pub fn tokens_per_s(&self) -> u64 {
        self.tokens_per_s
    }

    /// How long until there is a token; `None`: there is one.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let full_if_empty = now + BURST;
        (self.full_at >= full_if_empty).then(|| self.full_at - full_if_empty)
    }

    /// Takes `tokens`, whether they are there or not.
    pub fn take(&mut self, tokens: u64, now: Instant) {
        let nanos = u128::from(tokens) * 1_000_000_000;
        let nanos = nanos.div_ceil(u128::from(self.tokens_per_s));
        let flows_back = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.full_at = self.full_at.max(now) + flows_back;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn full_bucket_gives_one_seconds_worth_at_once() {
        let now = Instant::now();
        let mut bucket = Bucket::new(500, now);
        for _ in 0..500 {
            assert_eq!(bucket.wait(now), None);
            bucket.take(1, now);
        }
        assert!(bucket.wait(now).is_some());
        assert_eq!(bucket.wait(now + Duration::from_millis(1)), None);
        // An hour of idleness does not make it fuller.
        let later = now + Duration::from_secs(3600);
        let mut given = 0;
        while bucket.wait(later).is_none() {
            bucket.take(1, later);
            given += 1;
        }
        assert_eq!(given, 500);
    }

    #[test]
    fn request_larger_than_the_bucket_passes_and_the_next_one_pays() {
        let now = Instant::now();
        let mut bucket = Bucket::new(MIB, now);
        assert_eq!(bucket.wait(now), None);
        bucket.take(64 * MIB, now);
        assert_eq!(bucket.wait(now), Some(Duration::from_secs(63)));
        let paid = now + Duration::from_secs(63);
        assert_eq!(bucket.wait(paid), Some(Duration::ZERO));
        assert_eq!(bucket.wait(paid + Duration::from_nanos(1)), None);
    }

    #[test]
    fn largest_request_at_the_lowest_rate_is_no_overflow() {
        let now = Instant::now();
        let mut bucket = Bucket::new(0, now);
        for _ in 0..1000 {
            bucket.take(u64::MAX, now);
        }
        assert!(bucket.wait(now).is_some());
    }

    proptest! {
        /// Whoever waits for as long as it is told, and comes at whatever times, gets what the
        /// rate allows: never more, and, if it always has something to do, not less.
        #[test]
        fn rate_is_kept_and_reached(
            tokens_per_s in 10..1_u64 << 30,
            requests in prop::collection::vec((1..4 * MIB, 0..50_u64), 1..200),
            busy in any::<bool>(),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = Bucket::new(tokens_per_s, now);
            let mut given = 0_u128;
            for (tokens, idle_ms) in requests {
                if !busy {
                    now += Duration::from_millis(idle_ms);
                }
                if let Some(wait) = bucket.wait(now) {
                    now += wait + Duration::from_nanos(1);
                }
                prop_assert_eq!(bucket.wait(now), None);
                bucket.take(tokens, now);
                given += u128::from(tokens);
                let time = (now - start + BURST).as_nanos();
                let allowed = u128::from(tokens_per_s) * time / 1_000_000_000;
                prop_assert!(given <= allowed + u128::from(tokens) + 1);
            }
            // A nanosecond a request is lost to rounding.
            let time = (now - start).as_nanos().saturating_sub(200);
            let reached = u128::from(tokens_per_s) * time / 1_000_000_000;
            prop_assert!(!busy || given >= reached);
        }
    }
}
