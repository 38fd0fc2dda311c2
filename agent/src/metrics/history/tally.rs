//! What a stretch of time comes to, for each subject: small enough to be told to another node.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::bucket::{Bucket, Figure, Quantity};
use super::{History, HistoryError, Resolution};
use crate::domain::Tally;

/// What a guest took in a stretch of time on one or several nodes, or a node did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Tallies {
    /// The guest; nil: the node that tells it.
    pub uuid: Uuid,
    /// How long it was measured, in seconds.
    pub measured_s: u64,
    /// CPU time, in per cent: of a guest 100 is one processor, of a node all of its processors.
    pub cpu_percent: Tally,
    /// Memory, in per cent of what there was.
    pub memory_percent: Tally,
    /// Received and sent, in kbit/s.
    pub network_kbit_s: Tally,
    /// Read and written, in KiB/s.
    pub disk_kib_s: Tally,
}

impl Tallies {
    fn new(uuid: Uuid, buckets: &BTreeMap<u64, Bucket>, slot_s: u64) -> Self {
        let mut tallies = Self {
            uuid,
            measured_s: buckets.len() as u64 * slot_s,
            ..Self::default()
        };
        for bucket in buckets.values() {
            let weight = bucket.samples.into();
            let single = |quantity| bucket.get(quantity);
            // Both maxima need not have been at the same time: their sum is the most it can be.
            let both = |one, other, unit: f64| match (bucket.get(one), bucket.get(other)) {
                (Some(one), Some(other)) => Some(Figure {
                    mean: (one.mean + other.mean) / unit,
                    max: (one.max + other.max) / unit,
                }),
                (one, other) => one.or(other).map(|only| Figure {
                    mean: only.mean / unit,
                    max: only.max / unit,
                }),
            };
            for (tally, figure) in [
                (&mut tallies.cpu_percent, single(Quantity::CpuPercent)),
                (&mut tallies.memory_percent, single(Quantity::MemoryPercent)),
                (
                    &mut tallies.network_kbit_s,
                    both(Quantity::NetworkRx, Quantity::NetworkTx, 1000.0),
                ),
                (
                    &mut tallies.disk_kib_s,
                    both(Quantity::DiskRead, Quantity::DiskWrite, 1024.0),
                ),
            ] {
                if let Some(figure) = figure {
                    tally.add(weight, figure.mean, figure.max);
                }
            }
        }
        tallies
    }

    /// Counts what another node has counted.
    pub fn merge(&mut self, other: &Self) {
        self.measured_s = self.measured_s.saturating_add(other.measured_s);
        self.cpu_percent.merge(&other.cpu_percent);
        self.memory_percent.merge(&other.memory_percent);
        self.network_kbit_s.merge(&other.network_kbit_s);
        self.disk_kib_s.merge(&other.disk_kib_s);
    }
}

impl History {
    /// What all subjects took between two times in seconds since the Unix epoch, as seen at `now_s`.
    /// It is made of minutes while they are kept, else of hours. Blocks on the file.
    ///
    /// # Errors
    /// [`HistoryError::Read`].
    pub fn tally(&self, times_s: &Range<u64>, now_s: u64) -> Result<Vec<Tallies>, HistoryError> {
        let age = now_s.saturating_sub(times_s.start);
        let resolution = if age <= Resolution::Minute.kept_s() {
            Resolution::Minute
        } else {
            Resolution::Hour
        };
        let mut all = Vec::new();
        for uuid in self.subjects()? {
            let buckets = self.read(uuid, resolution, times_s)?;
            if !buckets.is_empty() {
                all.push(Tallies::new(uuid, &buckets, resolution.slot_s()));
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_count_together() {
        let values = [10.0, 1e9, 50.0, 3000.0, 5000.0, 2048.0, 1024.0].map(Some);
        let buckets = BTreeMap::from([(7, Bucket::sample(values)), (9, Bucket::sample(values))]);
        let mut tallies = Tallies::new(Uuid::nil(), &buckets, 60);
        tallies.merge(&tallies.clone());
        assert_eq!(tallies.measured_s, 240);
        let average = |tally: &Tally| tally.figures(1.0).map(|figures| figures.average);
        assert_eq!(average(&tallies.cpu_percent), Some(10.0));
        assert_eq!(average(&tallies.memory_percent), Some(50.0));
        assert_eq!(average(&tallies.network_kbit_s), Some(8.0));
        assert_eq!(average(&tallies.disk_kib_s), Some(3.0));
    }
}
