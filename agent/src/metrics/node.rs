//! The node itself, sample by sample.

use std::collections::BTreeMap;
use std::time::Instant;

use super::host::{CpuCounters, HostDiskCounters, LinkCounters};
use super::rate::{Rate, Rates};
use super::usage::{NodeUsage, kbit, kib, rounded};
use crate::clock::now_unix_ms;

/// What a node has counted, and what follows from that.
#[derive(Debug, Default)]
pub(super) struct NodeMeter {
    pub last: NodeSample,
    pub usage: NodeUsage,
    busy: Rate,
    rx: Rates,
    tx: Rates,
    read: Rates,
    write: Rates,
}

/// What is seen of a node at one time.
#[derive(Debug, Default)]
pub(super) struct NodeSample {
    pub cpu: CpuCounters,
    /// Processors.
    pub cpus: usize,
    /// Network cards.
    pub links: BTreeMap<String, LinkCounters>,
    /// Disks that are devices.
    pub disks: BTreeMap<String, HostDiskCounters>,
    pub memory_total_mib: u64,
    pub memory_available_mib: u64,
}

impl NodeMeter {
    /// Takes in a sample.
    pub(super) fn sample(&mut self, at: Instant, sample: NodeSample) {
        let received = sample
            .links
            .iter()
            .map(|(name, link)| (&**name, link.rx_bytes));
        let sent = sample
            .links
            .iter()
            .map(|(name, link)| (&**name, link.tx_bytes));
        let disk = |of: fn(&HostDiskCounters) -> u64| {
            let disks = sample.disks.iter();
            disks.map(move |(name, disk)| (&**name, of(disk)))
        };
        let read = self.read.per_second(at, disk(|disk| disk.read_bytes));
        let written = self.write.per_second(at, disk(|disk| disk.written_bytes));
        let all_ms_per_s = 1000.0 * sample.cpus.max(1) as f64;
        let busy_ms_per_s = self
            .busy
            .per_second(at, sample.cpu.busy().as_millis() as u64);
        let used_mib = sample
            .memory_total_mib
            .checked_sub(sample.memory_available_mib);
        self.usage = NodeUsage {
            sampled_unix_ms: Some(now_unix_ms()),
            cpu_percent: busy_ms_per_s
                .map(|busy| rounded((busy / all_ms_per_s * 100.0).min(100.0))),
            memory_used_mib: used_mib,
            network_rx_kbit_per_s: self.rx.per_second(at, received).map(kbit),
            network_tx_kbit_per_s: self.tx.per_second(at, sent).map(kbit),
            disk_read_kib_per_s: read.map(kib),
            disk_write_kib_per_s: written.map(kib),
        };
        self.last = sample;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn hundred_percent_is_all_processors() {
        let (mut meter, start) = (NodeMeter::default(), Instant::now());
        let sample = |user_ms| NodeSample {
            cpu: CpuCounters {
                user: Duration::from_millis(user_ms),
                ..CpuCounters::default()
            },
            cpus: 2,
            memory_total_mib: 2048,
            memory_available_mib: 1536,
            ..NodeSample::default()
        };
        meter.sample(start, sample(1000));
        assert_eq!(meter.usage.cpu_percent, None);
        assert_eq!(meter.usage.memory_used_mib, Some(512));
        meter.sample(start + Duration::from_secs(10), sample(11_000));
        assert_eq!(meter.usage.cpu_percent, Some(50.0));
        assert_eq!(meter.usage.network_rx_kbit_per_s, None);
    }
}
