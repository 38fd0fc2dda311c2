//! Mean, 95th percentile and maximum of many numbers, in little memory and from several nodes. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Each bin is so much wider than the one before: a percentile is within 1 % of the true one (the
/// histogram of Masson, Rim, Lee: "DDSketch", VLDB 2019).
const WIDTH: f64 = 1.02;
/// What is less counts as 0.
const LEAST: f64 = 0.05;
/// The bin of what is less.
const ZERO: i32 = i32::MIN;

/// Numbers that are counted together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Tally {
    /// How many, by weight.
    weight: u64,
    /// Their sum, each by its weight.
    sum: f64,
    /// The largest maximum.
    maximum: f64,
    /// Weights, by the logarithm of the number.
    bins: BTreeMap<i32, u64>,
}

/// What numbers come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Figures {
    /// Their mean.
    pub average: f64,
    /// 95 of 100 are not larger.
    pub p95: f64,
    /// The largest one.
    pub maximum: f64,
}

impl Tally {
    /// Counts a mean of `weight` numbers, and the largest of them.
    pub fn add(&mut self, weight: u64, mean: f64, maximum: f64) {
        self.weight += weight;
        self.sum += mean * weight as f64;
        self.maximum = self.maximum.max(maximum);
        let bin = if mean < LEAST {
            ZERO
        } else {
            mean.log(WIDTH).floor() as i32
        };
        *self.bins.entry(bin).or_default() += weight;
    }

    /// Counts what another one has counted.
    pub fn merge(&mut self, other: &Self) {
        self.weight = self.weight.saturating_add(other.weight);
        self.sum += other.sum;
        self.maximum = self.maximum.max(other.maximum);
        for (bin, weight) in &other.bins {
            let ours = self.bins.entry(*bin).or_default();
            *ours = ours.saturating_add(*weight);
        }
    }

    /// What they come to, each divided by `divisor`. `None`: there are none.
    pub fn figures(&self, divisor: f64) -> Option<Figures> {
        if self.weight == 0 {
            return None;
        }
        let rounded = |value: f64| (value / divisor * 10.0).round() / 10.0;
        Some(Figures {
            average: rounded(self.sum / self.weight as f64),
            p95: rounded(self.p95()),
            maximum: rounded(self.maximum),
        })
    }

    fn p95(&self) -> f64 {
        let wanted = self.weight.saturating_mul(95).div_ceil(100);
        let mut counted = 0_u64;
        for (bin, weight) in &self.bins {
            counted = counted.saturating_add(*weight);
            if counted >= wanted {
                let middle = if *bin == ZERO {
                    0.0
                } else {
                    WIDTH.powi(*bin) * WIDTH.sqrt()
                };
                return middle.min(self.maximum);
            }
        }
        self.maximum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_has_no_figures() {
        assert_eq!(Tally::default().figures(1.0), None);
    }

    #[test]
    fn figures_are_those_of_the_numbers() {
        let mut tally = Tally::default();
        for number in 1..=100 {
            tally.add(6, f64::from(number), f64::from(number) + 0.5);
        }
        let figures = tally.figures(1.0).unwrap();
        assert_eq!((figures.average, figures.maximum), (50.5, 100.5));
        assert!((94.0..96.0).contains(&figures.p95), "{figures:?}");
        let half = tally.figures(2.0).unwrap();
        assert_eq!((half.average, half.maximum), (25.3, 50.3));
        let mut idle = Tally::default();
        idle.add(1, 0.0, 0.0);
        assert_eq!(idle.figures(1.0).map(|figures| figures.p95), Some(0.0));
    }

    proptest! {
        #[test]
        fn percentile_is_near_the_true_one_and_parts_make_the_whole(
            numbers in prop::collection::vec(0.1..1e9_f64, 1..300), at in 0..300_usize
        ) {
            let mut all = Tally::default();
            let (mut first, mut second) = (Tally::default(), Tally::default());
            for (index, number) in numbers.iter().enumerate() {
                all.add(1, *number, *number);
                let part = if index < at { &mut first } else { &mut second };
                part.add(1, *number, *number);
            }
            let mut sorted = numbers.clone();
            sorted.sort_by(f64::total_cmp);
            let exact = sorted[(numbers.len() * 95).div_ceil(100) - 1];
            prop_assert!((all.p95() - exact).abs() <= exact * 0.0101, "{} {exact}", all.p95());
            first.merge(&second);
            prop_assert_eq!(&first.bins, &all.bins);
            prop_assert_eq!(first.maximum.to_bits(), all.maximum.to_bits());
            let json = serde_json::to_string(&all).unwrap();
            prop_assert_eq!(serde_json::from_str::<Tally>(&json).unwrap().bins, all.bins);
        }
    }
}
