//! Median and range.

/// Of the same figure, measured several times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// How many there are.
    pub runs: usize,
}

impl Summary {
    /// `None` without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self {
            median,
            min,
            max,
            runs: sorted.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_of_nothing_is_none() {
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn summary_of_odd_number_has_middle_value() {
        let expected = Summary {
            median: 3.0,
            min: 1.0,
            max: 100.0,
            runs: 5,
        };
        assert_eq!(Summary::of(&[100.0, 1.0, 3.0, 2.0, 4.0]), Some(expected));
    }

    #[test]
    fn summary_of_even_number_has_mean_of_middle_values() {
        let expected = Summary {
            median: 2.5,
            min: 1.0,
            max: 9.0,
            runs: 4,
        };
        assert_eq!(Summary::of(&[9.0, 3.0, 1.0, 2.0]), Some(expected));
    }
}
