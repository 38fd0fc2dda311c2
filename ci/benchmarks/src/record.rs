//! The figures, as the JSON file has them.

use serde::Serialize;

/// One figure of one subject in one case.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// The bench: `start`, `memory`, …
    pub bench: String,
    /// The case of the bench.
    pub case: String,
    /// The VMM.
    pub subject: String,
    /// What was measured.
    pub metric: Metric,
    /// In what unit.
    pub unit: &'static str,
    /// Median of the runs.
    pub median: f64,
    /// Smallest of the runs.
    pub min: f64,
    /// Largest of the runs.
    pub max: f64,
    /// Number of runs.
    pub runs: usize,
    /// Which of the subject's tunings this is, where it has several.
    #[serde(skip)]
    pub tuning: &'static str,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// From the start of the process to the guest's first byte on its serial line.
    FirstByteMs,
    /// Resident memory, without the guest's RAM; shared pages count whole.
    RssBeyondRamMib,
    /// The same, but a page that n processes share counts 1/n.
    PssBeyondRamMib,
    /// VM exits that the VMM answers, by one vCPU.
    ExitsPerS,
    /// Disk requests.
    Iops,
    /// Bytes moved by a disk or a card.
    MibPerS,
    /// Frames that reach the tap.
    PacketsPerS,
    /// What 99 of 100 requests do not exceed, as the guest sees it.
    LatencyP99Us,
    /// Share of the runs in which the guest moved within the time that the case gives it. The
    /// other figures are of these runs.
    ConvergedPercent,
    /// From the order to move a guest until both VMMs say that all is done.
    TotalMs,
    /// How long the guest stood, as the VMM reports it.
    DowntimeMs,
    /// The longest pause between two steps that the guest itself saw, from its last word at the
    /// source to its first at the destination after all was done.
    BlackoutMs,
    /// What the link carried meanwhile, in both directions, with all headers, without the pings.
    SentBytes,
    /// Round trip of pings on the link meanwhile.
    PingP50Ms,
    /// What 99 of 100 of them did not exceed.
    PingP99Ms,
    /// Share of them that was not answered.
    PingLostPercent,
    /// What the guest dirtied in a second of its own clock meanwhile, and some 100 ms longer:
    /// less than it wants to, if it was slowed down.
    DirtiedMibPerS,
    /// Processor time of both VMMs meanwhile, user and system, without what the guest used in as
    /// much time before.
    CpuS,
    /// From a client's request for all guests to the end of the agent's answer.
    ListMs,
    /// The same by the command line, from its start to its end.
    CliListMs,
    /// From the start of the agent until it serves.
    ServesMs,
    /// Resident memory of a process; shared pages count whole.
    RssMib,
    /// The same, but a page that n processes share counts 1/n.
    PssMib,
    /// Processor time that the agent takes while nothing happens: 100 is one core.
    CpuPercent,
}

impl Metric {
    /// Its unit.
    pub fn unit(self) -> &'static str {
        match self {
            Self::FirstByteMs
            | Self::TotalMs
            | Self::DowntimeMs
            | Self::BlackoutMs
            | Self::PingP50Ms
            | Self::PingP99Ms
            | Self::ListMs
            | Self::CliListMs
            | Self::ServesMs => "ms",
            Self::RssBeyondRamMib | Self::PssBeyondRamMib | Self::RssMib | Self::PssMib => "MiB",
            Self::ExitsPerS | Self::Iops | Self::PacketsPerS => "1/s",
            Self::MibPerS | Self::DirtiedMibPerS => "MiB/s",
            Self::LatencyP99Us => "us",
            Self::ConvergedPercent | Self::PingLostPercent | Self::CpuPercent => "%",
            Self::SentBytes => "B",
            Self::CpuS => "s",
        }
    }

    /// Its name in the JSON file.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstByteMs => "first_byte_ms",
            Self::RssBeyondRamMib => "rss_beyond_ram_mib",
            Self::PssBeyondRamMib => "pss_beyond_ram_mib",
            Self::ExitsPerS => "exits_per_s",
            Self::Iops => "iops",
            Self::MibPerS => "mib_per_s",
            Self::PacketsPerS => "packets_per_s",
            Self::LatencyP99Us => "latency_p99_us",
            Self::ConvergedPercent => "converged_percent",
            Self::TotalMs => "total_ms",
            Self::DowntimeMs => "downtime_ms",
            Self::BlackoutMs => "blackout_ms",
            Self::SentBytes => "sent_bytes",
            Self::PingP50Ms => "ping_p50_ms",
            Self::PingP99Ms => "ping_p99_ms",
            Self::PingLostPercent => "ping_lost_percent",
            Self::DirtiedMibPerS => "dirtied_mib_per_s",
            Self::CpuS => "cpu_s",
            Self::ListMs => "list_ms",
            Self::CliListMs => "cli_list_ms",
            Self::ServesMs => "serves_ms",
            Self::RssMib => "rss_mib",
            Self::PssMib => "pss_mib",
            Self::CpuPercent => "cpu_percent",
        }
    }

    /// Whether more is better.
    pub fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::ExitsPerS
                | Self::Iops
                | Self::MibPerS
                | Self::PacketsPerS
                | Self::ConvergedPercent
                | Self::DirtiedMibPerS
        )
    }

    /// How many times better `ours` is than `theirs`.
    pub fn advantage(self, ours: f64, theirs: f64) -> f64 {
        if self.more_is_better() {
            ours / theirs
        } else {
            theirs / ours
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn record_serialized_has_documented_shape() {
        let record = Record {
            bench: "block".to_owned(),
            case: "randread_4k_qd1".to_owned(),
            subject: "qemu-q35".to_owned(),
            metric: Metric::Iops,
            unit: Metric::Iops.unit(),
            median: 2.5,
            min: 1.0,
            max: 4.0,
            runs: 5,
            tuning: "threads",
        };
        let expected = json!({
            "bench": "block", "case": "randread_4k_qd1", "subject": "qemu-q35",
            "metric": "iops", "unit": "1/s", "median": 2.5, "min": 1.0, "max": 4.0, "runs": 5,
        });
        assert_eq!(serde_json::to_value(record).unwrap(), expected);
    }

    #[test]
    fn metric_name_is_that_of_json() {
        for metric in [
            Metric::FirstByteMs,
            Metric::RssBeyondRamMib,
            Metric::PssBeyondRamMib,
            Metric::ExitsPerS,
            Metric::Iops,
            Metric::MibPerS,
            Metric::PacketsPerS,
            Metric::LatencyP99Us,
            Metric::ConvergedPercent,
            Metric::TotalMs,
            Metric::DowntimeMs,
            Metric::BlackoutMs,
            Metric::SentBytes,
            Metric::PingP50Ms,
            Metric::PingP99Ms,
            Metric::PingLostPercent,
            Metric::DirtiedMibPerS,
            Metric::CpuS,
            Metric::ListMs,
            Metric::CliListMs,
            Metric::ServesMs,
            Metric::RssMib,
            Metric::PssMib,
            Metric::CpuPercent,
        ] {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        }
    }

    #[test]
    fn advantage_of_twice_as_good_is_two_either_way() {
        assert!((Metric::Iops.advantage(200.0, 100.0) - 2.0).abs() < 1e-9);
        assert!((Metric::FirstByteMs.advantage(5.0, 10.0) - 2.0).abs() < 1e-9);
    }
}
