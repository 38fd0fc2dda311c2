//! The counters in Prometheus's text format (Prometheus documentation, "Exposition formats").
//!
//! Names, units and suffixes follow "Metric and label naming": base units, `_total` on counters.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::{CounterVec, GaugeVec, Opts, Registry, TextEncoder};
use thiserror::Error;
use uuid::Uuid;

use super::Metrics;
use super::guest::GuestMeter;
use super::host::LinkCounters;
use crate::storage::PoolState;

/// Two series of the same name and labels, or a name that is none: a mistake of ours.
#[derive(Debug, Error)]
#[error("cannot write the metrics down")]
pub struct ExpositionError(#[from] prometheus::Error);

/// What the store knows of a guest, beside its counters.
#[derive(Clone, Debug)]
pub struct GuestInfo {
    /// Which guest.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Its process, if it has one.
    pub pid: Option<u32>,
    /// Its RAM, in MiB.
    pub memory_mib: u64,
}

/// One answer's metrics: made anew each time, as all that is counted is counted elsewhere.
struct Page {
    registry: Registry,
    counters: BTreeMap<&'static str, CounterVec>,
    gauges: BTreeMap<&'static str, GaugeVec>,
}

/// Labels of a series, in the same order for all of a name.
type Labels<'a> = &'a [(&'static str, &'a str)];

impl Page {
    fn new() -> Self {
        Self {
            registry: Registry::new(),
            counters: BTreeMap::new(),
            gauges: BTreeMap::new(),
        }
    }

    fn register<C: Collector + Clone + 'static>(
        registry: &Registry,
        made: prometheus::Result<C>,
    ) -> prometheus::Result<C> {
        let made = made?;
        registry.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn counter(
        &mut self,
        (name, help): (&'static str, &str),
        labels: Labels<'_>,
        value: f64,
    ) -> prometheus::Result<()> {
        let (names, values): (Vec<_>, Vec<_>) = labels.iter().copied().unzip();
        if !self.counters.contains_key(name) {
            let made = CounterVec::new(Opts::new(name, help), &names);
            let made = Self::register(&self.registry, made)?;
            self.counters.insert(name, made);
        }
        let family = &self.counters[name];
        family.get_metric_with_label_values(&values)?.inc_by(value);
        Ok(())
    }

    fn gauge(
        &mut self,
        (name, help): (&'static str, &str),
        labels: Labels<'_>,
        value: f64,
    ) -> prometheus::Result<()> {
        let (names, values): (Vec<_>, Vec<_>) = labels.iter().copied().unzip();
        if !self.gauges.contains_key(name) {
            let made = GaugeVec::new(Opts::new(name, help), &names);
            let made = Self::register(&self.registry, made)?;
            self.gauges.insert(name, made);
        }
        let family = &self.gauges[name];
        family.get_metric_with_label_values(&values)?.set(value);
        Ok(())
    }
}

const MIB: f64 = 1048576.0;

impl Metrics {
    /// All that is known of the node of this name and of these guests of it.
    ///
    /// # Errors
    /// [`ExpositionError`].
    pub fn exposition(
        &self,
        node: &str,
        node_too: bool,
        guests: &[GuestInfo],
    ) -> Result<String, ExpositionError> {
        let mut page = Page::new();
        if node_too {
            self.write_node(&mut page, node)?;
        }
        let known = self.known();
        for info in guests {
            let uuid = info.uuid.to_string();
            let labels = [("node", node), ("guest", &*info.name), ("uuid", &*uuid)];
            let meter = known.guests.get(&info.uuid);
            let meter = meter.filter(|meter| Some(meter.pid) == info.pid);
            write_guest(&mut page, &labels, info, meter)?;
        }
        drop(known);
        let families = page.registry.gather();
        Ok(TextEncoder::new().encode_to_string(&families)?)
    }

    fn write_node(&self, page: &mut Page, node: &str) -> prometheus::Result<()> {
        let labels = [("node", node)];
        let build = ("pindah_build_info", "The agent's version; always 1.");
        let version = env!("CARGO_PKG_VERSION");
        page.gauge(build, &[("node", node), ("version", version)], 1.0)?;
        let known = self.known();
        let meter = &known.node;
        if meter.usage.sampled_unix_ms.is_none() {
            return Ok(());
        }
        let last = &meter.last;
        let cpu = (
            "pindah_node_cpu_seconds_total",
            "Time of all processors, by what they did.",
        );
        for (mode, time) in [
            ("user", last.cpu.user),
            ("system", last.cpu.system),
            ("steal", last.cpu.steal),
            ("idle", last.cpu.idle),
        ] {
            page.counter(cpu, &[("node", node), ("mode", mode)], time.as_secs_f64())?;
        }
        let cpus = ("pindah_node_cpus", "Processors.");
        page.gauge(cpus, &labels, last.cpus as f64)?;
        let total = ("pindah_node_memory_bytes", "Memory.");
        page.gauge(total, &labels, last.memory_total_mib as f64 * MIB)?;
        let available = (
            "pindah_node_memory_available_bytes",
            "Memory that could be had without swapping.",
        );
        page.gauge(available, &labels, last.memory_available_mib as f64 * MIB)?;
        for (name, link) in &last.links {
            write_link(
                page,
                NODE_LINK,
                &[("node", node), ("interface", name)],
                link,
            )?;
        }
        for (name, disk) in &last.disks {
            let labels = [("node", node), ("disk", &**name)];
            let read = (
                "pindah_node_disk_read_bytes_total",
                "Bytes read from the disk.",
            );
            page.counter(read, &labels, disk.read_bytes as f64)?;
            let written = (
                "pindah_node_disk_written_bytes_total",
                "Bytes written to the disk.",
            );
            page.counter(written, &labels, disk.written_bytes as f64)?;
        }
        for pool in &known.pools {
            let labels = [("node", node), ("pool", pool.name.as_str())];
            let ready = (
                "pindah_pool_ready",
                "1 if the pool can be used on the node.",
            );
            page.gauge(
                ready,
                &labels,
                f64::from(u8::from(pool.state == PoolState::Ready)),
            )?;
            let size = ("pindah_pool_size_bytes", "Size of the pool.");
            page.gauge(size, &labels, pool.total_mib as f64 * MIB)?;
            let free = ("pindah_pool_free_bytes", "Space that is free in the pool.");
            page.gauge(free, &labels, pool.free_mib as f64 * MIB)?;
        }
        Ok(())
    }
}

/// Name and help of a link's four counters.
type LinkNames = [(&'static str, &'static str); 4];

const NODE_LINK: LinkNames = [
    (
        "pindah_node_network_receive_bytes_total",
        "Bytes that the network card received.",
    ),
    (
        "pindah_node_network_receive_packets_total",
        "Packets that the network card received.",
    ),
    (
        "pindah_node_network_transmit_bytes_total",
        "Bytes that the network card sent.",
    ),
    (
        "pindah_node_network_transmit_packets_total",
        "Packets that the network card sent.",
    ),
];

const GUEST_LINK: LinkNames = [
    (
        "pindah_guest_network_receive_bytes_total",
        "Bytes that the guest received.",
    ),
    (
        "pindah_guest_network_receive_packets_total",
        "Packets that the guest received.",
    ),
    (
        "pindah_guest_network_transmit_bytes_total",
        "Bytes that the guest sent.",
    ),
    (
        "pindah_guest_network_transmit_packets_total",
        "Packets that the guest sent.",
    ),
];

fn write_link(
    page: &mut Page,
    names: LinkNames,
    labels: Labels<'_>,
    link: &LinkCounters,
) -> prometheus::Result<()> {
    let values = [
        link.rx_bytes,
        link.rx_packets,
        link.tx_bytes,
        link.tx_packets,
    ];
    for (name, value) in names.into_iter().zip(values) {
        page.counter(name, labels, value as f64)?;
    }
    Ok(())
}

fn write_guest(
    page: &mut Page,
    labels: Labels<'_>,
    info: &GuestInfo,
    meter: Option<&GuestMeter>,
) -> prometheus::Result<()> {
    let up = ("pindah_guest_up", "Whether the guest has a process.");
    page.gauge(up, labels, f64::from(u8::from(info.pid.is_some())))?;
    let assigned = ("pindah_guest_memory_bytes", "RAM that the guest has.");
    page.gauge(assigned, labels, info.memory_mib as f64 * MIB)?;
    let Some(meter) = meter else {
        return Ok(());
    };
    let answers = (
        "pindah_guest_vmm_up",
        "Whether the guest's VMM answered when it was last asked.",
    );
    page.gauge(answers, labels, f64::from(u8::from(meter.answers)))?;
    let cpu = (
        "pindah_guest_cpu_seconds_total",
        "CPU time of the guest's process.",
    );
    page.counter(cpu, labels, meter.process.cpu_ms as f64 / 1000.0)?;
    let resident = (
        "pindah_guest_memory_resident_bytes",
        "Memory of the node that the guest's process holds.",
    );
    page.gauge(resident, labels, meter.process.resident_bytes as f64)?;
    if let Some(used_mib) = meter.usage.memory_used_mib {
        let used = (
            "pindah_guest_memory_used_bytes",
            "Memory that the guest itself says is in use.",
        );
        page.gauge(used, labels, used_mib as f64 * MIB)?;
    }
    for (interface, link) in &meter.interfaces {
        write_link(
            page,
            GUEST_LINK,
            &with(labels, "interface", interface),
            link,
        )?;
    }
    for (disk, counters) in &meter.disks {
        let labels = with(labels, "disk", disk);
        for (name, help, value) in [
            (
                "pindah_guest_disk_read_bytes_total",
                "Bytes that the guest read.",
                counters.read_bytes,
            ),
            (
                "pindah_guest_disk_reads_total",
                "Reads of the guest.",
                counters.reads,
            ),
            (
                "pindah_guest_disk_written_bytes_total",
                "Bytes that the guest wrote.",
                counters.written_bytes,
            ),
            (
                "pindah_guest_disk_writes_total",
                "Writes of the guest.",
                counters.writes,
            ),
            (
                "pindah_guest_disk_errors_total",
                "Requests of the guest that failed.",
                counters.errors,
            ),
        ] {
            page.counter((name, help), &labels, value as f64)?;
        }
    }
    Ok(())
}

fn with<'a>(
    labels: Labels<'a>,
    name: &'static str,
    value: &'a str,
) -> Vec<(&'static str, &'a str)> {
    let mut labels = labels.to_vec();
    labels.push((name, value));
    labels
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::host::ProcessCounters;
    use super::super::node::NodeSample;
    use super::*;

    fn info(name: &str, pid: Option<u32>) -> GuestInfo {
        GuestInfo {
            uuid: Uuid::new_v4(),
            name: name.to_owned(),
            pid,
            memory_mib: 64,
        }
    }

    /// The dashboard and the rules ask for what there is.
    #[test]
    fn monitoring_files_name_metrics_that_exist() {
        let source = include_str!("exposition.rs");
        let grafana = include_str!("../../monitoring/grafana.json");
        let _: serde_json::Value = serde_json::from_str(grafana).unwrap();
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        for text in [grafana, include_str!("../../monitoring/pindah.rules.yml")] {
            let mut words = 0;
            for word in text.split(|c: char| !is_name(c)) {
                if word.starts_with("pindah_node_")
                    || word.starts_with("pindah_guest_")
                    || word.starts_with("pindah_pool_")
                {
                    let quoted = format!("\"{word}\"");
                    assert!(source.contains(&quoted), "there is no {word}");
                    words += 1;
                }
            }
            assert!(words > 10);
        }
    }

    #[test]
    fn guest_that_is_off_has_no_counters_and_one_that_runs_has() {
        let metrics = Metrics::default();
        let guests = [info("off", None), info("on", Some(7))];
        let process = ProcessCounters {
            start_ticks: 1,
            cpu_ms: 1500,
            resident_bytes: 4096,
        };
        let net0 = LinkCounters {
            rx_bytes: 42,
            ..LinkCounters::default()
        };
        let now = Instant::now();
        let interfaces = BTreeMap::from([("net0".to_owned(), net0)]);
        metrics.guest_on_host((guests[1].uuid, 7), (now, process), (now, interfaces));
        metrics.node_sample(now, NodeSample::default());

        let text = metrics.exposition("node1", true, &guests).unwrap();

        let value = |start: &str, guest: &str| {
            let label = format!("guest=\"{guest}\"");
            let found = text
                .lines()
                .find(|line| line.starts_with(start) && line.contains(&label));
            found.and_then(|line| line.rsplit(' ').next())
        };
        assert_eq!(value("pindah_guest_up{", "off"), Some("0"));
        assert_eq!(value("pindah_guest_cpu_seconds_total{", "off"), None);
        assert_eq!(value("pindah_guest_up{", "on"), Some("1"));
        assert_eq!(value("pindah_guest_cpu_seconds_total{", "on"), Some("1.5"));
        assert_eq!(value("pindah_guest_memory_bytes{", "on"), Some("67108864"));
        let received = "pindah_guest_network_receive_bytes_total{";
        assert_eq!(value(received, "on"), Some("42"));
        assert!(
            text.contains("# TYPE pindah_node_cpu_seconds_total counter"),
            "{text}"
        );
    }
}
