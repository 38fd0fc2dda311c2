//! By how much the wall clocks of the two hosts differ.
//!
//! A guest's clock goes on by what the wall clock gains from its pause to its restore. If the
//! destination's clock were taken for the source's, the guest's would jump by the difference each
//! time that it moves to a host that is ahead, and never come back.

/// A question and its answer, each by the clock of who sent or heard it, in nanoseconds since the
/// Unix epoch; the four timestamps of RFC 5905, section 8.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// The question left here.
    pub asked: u64,
    /// It came there.
    pub came: u64,
    /// The answer left there.
    pub answered: u64,
    /// It was heard here.
    pub heard: u64,
}

impl Exchange {
    /// By how much the clock there is ahead, in nanoseconds. Nothing if the ways there and back
    /// alone can have made the difference: clocks that somebody keeps right are left alone.
    pub fn ahead_ns(&self) -> i64 {
        let difference = |a: u64, b: u64| i128::from(a) - i128::from(b);
        let there = difference(self.came, self.asked);
        let back = difference(self.answered, self.heard);
        let ahead = i128::midpoint(there, back);
        let uncertain = (there - back) / 2;
        if ahead.abs() <= uncertain {
            return 0;
        }
        ahead.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A clock there that is `ahead` of ours, which says 10 s when the question leaves.
    fn exchange(ahead: i64, there: u64, work: u64, back: u64) -> Exchange {
        let asked = 10_000 * MS;
        let came = (asked + there).saturating_add_signed(ahead);
        Exchange {
            asked,
            came,
            answered: came + work,
            heard: asked + there + work + back,
        }
    }

    #[test]
    fn work_there_is_no_part_of_the_difference() {
        for ahead in [-800, 800].map(|ms| ms * MS as i64) {
            let exchange = exchange(ahead, 2 * MS, 500 * MS, 2 * MS);
            assert_eq!(exchange.ahead_ns(), ahead);
        }
    }

    #[test]
    fn unlike_ways_are_wrong_by_half_of_their_difference() {
        let exchange = exchange(800 * MS as i64, 9 * MS, 0, MS);
        assert_eq!(exchange.ahead_ns(), 804 * MS as i64);
    }

    #[test]
    fn what_the_ways_can_have_made_is_nothing() {
        assert_eq!(exchange(MS as i64, MS, 3 * MS, 2 * MS).ahead_ns(), 0);
        assert_eq!(exchange(0, 30 * MS, 3 * MS, 0).ahead_ns(), 0);
    }

    #[test]
    fn answer_without_sense_is_no_overflow() {
        for (came, answered) in [(0, 0), (u64::MAX, u64::MAX), (0, u64::MAX), (u64::MAX, 0)] {
            let exchange = Exchange {
                asked: 5,
                came,
                answered,
                heard: 6,
            };
            exchange.ahead_ns();
        }
    }
}
