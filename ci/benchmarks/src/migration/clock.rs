//! Whether a guest's clock went on while it stood.
//!
//! The guest measures its blackout by its TSC. A VMM that sets that to what it was when the guest
//! stopped hides the blackout, and KVM may set it forward or back by what two machines differ in
//! age (`KVM_SET_MSRS` of `IA32_TSC`, "synchronized" writes). So both sides' lines are compared
//! with the host's clock: each has the guest's time, and comes a moment later, by the host's.

use std::time::Instant;

use serde_json::Value;

/// What arrived, and when.
#[derive(Clone, Debug, Default)]
pub struct Timed {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Where each piece ends, and when it came.
    pub pieces: Vec<(usize, Instant)>,
}

/// How far the host's clock, since some epoch, is ahead of the guest's, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ahead {
    /// By the line that came soonest.
    pub soonest_us: f64,
    /// How much later half of the lines came: what the host's scheduler adds.
    pub spread_us: f64,
}

impl Timed {
    /// By the lines that begin and end in `range`; `None` if there are none.
    pub fn ahead(&self, range: std::ops::Range<usize>, epoch: Instant) -> Option<Ahead> {
        let end = range.end.min(self.bytes.len());
        let mut at = range.start.min(end);
        let mut all = Vec::new();
        for line in self.bytes[at..end].split_inclusive(|byte| *byte == b'\n') {
            all.extend(self.line_ahead_us(at, line, epoch));
            at += line.len();
        }
        all.sort_by(f64::total_cmp);
        let soonest_us = *all.first()?;
        let spread_us = all[all.len() / 2] - soonest_us;
        Some(Ahead {
            soonest_us,
            spread_us,
        })
    }

    fn line_ahead_us(&self, at: usize, line: &[u8], epoch: Instant) -> Option<f64> {
        let value: Value = serde_json::from_slice(line.strip_suffix(b"\n")?).ok()?;
        let guest_us = value["t_us"].as_f64()?;
        let piece = self.pieces.partition_point(|(end, _)| *end <= at);
        let (_, arrival) = self.pieces.get(piece)?;
        let host_us = arrival.saturating_duration_since(epoch).as_secs_f64() * 1e6;
        Some(host_us - guest_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ahead_is_that_of_the_line_that_came_soonest() {
        let epoch = Instant::now();
        let mut timed = Timed::default();
        for (text, arrival_us) in [
            ("rest\n", 1),
            ("{\"t_us\":100", 600),
            ("}\n", 9000),
            ("{\"t_us\":1000}\n", 1700),
            ("{\"t_us\":2000}\n", 2400),
        ] {
            timed.bytes.extend_from_slice(text.as_bytes());
            let arrival = epoch + Duration::from_micros(arrival_us);
            timed.pieces.push((timed.bytes.len(), arrival));
        }
        let ahead = |range| {
            let ahead = timed.ahead(range, epoch)?;
            Some((ahead.soonest_us.round(), ahead.spread_us.round()))
        };
        assert_eq!(ahead(0..usize::MAX), Some((400.0, 100.0)));
        assert_eq!(ahead(0..20), Some((500.0, 0.0)));
        assert_eq!(ahead(0..7), None);
    }
}
