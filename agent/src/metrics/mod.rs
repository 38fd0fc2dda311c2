//! What guests and nodes take: CPU, memory, network, disk.
//!
//! ```text
//! /proc, links ──┐                       ┌──► usage: the last figures, for the API
//!                ├── Collector ──► Metrics
//! VMM's socket ──┘   every 10 s          ├──► exposition: the counters, for Prometheus
//!                                        └──► history: what it was, for a year
//! ```
//!
//! Counters are the kernel's and the VMM's; nothing is counted here. A rate is what a counter has
//! grown by since the sample before, by the monotonic clock, for one and the same process: a guest
//! that starts anew, an agent that does, or a clock that is set, leaves no rate rather than a
//! wrong one.

mod collect;
mod exposition;
mod guest;
pub mod history;
mod host;
mod node;
mod rate;
mod usage;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pindah_vmm_api::Metrics as VmmMetrics;
use uuid::Uuid;

pub use collect::{Collector, INTERVAL, Subject, Subjects};
pub use exposition::{ExpositionError, GuestInfo};
pub use usage::{GuestUsage, NodeUsage};

use crate::storage::PoolStatus;
use guest::GuestMeter;
use history::Bucket;
use host::{LinkCounters, ProcessCounters};
use node::{NodeMeter, NodeSample};

/// The last that is known of this node and its guests.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    inner: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    guests: HashMap<Uuid, GuestMeter>,
    node: NodeMeter,
    pools: Vec<PoolStatus>,
}

impl Metrics {
    /// Held for moments, never while something is waited for.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a guest takes that runs as process `pid`; nothing is known of one without.
    pub fn guest(&self, uuid: Uuid, pid: Option<u32>) -> GuestUsage {
        let known = self.known();
        let meter = known.guests.get(&uuid);
        let meter = meter.filter(|meter| Some(meter.pid) == pid);
        meter.map(|meter| meter.usage.clone()).unwrap_or_default()
    }

    /// What this node takes.
    pub fn node(&self) -> NodeUsage {
        self.known().node.usage.clone()
    }

    /// Forgets all guests but these.
    fn keep(&self, guests: &[Uuid]) {
        let mut known = self.known();
        known.guests.retain(|uuid, _| guests.contains(uuid));
    }

    fn guest_on_host(
        &self,
        (uuid, pid): (Uuid, u32),
        (at, process): (Instant, ProcessCounters),
        interfaces: (Instant, BTreeMap<String, LinkCounters>),
    ) {
        let mut known = self.known();
        let meter = known.guests.entry(uuid);
        let meter = meter.or_insert_with(|| GuestMeter::new(pid, process));
        if !meter.is_of(pid, &process) {
            *meter = GuestMeter::new(pid, process);
        }
        meter.host((at, process), interfaces);
    }

    /// An answer from a process that has been followed by another one meanwhile counts for nothing.
    fn guest_in_vmm(&self, guest: (Uuid, u32), at: Instant, metrics: Option<&VmmMetrics>) {
        let (uuid, pid) = guest;
        let mut known = self.known();
        let meter = known.guests.get_mut(&uuid);
        if let Some(meter) = meter.filter(|meter| meter.pid == pid) {
            meter.vmm(at, metrics);
        }
    }

    /// The last figures of these guests and of the node, for the history.
    fn samples(&self, guests: &[(Uuid, u64)]) -> Vec<(Uuid, Bucket)> {
        let known = self.known();
        let of_guests = guests.iter().filter_map(|(uuid, memory_mib)| {
            let usage = &known.guests.get(uuid)?.usage;
            Some((*uuid, usage.history_sample(*memory_mib)))
        });
        let usage = &known.node.usage;
        let total_mib = known.node.last.memory_total_mib;
        let node = (history::NODE, usage.history_sample(total_mib));
        of_guests.chain([node]).collect()
    }

    fn node_sample(&self, at: Instant, sample: NodeSample) {
        self.known().node.sample(at, sample);
    }

    fn pools(&self, pools: Vec<PoolStatus>) {
        self.known().pools = pools;
    }
}
