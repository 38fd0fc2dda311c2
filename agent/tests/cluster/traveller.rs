//! A guest that can move, and nodes that it can move between.
//!
//! Who runs it is what its own heartbeats say: each carries the process that runs it.

use std::fs;

use serde_json::Value;

use super::harness::Site;

/// Nodes with a pool that all share, and a guest with its disk there.
pub struct Traveller {
    pub site: Site,
    pub uuid: String,
}

impl Traveller {
    pub fn new(tag: &str, count: usize, ws_mib: u32) -> Self {
        let site = Site::new(tag, count);
        site.form();
        let nas = site.path("nas");
        fs::create_dir(&nas).unwrap();
        let path = nas.to_str().unwrap();
        site.must(1, &["pool", "create", "nas", "--path", path, "--shared"]);
        for number in 1..=count {
            site.wait(number, "it has no pool", || {
                let nodes = site.json(number, &["pool", "show", "nas"])["nodes"].clone();
                let nodes = nodes.as_array().cloned().unwrap_or_default();
                nodes.len() == count && nodes.iter().all(|node| node["state"] == "ready")
            });
        }
        let probe = super::programs::programs().join("pindah-probe");
        let upload = ["image", "upload", probe.to_str().unwrap(), "--pool", "nas"];
        site.must(1, &upload);
        create(&site, "web", ws_mib, &["--start"]);
        site.wait_state(1, "web", "running");
        let uuid = site.json(1, &["guest", "show", "web"])["uuid"].clone();
        let uuid = uuid.as_str().unwrap().to_owned();
        Self { site, uuid }
    }

    pub fn show(&self, by: usize) -> Value {
        self.site.json(by, &["guest", "show", "web"])
    }

    /// All heartbeats that its node knows of whole, in order.
    pub fn beats(&self, by: usize) -> Vec<Value> {
        let log = self
            .site
            .pindah(by, &["guest", "log", "web", "--bytes", "1048576"]);
        let log = log.unwrap_or_default();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        // Where it has come back, its log goes on within a line: two halves may look like a beat.
        let is_beat = |line: &Value| line["ev"] == "beat" && line["bad"].is_u64();
        lines.filter(is_beat).collect()
    }

    /// Waits until it beats on this node alone, with its memory as it should be. Returns the
    /// longest time that it stood since another process ran it, in milliseconds.
    pub fn wait_until_it_beats(&self, on: usize, by: usize) -> f64 {
        let node = format!("node{on}");
        self.site.wait(on, "it is not there", || {
            self.show(by)["node"] == node.as_str()
        });
        self.site.wait_state(by, "web", "running");
        self.site.wait(on, "it is not there alone", || {
            self.site.runs_on(&self.uuid) == [node.as_str()]
        });
        // What others know of a node that has just started may be old.
        let (mut pid, mut beats) = (Value::Null, Vec::new());
        let mut tries = 0;
        self.site.wait(on, "it does not beat", || {
            pid = self.show(by)["pid"].clone();
            beats = self.beats(by);
            tries += 1;
            if tries % 50 == 0 {
                eprintln!("process {pid}: {:?} of {} beats", beats.last(), beats.len());
            }
            beats.iter().filter(|beat| beat["runner"] == pid).count() > 3
        });
        let is_bad = |beat: &Value| beat["bad"].as_u64() != Some(0);
        assert!(!beats.iter().any(is_bad), "{beats:?}");
        // Stopped in the midst of a beat it tells of it in the next one.
        let first = beats.iter().filter(|beat| beat["runner"] == pid).take(2);
        let gaps = first.map(|beat| beat["gap_max_us"].as_u64().unwrap());
        gaps.max().unwrap() as f64 / 1e3
    }

    /// Moves it, from any node's command line, and returns the task.
    pub fn migrate(&self, by: usize, arguments: &[&str]) -> Value {
        let all = [&["guest", "migrate", "web", "--json"][..], arguments].concat();
        let said = self.site.must(by, &all);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    }

    /// Begins a move that takes long, and waits until it is under way. Returns its task's id.
    pub fn begin_slow_move(&self, by: usize, to: &str) -> String {
        self.site.wait_ready(by);
        let task = self.migrate(by, &["--to", to, "--bandwidth", "1M", "--no-wait"]);
        let id = task["id"].as_str().unwrap().to_owned();
        self.site.wait(by, "it does not begin", || {
            let log = self
                .site
                .pindah(by, &["task", "log", &id])
                .unwrap_or_default();
            log.contains("round 1")
        });
        id
    }

    pub fn wait_task(&self, by: usize, id: &str) -> Value {
        let mut task = Value::Null;
        self.site.wait(by, "its task does not end", || {
            task = self.site.json(by, &["task", "show", id]);
            !task.is_null() && task["state"] != "running"
        });
        task
    }

    pub fn delete(self, by: usize) {
        self.site
            .must(by, &["guest", "delete", "web", "--force", "--yes"]);
        self.site.assert_clean();
    }

    pub fn wait_until_it_is_on(&self, nodes: &[&str], by: usize) {
        let node = self.show(by)["node"].clone();
        assert!(nodes.iter().any(|name| node == *name), "it is on {node}");
        self.site.wait_state(by, "web", "running");
    }

    /// Waits until it has given up to move and goes on in the process that ran it before.
    pub fn wait_until_it_stays(&self, on: usize, pid: &Value) {
        self.site.wait(on, "its move does not end", || {
            self.show(3)["moving_to"].is_null()
        });
        self.wait_until_it_beats(on, 3);
        assert_eq!(&self.show(3)["pid"], pid);
    }
}

/// A guest with its disk in the shared pool, on the first node. It writes to `ws_mib` MiB of random
/// content, slowly, and verifies them.
pub fn create(site: &Site, name: &str, ws_mib: u32, more: &[&str]) {
    let words =
        format!("beat_ms=20 gap_us=60000000 verify=1 content=random rate_mib_s=1 ws_mib={ws_mib}");
    let create = ["guest", "create", name, "--memory", "96M", "--no-network"];
    let from = ["--kernel", "nas/pindah-probe", "--cmdline", &words];
    let disk = ["--disk", "8M", "--pool", "nas", "--node", "node1"];
    site.must(1, &[&create[..], &from, &disk, more].concat());
}
