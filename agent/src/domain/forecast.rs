//! What a live migration will take, foretold from what is known before it begins. Pure.
//!
//! ```text
//! pass    = memory in use × wire bytes a byte of it / speed
//! left    = dirty rate × pass, at most all of that memory
//! ```
//! and again with what is left, until what is no page and the last transfer fit into the downtime
//! target, or what is no page and half of it. A guest that writes as fast as it is sent is held, so
//! that each pass leaves half. That is how the VMM decides too, with what it measures on the way.
//!
//! How fast a guest writes and how well its memory compresses nobody knows before it has moved
//! once: the dirty log is off until then. What is not known is said to be so, and no figure is made
//! up for it.

#[cfg(test)]
mod tests;

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use pindah_vmm_api::MigrationMode;
use pindah_vmm_api::report::{Bytes, Time};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::LastMove;

/// What TCP, IP and Ethernet leave of a link's speed to what is sent (1448 bytes of each 1538 on
/// the wire).
const GOODPUT: f64 = 1448.0 / 1538.0;
/// Two passes that each leave more than this share of what they sent make the guest be held.
const IMPROVED: f64 = 0.9;

/// What is known of a move before it begins.
#[derive(Clone, Copy, Debug)]
pub struct MoveInputs<'a> {
    /// Memory that the guest has in use, in bytes.
    pub memory_bytes: u64,
    /// It stands paused, and writes nothing.
    pub paused: bool,
    /// The guest's own last move, to wherever.
    pub last: Option<&'a LastMove>,
    /// How fast an earlier move between these nodes was, in bytes a second.
    pub moved_bytes_per_s: Option<u64>,
    /// What the link to the destination carries, in bits a second.
    pub link_bits_per_s: Option<u64>,
    /// Never more than this, in bytes a second, if that was asked for.
    pub cap_bytes_per_s: Option<u64>,
    /// What becomes of a guest that writes too fast.
    pub mode: MigrationMode,
    /// The guest is stopped only when it is predicted to stand no longer.
    pub downtime_target: Duration,
    /// The move is given up after this.
    pub timeout: Duration,
}

/// How the speed of a move is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpeedSource {
    /// An earlier move between the two nodes was as fast.
    EarlierMove,
    /// The network card says so.
    Link,
    /// Somebody asked for no more.
    Cap,
}

/// What a move is expected to take. Null is what cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forecast {
    /// How fast memory is sent, in bytes a second on the wire.
    pub send_bytes_per_s: Option<u64>,
    /// How that is known.
    pub speed_by: Option<SpeedSource>,
    /// How fast the guest writes, in bytes of whole pages a second: as in its last move. Null:
    /// nobody knows, and the times are those of a guest that writes little.
    pub dirty_bytes_per_s: Option<u64>,
    /// Until it runs there, in milliseconds, if its memory compresses as in its last move.
    pub total_ms: Option<u64>,
    /// Until it runs there, in milliseconds, if nothing compresses.
    pub total_uncompressed_ms: Option<u64>,
    /// How long it will stand, in microseconds.
    pub downtime_us: Option<u64>,
    /// It is stopped only when it is predicted to stand no longer than this, in milliseconds.
    pub downtime_target_ms: u64,
    /// The move is given up after this, in seconds.
    pub timeout_s: u64,
}

/// What a move takes, in seconds.
struct Course {
    total: f64,
    downtime: f64,
}

impl MoveInputs<'_> {
    /// What the move is expected to take.
    pub fn forecast(&self) -> Forecast {
        let speed = self.speed();
        let rate = speed.map(|(bytes_per_s, _)| bytes_per_s.max(1) as f64);
        let course = |share: f64| rate.map(|rate| self.course(share, rate));
        let as_last = self.last.and_then(|last| course(last.wire_share()));
        let uncompressed = course(1.0);
        Forecast {
            send_bytes_per_s: speed.map(|(bytes_per_s, _)| bytes_per_s),
            speed_by: speed.map(|(_, source)| source),
            dirty_bytes_per_s: self.dirty_bytes_per_s(),
            total_ms: as_last.as_ref().map(|course| ms(course.total)),
            total_uncompressed_ms: uncompressed.map(|course| ms(course.total)),
            downtime_us: as_last.map(|course| (course.downtime * 1e6) as u64),
            downtime_target_ms: self.downtime_target.as_millis() as u64,
            timeout_s: self.timeout.as_secs(),
        }
    }

    fn dirty_bytes_per_s(&self) -> Option<u64> {
        if self.paused {
            return Some(0);
        }
        self.last.map(LastMove::dirty_bytes_per_s)
    }

    /// A move that was made tells more than a card.
    fn speed(&self) -> Option<(u64, SpeedSource)> {
        let moved = self.moved_bytes_per_s;
        let moved = moved.map(|bytes_per_s| (bytes_per_s, SpeedSource::EarlierMove));
        let link = self.link_bits_per_s.map(|bits_per_s| {
            let bytes_per_s = bits_per_s as f64 / 8.0 * GOODPUT;
            (bytes_per_s as u64, SpeedSource::Link)
        });
        let cap = self.cap_bytes_per_s.map(|cap| (cap, SpeedSource::Cap));
        let path = moved.or(link);
        path.into_iter()
            .chain(cap)
            .min_by_key(|(bytes_per_s, _)| *bytes_per_s)
    }

    /// With `share` bytes on the wire for one of memory, and `rate` of them a second.
    fn course(&self, share: f64, rate: f64) -> Course {
        let seconds = |us: u64| us as f64 / 1e6;
        let fixed = self.last.map_or(0.0, |last| seconds(last.fixed_us));
        let target = self.downtime_target.as_secs_f64();
        let dirty = self.dirty_bytes_per_s().unwrap_or(0) as f64;
        let memory = self.memory_bytes as f64;
        let transfer = |bytes: f64| bytes * share / rate;
        let mut total = self.last.map_or(0.0, |last| seconds(last.overhead_us));
        let mut left = memory;
        loop {
            let pass = transfer(left);
            total += pass;
            let written = (dirty * pass).min(memory);
            let leaves_pages = self.mode == MigrationMode::Hybrid;
            if leaves_pages {
                total += fixed + transfer(written);
                let downtime = fixed;
                return Course { total, downtime };
            }
            let held = written > left * IMPROVED;
            left = if held { left / 2.0 } else { written };
            let downtime = fixed + transfer(left);
            // Rounds do not lower what is no page.
            if downtime <= target.max(fixed + target / 2.0) {
                total += downtime;
                return Course { total, downtime };
            }
        }
    }
}

fn ms(seconds: f64) -> u64 {
    (seconds * 1e3).round() as u64
}

fn time_ms(ms: u64) -> Time {
    Time(ms.saturating_mul(1000))
}

impl Forecast {
    /// What it came to, beside what was foretold: a line of a task's log.
    pub fn beside(&self, total_ms: u64, downtime_us: u64) -> String {
        let total = match (self.total_ms, self.total_uncompressed_ms) {
            (Some(about), _) => format!("foretold about {}", time_ms(about)),
            (None, Some(most)) => format!("foretold {} without compression", time_ms(most)),
            (None, None) => "not foretold".to_owned(),
        };
        let downtime = match self.downtime_us {
            Some(us) => format!("foretold about {}", Time(us)),
            None => format!("aimed at {}", time_ms(self.downtime_target_ms)),
        };
        let (took, stood) = (time_ms(total_ms), Time(downtime_us));
        format!("took {took}, {total}; stood for {stood}, {downtime}")
    }

    fn write_total(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (Some(speed), Some(most)) = (self.send_bytes_per_s, self.total_uncompressed_ms) else {
            return f.write_str("the speed of the link is not known, so no time is foretold");
        };
        match self.total_ms {
            Some(about) => write!(
                f,
                "about {} if it compresses as in its last move, {} if not at all",
                time_ms(about),
                time_ms(most)
            )?,
            None => write!(f, "{} if nothing compresses", time_ms(most))?,
        }
        write!(f, ", at {}/s", Bytes(speed))?;
        f.write_str(match self.speed_by {
            Some(SpeedSource::EarlierMove) => ", as fast as an earlier move between the nodes",
            Some(SpeedSource::Cap) => ", the limit that was asked for",
            Some(SpeedSource::Link) | None => ", the speed of the link",
        })?;
        let least = self.total_ms.unwrap_or(most);
        if least > self.timeout_s.saturating_mul(1000) {
            let timeout = time_ms(self.timeout_s.saturating_mul(1000));
            write!(f, "; it is given up after {timeout}")?;
        }
        Ok(())
    }
}

impl Display for Forecast {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.write_total(f)?;
        match self.dirty_bytes_per_s {
            Some(0) => {}
            Some(rate) => write!(f, "; it writes {}/s as in its last move", Bytes(rate))?,
            None => {
                f.write_str("; how fast it writes is not known before it has moved once")?;
                if self.send_bytes_per_s.is_some() {
                    f.write_str(", and taken for little")?;
                }
            }
        }
        let target = time_ms(self.downtime_target_ms);
        match self.downtime_us {
            Some(us) => write!(f, "; it stands for about {}", Time(us)),
            None => write!(f, "; it is to stand for at most {target}"),
        }
    }
}
