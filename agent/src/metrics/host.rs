//! What the host's kernel counts: of a process, of links, of processors (proc(5)).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use procfs::process::Process;
use procfs::{Current, CurrentSI, KernelStats, Meminfo, ProcResult};

/// What `/proc/pid` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessCounters {
    /// When it started, in clock ticks since the host's start: tells it from others that had or
    /// will have its number.
    pub start_ticks: u64,
    /// CPU time of all its threads, in milliseconds.
    pub cpu_ms: u64,
    /// Memory that it holds, in bytes.
    pub resident_bytes: u64,
}

/// What a link has moved; directions are the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkCounters {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
}

impl LinkCounters {
    /// As the other end sees it: what a tap sends, its guest receives.
    pub(super) fn turned(self) -> Self {
        Self {
            rx_bytes: self.tx_bytes,
            rx_packets: self.tx_packets,
            tx_bytes: self.rx_bytes,
            tx_packets: self.rx_packets,
        }
    }
}

/// What a disk of the host has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HostDiskCounters {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// Time that all processors together have spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuCounters {
    /// In programs, guests included.
    pub user: Duration,
    /// In the kernel, for programs and interrupts.
    pub system: Duration,
    /// Taken by the machine that this host is a guest of.
    pub steal: Duration,
    /// With nothing to do, or waiting for disks.
    pub idle: Duration,
}

impl CpuCounters {
    /// All but idle.
    pub(super) fn busy(&self) -> Duration {
        self.user + self.system + self.steal
    }
}

fn ticks_to_ms(ticks: u64) -> u64 {
    ticks.saturating_mul(1000) / procfs::ticks_per_second()
}

/// The process with this number now.
pub(super) fn process(pid: u32) -> ProcResult<ProcessCounters> {
    let stat = Process::new(pid as i32)?.stat()?;
    Ok(ProcessCounters {
        start_ticks: stat.starttime,
        cpu_ms: ticks_to_ms(stat.utime + stat.stime),
        resident_bytes: stat.rss.saturating_mul(procfs::page_size()),
    })
}

/// All links, by name.
pub(super) fn links() -> ProcResult<HashMap<String, LinkCounters>> {
    let links = procfs::net::dev_status()?;
    let counters = links.into_iter().map(|(name, link)| {
        let counters = LinkCounters {
            rx_bytes: link.recv_bytes,
            rx_packets: link.recv_packets,
            tx_bytes: link.sent_bytes,
            tx_packets: link.sent_packets,
        };
        (name, counters)
    });
    Ok(counters.collect())
}

/// All processors together.
pub(super) fn cpus() -> ProcResult<CpuCounters> {
    let total = KernelStats::current()?.total;
    let some = |ticks: Option<u64>| ticks.unwrap_or(0);
    let time = |ticks| Duration::from_millis(ticks_to_ms(ticks));
    Ok(CpuCounters {
        // The kernel counts guests in user and nice too.
        user: time(total.user + total.nice),
        system: time(total.system + some(total.irq) + some(total.softirq)),
        steal: time(some(total.steal)),
        idle: time(total.idle + some(total.iowait)),
    })
}

/// The host's memory and what could be had of it without swapping, in MiB.
pub(super) fn memory() -> ProcResult<(u64, u64)> {
    let memory = Meminfo::current()?;
    let available = memory.mem_available.unwrap_or(memory.mem_free);
    Ok((memory.mem_total >> 20, available >> 20))
}

/// Disks that are devices of their own, by name: what is made of them counts the same bytes again.
pub(super) fn disks() -> ProcResult<BTreeMap<String, HostDiskCounters>> {
    /// The unit of these counters, whatever the disk's is.
    const SECTOR_BYTES: u64 = 512;
    let disks = procfs::diskstats()?.into_iter();
    let devices = disks.filter(|disk| {
        let device = Path::new("/sys/block").join(&disk.name).join("device");
        device.exists()
    });
    let counters = devices.map(|disk| {
        let counters = HostDiskCounters {
            read_bytes: disk.sectors_read.saturating_mul(SECTOR_BYTES),
            written_bytes: disk.sectors_written.saturating_mul(SECTOR_BYTES),
        };
        (disk.name, counters)
    });
    Ok(counters.collect())
}

/// Whether a link is a network card, and no bridge, tap or the like that counts the same bytes
/// again.
pub(super) fn is_network_card(link: &str) -> bool {
    Path::new("/sys/class/net")
        .join(link)
        .join("device")
        .exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_and_host_have_counters() {
        let ours = process(std::process::id()).unwrap();
        assert!(
            ours.start_ticks > 0 && ours.resident_bytes > 100_000,
            "{ours:?}"
        );
        assert!(links().unwrap().contains_key("lo"));
        let cpus = cpus().unwrap();
        assert!(
            cpus.busy() > Duration::ZERO && cpus.idle > Duration::ZERO,
            "{cpus:?}"
        );
        assert!(!is_network_card("lo"));
        assert!(
            disks()
                .unwrap()
                .keys()
                .all(|name| !name.starts_with("loop"))
        );
    }

    #[test]
    fn process_that_is_not_there_has_none() {
        assert!(process(u32::MAX >> 1).is_err());
    }
}
