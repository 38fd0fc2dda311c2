//! Looks at the node and its guests, again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use super::Metrics;
use super::history::History;
use super::host;
use super::node::NodeSample;
use crate::causes::chain;
use crate::clock::now_unix_ms;
use crate::events::{EventKind, Events};
use crate::storage::Pools;
use crate::vmm_client::VmmClient;

/// How often everything is looked at.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// Longest that a VMM or the store may take for an answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// A guest that has a process.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Which guest.
    pub uuid: Uuid,
    /// Its process.
    pub pid: u32,
    /// Its RAM, in MiB.
    pub memory_mib: u64,
    /// Its interfaces' names, and their taps.
    pub taps: Vec<(String, String)>,
    /// Its VMM.
    pub vmm: VmmClient,
}

/// Who knows the guests.
#[async_trait]
pub trait Subjects: Send + Sync {
    /// The guests that have a process on this node now. An error is one line.
    async fn subjects(&self) -> Result<Vec<Subject>, String>;
}

/// Looks at everything, and tells [`Metrics`], [`History`] and who listens.
pub struct Collector<S> {
    metrics: Metrics,
    history: History,
    subjects: S,
    pools: Pools,
    interval: Duration,
    /// Who hears of it.
    events: Events,
    /// The guests of the last look that found out.
    known: Vec<Subject>,
}

impl<S: Subjects> Collector<S> {
    /// Looks every `interval`: [`INTERVAL`], but for tests.
    pub fn new(
        (metrics, history, events): (Metrics, History, Events),
        subjects: S,
        pools: Pools,
        interval: Duration,
    ) -> Self {
        Self {
            metrics,
            history,
            subjects,
            pools,
            interval,
            events,
            known: Vec::new(),
        }
    }

    /// Looks until it is dropped.
    pub async fn run(mut self) {
        let mut timer = interval(self.interval);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            self.sample().await;
        }
    }

    /// Without an answer, those of the look before: guests run on without the store.
    async fn find_subjects(&mut self, deadline: Duration) -> Vec<Subject> {
        let found = timeout(deadline, self.subjects.subjects()).await;
        match found.unwrap_or_else(|_| Err("the store does not answer".to_owned())) {
            Ok(subjects) => {
                self.known = subjects;
            }
            Err(error) => {
                tracing::warn!("which guests there are is not known anew: {error}");
            }
        }
        self.known.clone()
    }

    /// What the host knows comes first, at once and for all; then each VMM is asked, all at the
    /// same time, and one that does not answer is not waited for beyond the deadline.
    async fn sample(&mut self) {
        let deadline = DEADLINE.min(self.interval / 2);
        let subjects = self.find_subjects(deadline).await;
        let uuids: Vec<Uuid> = subjects.iter().map(|subject| subject.uuid).collect();
        self.metrics.keep(&uuids);
        let metrics = self.metrics.clone();
        let on_host = subjects.clone();
        // Reading /proc may wait for the kernel's locks.
        let looked = tokio::task::spawn_blocking(move || look_at_host(&metrics, &on_host));
        let seen = looked.await.unwrap_or_else(|error| {
            tracing::warn!("cannot look at the host: {error}");
            Vec::new()
        });
        self.metrics.pools(self.pools.statuses());
        join_all(subjects.iter().map(|one| ask(&self.metrics, one, deadline))).await;
        let samples = self.metrics.samples(&seen);
        self.history.take_in(now_unix_ms() / 1000, samples);
        let usage = self.metrics.node();
        self.events.tell(EventKind::NodeUsage { usage });
        for Subject { uuid, pid, .. } in subjects {
            let usage = self.metrics.guest(uuid, Some(pid));
            self.events.tell(EventKind::GuestUsage { uuid, usage });
        }
    }
}

async fn ask(metrics: &Metrics, subject: &Subject, deadline: Duration) {
    let answer = timeout(deadline, subject.vmm.metrics()).await;
    let answer = answer.ok().and_then(|answer| match answer {
        Ok(answer) => Some(answer),
        Err(error) => {
            tracing::debug!("guest {} tells no metrics: {}", subject.uuid, chain(&error));
            None
        }
    });
    let guest = (subject.uuid, subject.pid);
    metrics.guest_in_vmm(guest, Instant::now(), answer.as_ref());
}

/// Returns the guests whose processes were there, with their RAM in MiB.
fn look_at_host(metrics: &Metrics, subjects: &[Subject]) -> Vec<(Uuid, u64)> {
    let mut seen = Vec::new();
    let links_at = Instant::now();
    let links = host::links().unwrap_or_default();
    for subject in subjects {
        let at = Instant::now();
        // It may have ended a moment ago.
        let Ok(process) = host::process(subject.pid) else {
            continue;
        };
        let taps = subject.taps.iter();
        let interfaces = taps
            .filter_map(|(interface, tap)| Some((interface.clone(), links.get(tap)?.turned())))
            .collect();
        let guest = (subject.uuid, subject.pid);
        metrics.guest_on_host(guest, (at, process), (links_at, interfaces));
        seen.push((subject.uuid, subject.memory_mib));
    }
    let (memory_total_mib, memory_available_mib) = host::memory().unwrap_or_default();
    let cards = links
        .into_iter()
        .filter(|(name, _)| host::is_network_card(name));
    let sample = NodeSample {
        cpu: host::cpus().unwrap_or_default(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        links: cards.collect::<BTreeMap<_, _>>(),
        disks: host::disks().unwrap_or_default(),
        memory_total_mib,
        memory_available_mib,
    };
    metrics.node_sample(links_at, sample);
    seen
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::super::history::{NODE, Quantity, Resolution};
    use super::*;

    struct Fixed(Vec<Subject>);

    /// A store that never answers.
    struct Silent;

    #[async_trait]
    impl Subjects for Silent {
        async fn subjects(&self) -> Result<Vec<Subject>, String> {
            std::future::pending().await
        }
    }

    #[async_trait]
    impl Subjects for Fixed {
        async fn subjects(&self) -> Result<Vec<Subject>, String> {
            Ok(self.0.clone())
        }
    }

    fn subject(directory: &std::path::Path, name: &str) -> (Subject, UnixListener) {
        let socket = directory.join(name);
        let listener = UnixListener::bind(&socket).unwrap();
        let subject = Subject {
            uuid: Uuid::new_v4(),
            pid: std::process::id(),
            memory_mib: 4096,
            taps: vec![("net0".to_owned(), "lo".to_owned())],
            vmm: VmmClient::new(&socket),
        };
        (subject, listener)
    }

    fn told(metrics: &Metrics, directory: &std::path::Path) -> (Metrics, History, Events) {
        let history = History::new(&directory.join("history.db"));
        (metrics.clone(), history, Events::new("node1"))
    }

    async fn pools(directory: &std::path::Path) -> Pools {
        let store = crate::store::SqliteStore::open(&directory.join("store.db")).unwrap();
        let config = crate::storage::PoolsConfig {
            node: "node1".to_owned(),
            state_dir: directory.to_owned(),
            default_pool: crate::domain::PoolName::local(),
            store: std::sync::Arc::new(store),
        };
        Pools::open(config).await.unwrap()
    }

    /// Answers each request with the metrics of a VMM that has done nothing.
    async fn answer(listener: UnixListener) {
        let body = serde_json::to_string(&pindah_vmm_api::Metrics::default()).unwrap();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
            let answer = format!("{head}{}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn vmm_that_hangs_delays_nobody_and_is_seen_to_hang() {
        let directory = tempfile::tempdir().unwrap();
        let (well, listener) = subject(directory.path(), "well");
        tokio::spawn(answer(listener));
        // Its backlog takes the connection, and nobody ever reads.
        let (hung, _listener) = subject(directory.path(), "hung");
        let metrics = Metrics::default();
        let pools = pools(directory.path()).await;
        let subjects = Fixed(vec![hung.clone(), well.clone()]);
        let interval = Duration::from_millis(400);
        let mut collector =
            Collector::new(told(&metrics, directory.path()), subjects, pools, interval);

        let before = Instant::now();
        collector.sample().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        collector.sample().await;
        assert!(before.elapsed() < Duration::from_secs(2));

        let now_s = now_unix_ms() / 1000;
        let kept = |uuid| {
            let times = now_s - 120..now_s + 60;
            let minutes = collector.history.read(uuid, Resolution::Minute, &times);
            minutes.unwrap().into_values().next_back().unwrap()
        };
        for uuid in [well.uuid, NODE] {
            let minute = kept(uuid);
            assert!(minute.get(Quantity::MemoryPercent).is_some(), "{minute:?}");
            assert!(minute.get(Quantity::CpuPercent).is_some(), "{minute:?}");
        }

        let known = metrics.known();
        assert!(known.guests[&well.uuid].answers);
        assert!(!known.guests[&hung.uuid].answers);
        for guest in [&well, &hung] {
            let usage = &known.guests[&guest.uuid].usage;
            assert!(usage.cpu_percent.is_some(), "{usage:?}");
            assert!(usage.network_rx_kbit_per_s.is_some(), "{usage:?}");
        }
        assert_eq!(known.pools.len(), 1);
        assert!(known.node.usage.cpu_percent.is_some());
    }

    #[tokio::test]
    async fn guest_that_is_gone_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let (guest, listener) = subject(directory.path(), "guest");
        tokio::spawn(answer(listener));
        let metrics = Metrics::default();
        let pools = pools(directory.path()).await;
        let subjects = Fixed(vec![guest.clone()]);
        let interval = Duration::from_millis(400);
        let mut collector =
            Collector::new(told(&metrics, directory.path()), subjects, pools, interval);
        collector.sample().await;
        let usage = |pid| metrics.guest(guest.uuid, pid);
        assert!(usage(Some(guest.pid)).memory_resident_mib.is_some());
        // Its next process is not measured yet.
        assert_eq!(
            usage(Some(guest.pid + 1)),
            super::super::GuestUsage::default()
        );
        assert_eq!(usage(None), super::super::GuestUsage::default());
        collector.subjects = Fixed(Vec::new());
        collector.sample().await;
        assert!(metrics.known().guests.is_empty());
    }

    #[tokio::test]
    async fn guests_are_measured_while_the_store_does_not_answer() {
        let directory = tempfile::tempdir().unwrap();
        let (guest, listener) = subject(directory.path(), "guest");
        tokio::spawn(answer(listener));
        let metrics = Metrics::default();
        let pools = pools(directory.path()).await;
        let interval = Duration::from_millis(400);
        let mut collector =
            Collector::new(told(&metrics, directory.path()), Silent, pools, interval);
        collector.known = vec![guest.clone()];
        collector.sample().await;
        let usage = metrics.guest(guest.uuid, Some(guest.pid));
        assert!(usage.memory_resident_mib.is_some(), "{usage:?}");
    }
}
