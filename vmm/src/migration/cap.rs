//! The most that a migration may send, where its request says so.

use std::time::Duration;

/// How much may be sent at once, as time of the capped rate.
const BURST: Duration = Duration::from_millis(5);

/// A token bucket. Times are those since any one start.
///
/// What limits the migration is then the lower one of [`Window::rate`](super::window::Window::rate),
/// which sees the link's rate in the bursts, and [`Self::bytes_per_s`].
#[derive(Debug)]
pub struct Cap {
    bytes_per_s: f64,
    /// Bytes that may be sent now. Negative after a frame that was larger than a burst.
    tokens: f64,
    at: Duration,
}

impl Cap {
    /// Lets `bytes_per_s` through, one byte a second at least.
    pub fn new(now: Duration, bytes_per_s: u64) -> Self {
        let mut cap = Self {
            bytes_per_s: bytes_per_s.max(1) as f64,
            tokens: 0.0,
            at: now,
        };
        cap.tokens = cap.burst();
        cap
    }

    /// What is let through, in bytes a second.
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s as u64
    }

    /// How long to wait, from `now`, before `bytes` may be sent. What is larger than a burst of
    /// 5 ms may go with a full bucket.
    pub fn ready_in(&self, now: Duration, bytes: u64) -> Duration {
        let missing = (bytes as f64).min(self.burst()) - self.tokens_at(now);
        // Rounded up to a nanosecond, so that who waits for it does not wake too early.
        let wait = (missing.max(0.0) / self.bytes_per_s * 1e9).ceil() / 1e9;
        Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX)
    }

    /// `bytes` were handed to a socket.
    pub fn on_sent(&mut self, now: Duration, bytes: u64) {
        self.tokens = self.tokens_at(now) - bytes as f64;
        self.at = self.at.max(now);
    }

    fn burst(&self) -> f64 {
        self.bytes_per_s * BURST.as_secs_f64()
    }

    fn tokens_at(&self, now: Duration) -> f64 {
        let gained = self.bytes_per_s * now.saturating_sub(self.at).as_secs_f64();
        (self.tokens + gained).min(self.burst())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends frames of `frame` bytes as soon as they may be for a second, and gives the bytes.
    fn send_for_a_second(cap: &mut Cap, frame: u64) -> u64 {
        let (mut now, mut sent) = (Duration::ZERO, 0);
        loop {
            now += cap.ready_in(now, frame);
            if now >= Duration::from_secs(1) {
                return sent;
            }
            assert!(cap.ready_in(now, frame) < Duration::from_nanos(10));
            cap.on_sent(now, frame);
            sent += frame;
        }
    }

    #[test]
    fn no_more_is_sent_than_the_cap_and_a_burst() {
        for (rate, frame) in [
            (10_000_000, 8192),
            (125_000_000, 65_536),
            (1_000_000, 65_536),
        ] {
            let mut cap = Cap::new(Duration::ZERO, rate);
            let sent = send_for_a_second(&mut cap, frame);
            let most = rate + rate / 200 + frame;
            assert!(sent <= most && sent + 2 * frame >= rate, "{sent} of {rate}");
        }
    }

    #[test]
    fn idle_time_saves_up_one_burst_at_most() {
        let mut cap = Cap::new(Duration::ZERO, 1_000_000);
        cap.on_sent(Duration::ZERO, 5000);
        let later = Duration::from_secs(100);
        assert_eq!(cap.ready_in(later, 5000), Duration::ZERO);
        cap.on_sent(later, 5000);
        assert_eq!(cap.ready_in(later, 1000), Duration::from_millis(1));
    }
}
