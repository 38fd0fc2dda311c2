//! How long something does not answer, as who pings it sees it.

use anyhow::{Result, ensure};

use crate::channel::Process;
use crate::server::Server;

/// Time between two pings.
const INTERVAL: &str = "0.1";

/// `ping`, until it is dropped.
pub struct Ping {
    process: Process,
    /// How much of its output has been looked at.
    seen: usize,
}

impl Ping {
    /// Begins to ping `address` from `server`.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn start(server: &Server, address: &str) -> Result<Self> {
        let ping = ["ping", "-n", "-D", "-i", INTERVAL, address];
        Ok(Self {
            process: server.spawn(&ping)?,
            seen: 0,
        })
    }

    /// The process behind it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The longest time between two answers since the last call, in seconds, and how many came.
    ///
    /// # Errors
    /// If it has ended, or fewer than two answers came.
    pub fn longest_gap_s(&mut self) -> Result<(f64, usize)> {
        ensure!(!self.process.has_ended()?, "ping has ended");
        let all = String::from_utf8_lossy(self.process.stdout()).into_owned();
        let end = all.rfind('\n').map_or(0, |end| end + 1);
        let times = answers(&all[self.seen..end]);
        self.seen = end;
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        let longest = gaps.fold(None, |longest: Option<f64>, gap| {
            Some(longest.map_or(gap, |longest| longest.max(gap)))
        });
        let longest = longest
            .ok_or_else(|| anyhow::anyhow!("only {} answers to ping\n{all}", times.len()))?;
        Ok((longest, times.len()))
    }
}

/// When each answer came, in seconds: `[1700000000.1] 64 bytes from …: icmp_seq=1 ttl=64 time=1 ms`.
fn answers(text: &str) -> Vec<f64> {
    let time = |line: &str| -> Option<f64> {
        let (time, rest) = line.strip_prefix('[')?.split_once(']')?;
        rest.contains("time=").then(|| time.parse().ok())?
    };
    text.lines().filter_map(time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_what_else_ping_says() {
        let text = "PING 10.9.0.1 (10.9.0.1) 56(84) bytes of data.\n\
            [1700000000.5] 64 bytes from 10.9.0.1: icmp_seq=1 ttl=64 time=1.2 ms\n\
            [1700000001.0] From 10.9.0.254 icmp_seq=2 Destination Host Unreachable\n\
            [1700000001.75] 64 bytes from 10.9.0.1: icmp_seq=3 ttl=64 time=0.9 ms\n";
        assert_eq!(answers(text), [1_700_000_000.5, 1_700_000_001.75]);
    }
}
