//! A disk's limits, which all its queues share.
//!
//! A queue asks before it takes a request off its ring. What may not start yet stays there: it is
//! not in flight, so neither a pause nor a migration waits for it, and no tokens travel with the
//! guest. When it starts it is charged, whatever its size. Queues that ask at the same moment may
//! each start one where only one should: the debt makes up for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pindah_vmm_api::DiskLimits;

use super::bucket::Bucket;
use super::request::{Kind, Operation};

/// How much of its storage a disk may take, and what it has taken.
pub(super) struct Throttle {
    /// Whether there is a limit: all that a disk without one looks at.
    limited: AtomicBool,
    buckets: Mutex<Buckets>,
}

#[derive(Clone, Copy, Default)]
struct Buckets {
    bandwidth: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Throttle {
    /// Limits of which nothing is taken yet.
    pub fn new(limits: DiskLimits, now: Instant) -> Self {
        let throttle = Self {
            limited: AtomicBool::new(false),
            buckets: Mutex::default(),
        };
        throttle.set(limits, now);
        throttle
    }

    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What holds now.
    pub fn limits(&self) -> DiskLimits {
        let buckets = *self.buckets();
        DiskLimits {
            bandwidth_bytes_per_s: buckets.bandwidth.as_ref().map(Bucket::tokens_per_s),
            iops: buckets.operations.as_ref().map(Bucket::tokens_per_s),
        }
    }

    /// Other limits. One that stays as it is keeps its tokens, or its debt; a new one starts full.
    pub fn set(&self, limits: DiskLimits, now: Instant) {
        let mut buckets = self.buckets();
        let change = |bucket: &mut Option<Bucket>, rate: Option<u64>| {
            if bucket.as_ref().map(Bucket::tokens_per_s) != rate {
                *bucket = rate.map(|rate| Bucket::new(rate, now));
            }
        };
        change(&mut buckets.bandwidth, limits.bandwidth_bytes_per_s);
        change(&mut buckets.operations, limits.iops);
        self.limited.store(!limits.is_empty(), Ordering::Release);
    }

    /// How long the next request has to wait; `None`: it may start.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        if !self.limited.load(Ordering::Acquire) {
            return None;
        }
        let buckets = *self.buckets();
        let buckets = [buckets.bandwidth, buckets.operations];
        let waits = buckets.iter().flatten();
        waits.filter_map(|bucket| bucket.wait(now)).max()
    }

    /// An operation starts.
    pub fn charge(&self, operation: Operation, now: Instant) {
        if !self.limited.load(Ordering::Acquire) {
            return;
        }
        let mut buckets = self.buckets();
        if let Some(operations) = &mut buckets.operations {
            operations.take(1, now);
        }
        if let Some(bandwidth) = &mut buckets.bandwidth {
            bandwidth.take(bytes(operation), now);
        }
    }
}

/// What an operation moves. Zeroes do too: there is storage that must write them one by one.
fn bytes(operation: Operation) -> u64 {
    match operation.kind {
        Kind::Read | Kind::Write | Kind::WriteZeroes { .. } => operation.len,
        Kind::Flush | Kind::Discard => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits(bandwidth_bytes_per_s: Option<u64>, iops: Option<u64>) -> DiskLimits {
        DiskLimits {
            bandwidth_bytes_per_s,
            iops,
        }
    }

    fn operation(kind: Kind, len: u64) -> Operation {
        let offset = 0;
        Operation { kind, offset, len }
    }

    #[test]
    fn disk_without_limits_never_waits() {
        let now = Instant::now();
        let throttle = Throttle::new(DiskLimits::default(), now);
        for _ in 0..1000 {
            throttle.charge(operation(Kind::Write, 64 * MIB), now);
        }
        assert_eq!(throttle.wait(now), None);
    }

    #[test]
    fn transfers_and_zeroes_move_bytes_and_all_count_as_one() {
        let zeroes = Kind::WriteZeroes { unmap: true };
        for (kind, moves) in [
            (Kind::Read, true),
            (Kind::Write, true),
            (zeroes, true),
            (Kind::Flush, false),
            (Kind::Discard, false),
        ] {
            let now = Instant::now();
            let throttle = Throttle::new(limits(Some(MIB), None), now);
            throttle.charge(operation(kind, 3 * MIB), now);
            let expected = moves.then_some(Duration::from_secs(2));
            assert_eq!(throttle.wait(now), expected, "{kind:?}");

            let throttle = Throttle::new(limits(None, Some(10)), now);
            for _ in 0..15 {
                throttle.charge(operation(kind, 3 * MIB), now);
            }
            let expected = Some(Duration::from_millis(500));
            assert_eq!(throttle.wait(now), expected, "{kind:?}");
        }
    }

    #[test]
    fn longer_of_both_waits_counts() {
        let now = Instant::now();
        let throttle = Throttle::new(limits(Some(MIB), Some(10)), now);
        throttle.charge(operation(Kind::Read, 3 * MIB), now);
        assert_eq!(throttle.wait(now), Some(Duration::from_secs(2)));
        for _ in 0..49 {
            throttle.charge(operation(Kind::Flush, 0), now);
        }
        assert_eq!(throttle.wait(now), Some(Duration::from_secs(4)));
    }

    #[test]
    fn limit_that_changes_starts_full_and_one_that_stays_keeps_its_debt() {
        let now = Instant::now();
        let throttle = Throttle::new(limits(Some(MIB), Some(1000)), now);
        throttle.charge(operation(Kind::Write, 3 * MIB), now);
        throttle.set(limits(Some(MIB), Some(10)), now);
        assert_eq!(throttle.limits(), limits(Some(MIB), Some(10)));
        assert_eq!(throttle.wait(now), Some(Duration::from_secs(2)));
        throttle.set(limits(Some(2 * MIB), None), now);
        assert_eq!(throttle.wait(now), None);
        throttle.charge(operation(Kind::Write, 64 * MIB), now);
        assert!(throttle.wait(now).is_some());
        throttle.set(DiskLimits::default(), now);
        assert_eq!(throttle.wait(now), None);
        assert_eq!(throttle.limits(), DiskLimits::default());
    }
}
