//! Latencies by logarithm: each power of two in 16 steps, so a quantile is exact to 6 per cent.

const STEP_BITS: u32 = 4;
const STEPS: usize = 1 << STEP_BITS;
const BUCKETS: usize = STEPS * 44;

/// Counts of values of any unit up to 2^47.
pub struct Histogram {
    counts: [u32; BUCKETS],
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// Nothing counted yet.
    pub const fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            total: 0,
            max: 0,
        }
    }

    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The largest, exactly.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value below or at which `per_mille` of all lie, rounded up to its bucket's end.
    pub fn quantile(&self, per_mille: u64) -> u64 {
        let rank = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, &count) in self.counts.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return upper(index).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(value: u64) -> usize {
    if value < STEPS as u64 {
        return value as usize;
    }
    let power = value.ilog2();
    let step = (value >> (power - STEP_BITS)) as usize & (STEPS - 1);
    ((power - STEP_BITS + 1) as usize * STEPS + step).min(BUCKETS - 1)
}

/// Largest value of a bucket.
fn upper(index: usize) -> u64 {
    if index < STEPS {
        return index as u64;
    }
    let shift = (index / STEPS - 1) as u32;
    (((STEPS + index % STEPS + 1) as u64) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_and_upper_agree() {
        for value in (0..100_000).chain([1 << 40, (1 << 46) + 12345]) {
            let index = bucket(value);
            assert!(upper(index) >= value);
            assert!(index == 0 || upper(index - 1) < value);
        }
    }

    #[test]
    fn bucket_of_huge_value_is_the_last() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantile_is_within_six_per_cent() {
        let mut histogram = Histogram::new();
        for value in 1..=10_000 {
            histogram.record(value);
        }
        for (per_mille, exact) in [(500, 5_000), (990, 9_900)] {
            let found = histogram.quantile(per_mille);
            assert!(found >= exact && found <= exact * 107 / 100, "{found}");
        }
        assert_eq!(histogram.quantile(1000), 10_000);
    }

    #[test]
    fn quantile_of_nothing_is_zero() {
        assert_eq!(Histogram::new().quantile(990), 0);
    }
}
