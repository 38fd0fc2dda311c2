//! Ping on the link while a guest moves: what others who share it feel.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::BoundChild;

/// Pings a second: one that waits in a queue of 2 ms is seen.
const INTERVAL_S: &str = "0.002";
/// Bytes on the link of each ping and as many of its answer: Ethernet, IPv4, ICMP, 56 of data.
const FRAME_BYTES: u64 = 98;

/// `ping(8)`, running.
pub struct Ping {
    child: BoundChild,
    log: PathBuf,
}

/// What the pings of some time felt.
#[derive(Clone, Debug, PartialEq)]
pub struct Felt {
    /// Round trips, in milliseconds, in rising order.
    pub sorted_ms: Vec<f64>,
    /// Pings that were sent.
    pub sent: u64,
}

/// One answer.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Answer {
    sequence: u64,
    sent_unix_s: f64,
    round_trip_ms: f64,
}

impl Ping {
    /// Starts to ping `address` from inside `namespace`. Its output goes to the file `log`.
    ///
    /// # Errors
    /// If there is no ping, or no file.
    pub fn start(address: IpAddr, namespace: Arc<OwnedFd>, log: PathBuf) -> Result<Self> {
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new("ping");
        command.args(["-n", "-D", "-i", INTERVAL_S, &address.to_string()]);
        command.env("LC_ALL", "C");
        command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::null());
        let child = BoundChild::spawn(command, Some(namespace))
            .context("pinging (Debian package iputils-ping)")?;
        Ok(Self { child, log })
    }

    /// Ends it, and looks at those that were sent from `start` to `end`.
    ///
    /// # Errors
    /// If its output is not there.
    pub fn end(mut self, start: SystemTime, end: SystemTime) -> Result<Felt> {
        // It writes what it still has when it is interrupted.
        let process = Pid::from_raw(self.child.id().cast_signed());
        kill(process, Signal::SIGINT).context("ending ping")?;
        self.child.inner().wait().context("waiting for ping")?;
        let text = fs::read_to_string(&self.log)
            .with_context(|| format!("reading {}", self.log.display()))?;
        Ok(felt(&text, unix_s(start), unix_s(end)))
    }
}

impl Felt {
    /// What this share of the answers, from 0 to 1, did not exceed; `None` without answers.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let rank = (share * self.sorted_ms.len() as f64).ceil() as usize;
        self.sorted_ms.get(rank.saturating_sub(1)).copied()
    }

    /// Share of them that was not answered, in per cent.
    pub fn lost_percent(&self) -> f64 {
        let lost = self.sent.saturating_sub(self.sorted_ms.len() as u64);
        100.0 * lost as f64 / self.sent.max(1) as f64
    }

    /// What they put on the link, both ways.
    pub fn bytes(&self) -> u64 {
        (self.sent + self.sorted_ms.len() as u64) * FRAME_BYTES
    }
}

fn unix_s(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs_f64()
}

/// A ping without answer is known by the gap in the sequence.
fn felt(text: &str, start_unix_s: f64, end_unix_s: f64) -> Felt {
    let answers: Vec<Answer> = text.lines().filter_map(parse).collect();
    let within: Vec<&Answer> = answers
        .iter()
        .filter(|answer| (start_unix_s..=end_unix_s).contains(&answer.sent_unix_s))
        .collect();
    let first = within.iter().map(|answer| answer.sequence).min();
    let last = within.iter().map(|answer| answer.sequence).max();
    let sent = match (first, last) {
        (Some(first), Some(last)) => last - first + 1,
        _ => 0,
    };
    let mut sorted_ms: Vec<f64> = within.iter().map(|answer| answer.round_trip_ms).collect();
    sorted_ms.sort_by(f64::total_cmp);
    Felt { sorted_ms, sent }
}

/// `[1700000000.123456] 64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=0.045 ms`, with the time of
/// the answer's arrival.
fn parse(line: &str) -> Option<Answer> {
    let (arrival, rest) = line.strip_prefix('[')?.split_once(']')?;
    let field = |name: &str| {
        let mut words = rest.split_whitespace();
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let round_trip_ms: f64 = field("time")?.parse().ok()?;
    Some(Answer {
        sequence: field("icmp_seq")?.parse().ok()?,
        sent_unix_s: arrival.parse::<f64>().ok()? - round_trip_ms / 1e3,
        round_trip_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.
[100.000500] 64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=0.500 ms
[101.004000] 64 bytes from 10.0.0.2: icmp_seq=2 ttl=64 time=4.00 ms
[101.003000] 64 bytes from 10.0.0.2: icmp_seq=3 ttl=64 time=1.00 ms
[101.010000] 64 bytes from 10.0.0.2: icmp_seq=5 ttl=64 time=2.00 ms (DUP!)
[102.020000] 64 bytes from 10.0.0.2: icmp_seq=6 ttl=64 time=9 ms

--- 10.0.0.2 ping statistics ---
";

    #[test]
    fn felt_is_of_those_sent_within_and_counts_the_lost() {
        let felt = felt(TEXT, 100.5, 101.5);
        assert_eq!(felt.sorted_ms, [1.0, 2.0, 4.0]);
        assert_eq!(felt.sent, 4);
        assert!((felt.lost_percent() - 25.0).abs() < 1e-9);
        assert_eq!(felt.bytes(), 7 * 98);
    }

    #[test]
    fn quantile_is_a_value_that_was_measured() {
        let felt = felt(TEXT, 100.5, 101.5);
        assert_eq!(felt.quantile_ms(0.5), Some(2.0));
        assert_eq!(felt.quantile_ms(0.99), Some(4.0));
        assert_eq!(felt.quantile_ms(0.0), Some(1.0));
        assert_eq!(super::felt("", 0.0, 1.0).quantile_ms(0.5), None);
    }
}
