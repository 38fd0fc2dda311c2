//! What a guest's last live migration has shown: what the next one is foretold from.

use pindah_vmm_api::MigrationReport;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::store::Record;

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;
/// A pass that sent less tells nothing of the link to others, in bytes.
const TELLING_BYTES: u64 = 1 << 20;

/// A guest's last live migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastMove {
    /// The guest.
    pub guest: Uuid,
    /// The node that it left.
    pub from: String,
    /// The node that it came to.
    pub to: String,
    /// When, in milliseconds since the Unix epoch.
    pub ended_unix_ms: u64,
    /// Memory that it had in use, in bytes.
    pub memory_bytes: u64,
    /// What the first pass over that put on the wire, in bytes.
    pub pass_wire_bytes: u64,
    /// How long that pass took, in microseconds.
    pub pass_us: u64,
    /// Memory that the guest wrote in that time, in bytes of whole pages.
    pub written_bytes: u64,
    /// What it stood for that was no page, in microseconds.
    pub fixed_us: u64,
    /// What was no pass over memory and no standing, in microseconds.
    pub overhead_us: u64,
    /// It was sent no faster than somebody had asked for: its speed is not the link's.
    pub capped: bool,
}

impl Record for LastMove {
    const KIND: &'static str = "last-moves";
    const SCHEMA: u32 = 1;
}

impl LastMove {
    /// From what the VMM says of it. `None`: it made no pass that took any time.
    pub fn of(
        guest: Uuid,
        (from, to): (&str, &str),
        (memory_bytes, capped): (u64, bool),
        report: &MigrationReport,
        ended_unix_ms: u64,
    ) -> Option<Self> {
        let first = report
            .rounds
            .first()
            .filter(|round| round.duration_us > 0)?;
        let steps = &report.switchover;
        let left_behind = report.postcopy.as_ref().map(|postcopy| postcopy.pages);
        let second = report.rounds.get(1).map(|round| round.pages);
        let written = second.or(left_behind).unwrap_or(0);
        let passes: u64 = report.rounds.iter().map(|round| round.duration_us).sum();
        let postcopy_us = report.postcopy.map_or(0, |postcopy| postcopy.duration_us);
        let total_us = report.total_ms.saturating_mul(1000);
        let pages_us = steps.last_pages_us.saturating_add(steps.drain_us);
        let fixed_us = report.downtime_us.saturating_sub(pages_us);
        Some(Self {
            guest,
            from: from.to_owned(),
            to: to.to_owned(),
            ended_unix_ms,
            memory_bytes,
            pass_wire_bytes: first.wire_bytes,
            pass_us: first.duration_us,
            written_bytes: written.saturating_mul(PAGE_BYTES),
            fixed_us,
            overhead_us: total_us
                .saturating_sub(passes)
                .saturating_sub(fixed_us)
                .saturating_sub(postcopy_us),
            capped,
        })
    }

    /// How fast the guest wrote, in bytes of whole pages a second.
    pub fn dirty_bytes_per_s(&self) -> u64 {
        per_second(self.written_bytes, self.pass_us)
    }

    /// What a byte of its memory took on the wire, 0 to 1.
    pub fn wire_share(&self) -> f64 {
        let share = self.pass_wire_bytes as f64 / self.memory_bytes.max(1) as f64;
        share.min(1.0)
    }

    fn is_between(&self, one: &str, other: &str) -> bool {
        let ends = [self.from.as_str(), self.to.as_str()];
        ends == [one, other] || ends == [other, one]
    }

    /// How fast memory goes from one node to the other, or back, in bytes a second on the wire: as
    /// in the guest's own last move, or in the last of any that sent enough to tell.
    pub fn speed_between(moves: &[Self], guest: Uuid, nodes: (&str, &str)) -> Option<u64> {
        let uncapped = moves.iter().filter(|last| !last.capped);
        let telling = uncapped.filter(|last| {
            let enough = last.guest == guest || last.pass_wire_bytes >= TELLING_BYTES;
            enough && last.is_between(nodes.0, nodes.1)
        });
        let best = telling.max_by_key(|last| (last.guest == guest, last.ended_unix_ms));
        best.map(|last| per_second(last.pass_wire_bytes, last.pass_us).max(1))
    }
}

fn per_second(bytes: u64, us: u64) -> u64 {
    (bytes as f64 / us.max(1) as f64 * 1e6) as u64
}

#[cfg(test)]
mod tests {
    use pindah_vmm_api::{PostcopyReport, RoundReport, SwitchoverReport};

    use super::*;

    fn report() -> MigrationReport {
        let round = |pages, wire_bytes, duration_us| RoundReport {
            pages,
            wire_bytes,
            duration_us,
        };
        MigrationReport {
            total_ms: 1_300,
            downtime_us: 9_000,
            rounds: vec![
                round(131_072, 100 << 20, 1_000_000),
                round(2_560, 5 << 20, 50_000),
                round(128, 1 << 18, 2_500),
            ],
            switchover: SwitchoverReport {
                last_pages_us: 2_500,
                drain_us: 500,
                ..SwitchoverReport::default()
            },
            ..MigrationReport::default()
        }
    }

    fn moved(guest: u128, nodes: (&str, &str), ended_unix_ms: u64) -> LastMove {
        let memory = (200 << 20, false);
        let uuid = Uuid::from_u128(guest);
        LastMove::of(uuid, nodes, memory, &report(), ended_unix_ms).unwrap()
    }

    #[test]
    fn report_tells_share_write_rate_and_what_is_no_page() {
        let last = moved(1, ("node1", "node2"), 7);
        assert!((last.wire_share() - 0.5).abs() < 1e-9);
        assert_eq!(last.dirty_bytes_per_s(), 2_560 * 4096);
        assert_eq!(last.fixed_us, 6_000);
        assert_eq!(last.overhead_us, 1_300_000 - 1_052_500 - 6_000);
    }

    #[test]
    fn pages_that_stayed_behind_were_written_too() {
        let mut report = report();
        report.rounds.truncate(1);
        report.postcopy = Some(PostcopyReport {
            pages: 100,
            ..PostcopyReport::default()
        });
        let last = LastMove::of(Uuid::nil(), ("a", "b"), (1, false), &report, 0).unwrap();
        assert_eq!(last.written_bytes, 100 * 4096);
        report.rounds.clear();
        assert_eq!(
            LastMove::of(Uuid::nil(), ("a", "b"), (1, false), &report, 0),
            None
        );
    }

    #[test]
    fn speed_is_that_of_the_guest_itself_or_of_the_last_that_tells() {
        let speed = |moves: &[LastMove], guest| {
            LastMove::speed_between(moves, Uuid::from_u128(guest), ("node2", "node1"))
        };
        let slow = LastMove {
            pass_us: 10_000_000,
            ..moved(1, ("node1", "node2"), 5)
        };
        let fast = moved(2, ("node2", "node1"), 9);
        let elsewhere = moved(3, ("node1", "node3"), 99);
        let all = [slow.clone(), fast, elsewhere];
        assert_eq!(speed(&all, 1), Some(10 << 20));
        assert_eq!(speed(&all, 2), Some(100 << 20));
        assert_eq!(speed(&all, 9), Some(100 << 20));
        assert_eq!(speed(&all[2..], 3), None);
        let capped = LastMove {
            capped: true,
            ..slow.clone()
        };
        assert_eq!(speed(&[capped], 1), None);
        let small = LastMove {
            pass_wire_bytes: 1000,
            ..slow
        };
        assert_eq!(speed(std::slice::from_ref(&small), 9), None);
        assert_eq!(speed(&[small], 1), Some(100));
    }
}
