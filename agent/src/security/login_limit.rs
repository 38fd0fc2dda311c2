//! Guessing passwords is slow: after some failures an address, and a user, have to wait.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures that cost nothing.
const FREE: u32 = 5;
/// The first wait; it doubles with each further failure.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Failures are forgotten after so long.
const MEMORY: Duration = Duration::from_secs(3600);
/// Addresses and users that are remembered; beyond that the oldest are forgotten.
const REMEMBERED: usize = 10_000;

/// Who has failed, and how often.
#[derive(Debug, Default)]
pub struct LoginLimit {
    failures: Mutex<HashMap<String, Failures>>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Failures {
    fn wait(&self) -> Duration {
        match self.count.checked_sub(FREE) {
            None => Duration::ZERO,
            Some(beyond) => (FIRST_WAIT * (1 << beyond.min(16))).min(LONGEST_WAIT),
        }
    }
}

impl LoginLimit {
    /// How long this address and user have to wait before the next try; `None`: not at all.
    pub fn must_wait(&self, address: IpAddr, user: &str, now: Instant) -> Option<Duration> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = keys(address, user).into_iter().filter_map(|key| {
            let failures = failures.get(&key)?;
            (failures.last + failures.wait()).checked_duration_since(now)
        });
        waits.max().filter(|wait| !wait.is_zero())
    }

    /// A try failed.
    pub fn failed(&self, address: IpAddr, user: &str, now: Instant) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, failures| now.duration_since(failures.last) < MEMORY);
        if failures.len() >= REMEMBERED {
            let oldest = failures.iter().min_by_key(|(_, failures)| failures.last);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                failures.remove(&key);
            }
        }
        for key in keys(address, user) {
            let entry = failures.entry(key).or_insert(Failures {
                count: 0,
                last: now,
            });
            entry.count += 1;
            entry.last = now;
        }
    }

    /// A try succeeded that was counted as a failure before: this user's failures are forgotten,
    /// and of the address's that one.
    pub fn succeeded(&self, address: IpAddr, user: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(&user_key(user));
        if let Some(failures) = failures.get_mut(&address_key(address)) {
            failures.count = failures.count.saturating_sub(1);
        }
    }
}

fn keys(address: IpAddr, user: &str) -> [String; 2] {
    [address_key(address), user_key(user)]
}

fn address_key(address: IpAddr) -> String {
    format!("address {address}")
}

fn user_key(user: &str) -> String {
    let user: String = user.chars().take(64).collect();
    format!("user {user}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_grows_with_failures_and_ends() {
        let limit = LoginLimit::default();
        let address = IpAddr::from([192, 0, 2, 1]);
        let other = IpAddr::from([192, 0, 2, 2]);
        let start = Instant::now();
        for _ in 0..4 {
            limit.failed(address, "siti", start);
        }
        assert_eq!(limit.must_wait(address, "siti", start), None);
        limit.failed(address, "siti", start);
        assert_eq!(limit.must_wait(address, "siti", start), Some(FIRST_WAIT));
        assert_eq!(limit.must_wait(other, "siti", start), Some(FIRST_WAIT));
        assert_eq!(limit.must_wait(address, "budi", start), Some(FIRST_WAIT));
        assert_eq!(limit.must_wait(other, "budi", start), None);
        limit.failed(address, "siti", start);
        let later = start + FIRST_WAIT;
        assert_eq!(limit.must_wait(address, "siti", later), Some(FIRST_WAIT));
        let much_later = start + Duration::from_secs(301);
        assert_eq!(limit.must_wait(address, "siti", much_later), None);
        limit.failed(address, "siti", much_later);
        limit.succeeded(address, "siti");
        assert_eq!(limit.must_wait(other, "siti", much_later), None);
        // What others have tried from there still counts.
        assert!(limit.must_wait(address, "budi", much_later).is_some());
    }

    #[test]
    fn those_who_know_their_passwords_never_wait() {
        let limit = LoginLimit::default();
        let (address, now) = (IpAddr::from([192, 0, 2, 1]), Instant::now());
        for _ in 0..100 {
            assert_eq!(limit.must_wait(address, "siti", now), None);
            limit.failed(address, "siti", now);
            limit.succeeded(address, "siti");
        }
    }
}
