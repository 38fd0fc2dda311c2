//! One guest's process, sample by sample.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pindah_vmm_api::{BalloonMetrics, DiskMetrics, Metrics as VmmMetrics};

use super::host::{LinkCounters, ProcessCounters};
use super::rate::{Rate, Rates};
use super::usage::{GuestUsage, kbit, kib, rounded};
use crate::clock::now_unix_ms;

/// What a guest says of its memory counts for so long; then it has stopped saying it.
const MEMORY_STALE: Duration = Duration::from_secs(60);

/// What one disk has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DiskCounters {
    /// Bytes read.
    pub read_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Requests that failed.
    pub errors: u64,
}

impl From<&DiskMetrics> for DiskCounters {
    fn from(disk: &DiskMetrics) -> Self {
        let all = [
            &disk.read,
            &disk.write,
            &disk.flush,
            &disk.discard,
            &disk.write_zeroes,
        ];
        Self {
            read_bytes: disk.read.bytes,
            reads: disk.read.operations,
            written_bytes: disk.write.bytes,
            writes: disk.write.operations,
            errors: all.iter().map(|operation| operation.errors).sum(),
        }
    }
}

/// A guest's process: what it has counted, and what follows from that.
///
/// It begins anew with each process, as the counters do.
#[derive(Debug)]
pub(super) struct GuestMeter {
    pub pid: u32,
    pub process: ProcessCounters,
    /// By the interface's name; directions are the guest's.
    pub interfaces: BTreeMap<String, LinkCounters>,
    /// By the disk's name.
    pub disks: BTreeMap<String, DiskCounters>,
    /// Whether the VMM answered when it was last asked.
    pub answers: bool,
    pub usage: GuestUsage,
    cpu: Rate,
    rx: Rates,
    tx: Rates,
    read: Rates,
    write: Rates,
    operations: Rates,
    /// The last that the guest said of its memory, and when that was heard first.
    memory_said: Option<(u64, Instant)>,
}

impl GuestMeter {
    pub(super) fn new(pid: u32, process: ProcessCounters) -> Self {
        Self {
            pid,
            process,
            interfaces: BTreeMap::new(),
            disks: BTreeMap::new(),
            answers: true,
            usage: GuestUsage::default(),
            cpu: Rate::default(),
            rx: Rates::default(),
            tx: Rates::default(),
            read: Rates::default(),
            write: Rates::default(),
            operations: Rates::default(),
            memory_said: None,
        }
    }

    /// Whether these counters go on from ours.
    pub(super) fn is_of(&self, pid: u32, process: &ProcessCounters) -> bool {
        self.pid == pid && self.process.start_ticks == process.start_ticks
    }

    /// Takes in what the host says of process and links, each with the time when it said so.
    pub(super) fn host(
        &mut self,
        (at, process): (Instant, ProcessCounters),
        (links_at, interfaces): (Instant, BTreeMap<String, LinkCounters>),
    ) {
        let received = interfaces
            .iter()
            .map(|(name, link)| (&**name, link.rx_bytes));
        let sent = interfaces
            .iter()
            .map(|(name, link)| (&**name, link.tx_bytes));
        let cpu_ms_per_s = self.cpu.per_second(at, process.cpu_ms);
        self.usage.sampled_unix_ms = Some(now_unix_ms());
        self.usage.cpu_percent = cpu_ms_per_s.map(|ms| rounded(ms / 10.0));
        self.usage.memory_resident_mib = Some(process.resident_bytes >> 20);
        self.usage.network_rx_kbit_per_s = self.rx.per_second(links_at, received).map(kbit);
        self.usage.network_tx_kbit_per_s = self.tx.per_second(links_at, sent).map(kbit);
        self.process = process;
        self.interfaces = interfaces;
    }

    /// Takes in what the VMM says. One that says nothing has no rates until it does again; what it
    /// has counted meanwhile is not lost.
    pub(super) fn vmm(&mut self, at: Instant, metrics: Option<&VmmMetrics>) {
        self.answers = metrics.is_some();
        let Some(metrics) = metrics else {
            self.usage.disk_read_kib_per_s = None;
            self.usage.disk_write_kib_per_s = None;
            self.usage.disk_operations_per_s = None;
            self.usage.memory_used_mib = None;
            self.usage.memory_returned_mib = None;
            return;
        };
        let disks = metrics.disks.iter();
        self.disks = disks.map(|disk| (disk.id.clone(), disk.into())).collect();
        let count = |of: fn(&DiskCounters) -> u64| {
            let disks = self.disks.iter();
            disks.map(move |(id, disk)| (&**id, of(disk)))
        };
        let read = self.read.per_second(at, count(|disk| disk.read_bytes));
        let write = self.write.per_second(at, count(|disk| disk.written_bytes));
        let operations = self
            .operations
            .per_second(at, count(|disk| disk.reads.saturating_add(disk.writes)));
        self.usage.disk_read_kib_per_s = read.map(kib);
        self.usage.disk_write_kib_per_s = write.map(kib);
        self.usage.disk_operations_per_s = operations.map(rounded);
        let balloon = metrics.balloon.as_ref();
        self.usage.memory_returned_mib = balloon.map(|balloon| balloon.actual_mib);
        self.usage.memory_used_mib = self.memory_used_mib(at, balloon);
    }

    /// What the guest says that it uses, in MiB, unless it has not said so for long. Its age is
    /// measured by our own clock: the other one may be set.
    fn memory_used_mib(&mut self, at: Instant, balloon: Option<&BalloonMetrics>) -> Option<u64> {
        let said = balloon?.guest.as_ref()?;
        let heard = match self.memory_said {
            Some((time, heard)) if time == said.time_unix_ms => heard,
            _ => at,
        };
        self.memory_said = Some((said.time_unix_ms, heard));
        if at.saturating_duration_since(heard) > MEMORY_STALE {
            return None;
        }
        let unused = said.available_bytes.or(said.free_bytes)?;
        Some(said.total_bytes?.saturating_sub(unused) >> 20)
    }
}

#[cfg(test)]
mod tests {
    use pindah_vmm_api::{GuestMemoryStats, OperationMetrics};

    use super::*;

    fn process(start_ticks: u64, cpu_ms: u64) -> ProcessCounters {
        ProcessCounters {
            start_ticks,
            cpu_ms,
            resident_bytes: 64 << 20,
        }
    }

    fn links(rx_bytes: u64) -> BTreeMap<String, LinkCounters> {
        let link = LinkCounters {
            rx_bytes,
            ..LinkCounters::default()
        };
        BTreeMap::from([("net0".to_owned(), link)])
    }

    fn disk(bytes: u64, operations: u64) -> VmmMetrics {
        let read = OperationMetrics {
            bytes,
            operations,
            ..OperationMetrics::default()
        };
        VmmMetrics {
            disks: vec![DiskMetrics {
                id: "disk0".to_owned(),
                read,
                ..DiskMetrics::default()
            }],
            ..VmmMetrics::default()
        }
    }

    #[test]
    fn second_sample_shows_rates() {
        let start = Instant::now();
        let mut meter = GuestMeter::new(7, process(1, 0));
        meter.host((start, process(1, 5000)), (start, links(0)));
        meter.vmm(start, Some(&disk(0, 0)));
        assert_eq!(meter.usage.cpu_percent, None);
        assert_eq!(meter.usage.network_rx_kbit_per_s, None);
        assert_eq!(meter.usage.disk_read_kib_per_s, None);
        assert_eq!(meter.usage.memory_resident_mib, Some(64));
        let later = start + Duration::from_secs(10);
        meter.host((later, process(1, 7500)), (later, links(1_250_000)));
        meter.vmm(later, Some(&disk(20 << 20, 50)));
        assert_eq!(meter.usage.cpu_percent, Some(25.0));
        assert_eq!(meter.usage.network_rx_kbit_per_s, Some(1000.0));
        assert_eq!(meter.usage.disk_read_kib_per_s, Some(2048.0));
        assert_eq!(meter.usage.disk_operations_per_s, Some(5.0));
    }

    #[test]
    fn vmm_that_is_silent_for_a_while_leaves_no_jump() {
        let start = Instant::now();
        let mut meter = GuestMeter::new(7, process(1, 0));
        let at = |seconds| start + Duration::from_secs(seconds);
        meter.vmm(at(0), Some(&disk(0, 0)));
        meter.vmm(at(10), None);
        assert!(!meter.answers);
        assert_eq!(meter.usage.disk_read_kib_per_s, None);
        meter.vmm(at(20), Some(&disk(20 << 20, 20)));
        assert_eq!(meter.usage.disk_read_kib_per_s, Some(1024.0));
    }

    #[test]
    fn memory_that_the_guest_has_stopped_telling_of_is_not_shown() {
        let start = Instant::now();
        let mut meter = GuestMeter::new(7, process(1, 0));
        let said = |time_unix_ms| VmmMetrics {
            balloon: Some(BalloonMetrics {
                guest: Some(GuestMemoryStats {
                    time_unix_ms,
                    total_bytes: Some(512 << 20),
                    free_bytes: Some(64 << 20),
                    available_bytes: Some(384 << 20),
                    ..GuestMemoryStats::default()
                }),
                ..BalloonMetrics::default()
            }),
            ..VmmMetrics::default()
        };
        let mut used = |seconds, time_unix_ms| {
            meter.vmm(
                start + Duration::from_secs(seconds),
                Some(&said(time_unix_ms)),
            );
            meter.usage.memory_used_mib
        };
        assert_eq!(used(0, 1_000_000), Some(128));
        assert_eq!(used(50, 1_000_000), Some(128));
        assert_eq!(used(70, 1_000_000), None);
        // Even when the host's clock was set back.
        assert_eq!(used(80, 5), Some(128));
    }

    #[test]
    fn process_of_the_same_number_is_another_one() {
        let meter = GuestMeter::new(7, process(1, 0));
        assert!(meter.is_of(7, &process(1, 10)));
        assert!(!meter.is_of(7, &process(2, 10)));
        assert!(!meter.is_of(8, &process(1, 10)));
    }
}
