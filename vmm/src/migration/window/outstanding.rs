//! What is on its way, and since when.

use std::{collections::VecDeque, time::Duration};

/// Most sends that are remembered one by one.
const LIMIT: usize = 256;

/// Sends that are not acknowledged, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    sends: VecDeque<Send>,
}

#[derive(Clone, Copy, Debug)]
struct Send {
    /// Where it ends, in bytes since the start.
    end: u64,
    at: Duration,
}

impl Outstanding {
    /// Remembers that all bytes before `end` are sent.
    pub(super) fn push(&mut self, end: u64, at: Duration) {
        if self.sends.len() == LIMIT {
            // Two sends become one that ends where and when the later one did.
            let mut odd = false;
            self.sends.retain(|_| {
                odd = !odd;
                !odd
            });
        }
        self.sends.push_back(Send { end, at });
    }

    /// When the last send was made that is wholly within the first `total` bytes, which are
    /// forgotten; `None` if no other one is.
    pub(super) fn acked(&mut self, total: u64) -> Option<Duration> {
        let mut last = None;
        while let Some(send) = self.sends.front()
            && send.end <= total
        {
            last = Some(send.at);
            self.sends.pop_front();
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ack_gives_the_time_of_the_last_send_within_it() {
        let mut outstanding = Outstanding::default();
        for n in 1..=3 {
            outstanding.push(n * 10, Duration::from_millis(n));
        }
        assert_eq!(outstanding.acked(9), None);
        assert_eq!(outstanding.acked(25), Some(Duration::from_millis(2)));
        assert_eq!(outstanding.acked(30), Some(Duration::from_millis(3)));
        assert_eq!(outstanding.acked(30), None);
    }

    #[test]
    fn sends_without_acks_stay_bounded_and_keep_their_last_times() {
        let mut outstanding = Outstanding::default();
        for n in 1..=100_000 {
            outstanding.push(n, Duration::from_micros(n));
            assert!(outstanding.sends.len() <= LIMIT);
        }
        assert_eq!(outstanding.acked(100_000), Some(Duration::from_millis(100)));
    }
}
