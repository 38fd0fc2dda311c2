//! Counters of a block device: one set a queue, added up when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pindah_vmm_api::{DiskMetrics, LatencyHistogram};
use serde::Serialize;

use super::request::Kind;

/// Number of latency buckets: the last one is for all of 2^23 µs (8.4 s) and more.
pub const LATENCY_BUCKETS: usize = LatencyHistogram::BUCKETS;

/// What a block device has done since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockMetrics {
    /// VIRTIO_BLK_T_IN.
    pub read: OperationMetrics,
    /// VIRTIO_BLK_T_OUT.
    pub write: OperationMetrics,
    /// VIRTIO_BLK_T_FLUSH.
    pub flush: OperationMetrics,
    /// VIRTIO_BLK_T_DISCARD.
    pub discard: OperationMetrics,
    /// VIRTIO_BLK_T_WRITE_ZEROES.
    pub write_zeroes: OperationMetrics,
    /// Requests that were answered without the disk: invalid ones, unknown types, GET_ID.
    pub other: u64,
}

/// One kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OperationMetrics {
    /// Completed well.
    pub count: u64,
    /// Bytes of those on the disk.
    pub bytes: u64,
    /// Failed by the host.
    pub errors: u64,
    /// Sum of the time from taken to answered of the completed ones, in µs.
    pub latency_us_sum: u64,
    /// How many took how long: bucket 0 is below 1 µs, bucket i from 2^(i-1) to 2^i µs.
    pub latency_us_log2: [u64; LATENCY_BUCKETS],
}

impl BlockMetrics {
    /// In the API's form, for the device `id`.
    pub fn to_api(&self, id: &str) -> DiskMetrics {
        DiskMetrics {
            id: id.to_owned(),
            read: self.read.to_api(),
            write: self.write.to_api(),
            flush: self.flush.to_api(),
            discard: self.discard.to_api(),
            write_zeroes: self.write_zeroes.to_api(),
        }
    }
}

impl OperationMetrics {
    fn to_api(&self) -> pindah_vmm_api::OperationMetrics {
        let used = self.latency_us_log2.iter().rposition(|&count| count > 0);
        pindah_vmm_api::OperationMetrics {
            operations: self.count + self.errors,
            bytes: self.bytes,
            errors: self.errors,
            latency: LatencyHistogram {
                counts: self.latency_us_log2[..used.map_or(0, |last| last + 1)].to_vec(),
                sum_us: self.latency_us_sum,
            },
        }
    }
}

#[derive(Default)]
struct Counters {
    count: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    latency_ns_sum: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
}

/// Counters of one queue. Only its worker writes, so a load and a store do for an addition.
#[derive(Default)]
pub(super) struct QueueMetrics {
    operations: [Counters; 5],
    other: AtomicU64,
}

fn add(counter: &AtomicU64, value: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(value);
    counter.store(sum, Ordering::Relaxed);
}

fn bucket(latency: Duration) -> usize {
    let us = latency.as_micros() as u64;
    ((u64::BITS - us.leading_zeros()) as usize).min(LATENCY_BUCKETS - 1)
}

impl QueueMetrics {
    fn of(&self, kind: Kind) -> &Counters {
        &self.operations[match kind {
            Kind::Read => 0,
            Kind::Write => 1,
            Kind::Flush => 2,
            Kind::Discard => 3,
            Kind::WriteZeroes { .. } => 4,
        }]
    }

    pub fn completed(&self, kind: Kind, bytes: u64, latency: Duration) {
        let counters = self.of(kind);
        add(&counters.count, 1);
        add(&counters.bytes, bytes);
        add(&counters.latency_ns_sum, latency.as_nanos() as u64);
        add(&counters.latency[bucket(latency)], 1);
    }

    pub fn failed(&self, kind: Kind) {
        add(&self.of(kind).errors, 1);
    }

    pub fn other(&self) {
        add(&self.other, 1);
    }

    /// Adds these counters to `sum`.
    pub fn add_to(&self, sum: &mut BlockMetrics) {
        let targets = [
            &mut sum.read,
            &mut sum.write,
            &mut sum.flush,
            &mut sum.discard,
            &mut sum.write_zeroes,
        ];
        for (counters, target) in self.operations.iter().zip(targets) {
            target.count += counters.count.load(Ordering::Relaxed);
            target.bytes += counters.bytes.load(Ordering::Relaxed);
            target.errors += counters.errors.load(Ordering::Relaxed);
            target.latency_us_sum += counters.latency_ns_sum.load(Ordering::Relaxed) / 1000;
            for (count, bucket) in target.latency_us_log2.iter_mut().zip(&counters.latency) {
                *count += bucket.load(Ordering::Relaxed);
            }
        }
        sum.other += self.other.load(Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_bucket_is_the_next_power_of_two() {
        for (us, expected) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1000, 10)] {
            assert_eq!(bucket(Duration::from_micros(us)), expected, "{us} us");
        }
        assert_eq!(bucket(Duration::from_secs(1 << 30)), LATENCY_BUCKETS - 1);
    }

    #[test]
    fn metrics_of_two_queues_add_up() {
        let queues = [QueueMetrics::default(), QueueMetrics::default()];
        for queue in &queues {
            queue.completed(Kind::Read, 4096, Duration::from_micros(5));
            queue.failed(Kind::Write);
            queue.other();
        }
        let mut sum = BlockMetrics::default();
        for queue in &queues {
            queue.add_to(&mut sum);
        }
        assert_eq!((sum.read.count, sum.read.bytes), (2, 8192));
        assert_eq!(sum.read.latency_us_sum, 10);
        assert_eq!(sum.read.latency_us_log2[3], 2);
        assert_eq!((sum.write.count, sum.write.errors, sum.other), (0, 2, 2));
    }
}
