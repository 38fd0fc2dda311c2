//! Guests that move from node to node, and what may go wrong on the way.
//!
//! Who runs a guest is what its own heartbeats say: each carries the process that runs it.

use std::fs;

use serde_json::Value;

use super::harness::{Site, VMM_USER, host_can};

/// Nodes with a pool that all share, and a guest with its disk there.
struct Traveller {
    site: Site,
    uuid: String,
}

impl Traveller {
    fn new(tag: &str, count: usize, ws_mib: u32) -> Self {
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

    fn show(&self, by: usize) -> Value {
        self.site.json(by, &["guest", "show", "web"])
    }

    /// All heartbeats that its node knows of, in order.
    fn beats(&self, by: usize) -> Vec<Value> {
        let log = self
            .site
            .pindah(by, &["guest", "log", "web", "--bytes", "1048576"]);
        let log = log.unwrap_or_default();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["ev"] == "beat").collect()
    }

    /// Waits until it beats on this node alone, with its memory as it should be. Returns the
    /// longest time that it stood since another process ran it, in milliseconds.
    fn wait_until_it_beats(&self, on: usize, by: usize) -> f64 {
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
    fn migrate(&self, by: usize, arguments: &[&str]) -> Value {
        let all = [&["guest", "migrate", "web", "--json"][..], arguments].concat();
        let said = self.site.must(by, &all);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    }

    /// Begins a move that takes long, and waits until it is under way. Returns its task's id.
    fn begin_slow_move(&self, by: usize, to: &str) -> String {
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

    fn wait_task(&self, by: usize, id: &str) -> Value {
        let mut task = Value::Null;
        self.site.wait(by, "its task does not end", || {
            task = self.site.json(by, &["task", "show", id]);
            !task.is_null() && task["state"] != "running"
        });
        task
    }

    fn delete(self, by: usize) {
        self.site
            .must(by, &["guest", "delete", "web", "--force", "--yes"]);
        self.site.assert_clean();
    }
}

#[test]
fn guest_moves_there_and_back_and_tells_how_long_it_stood() {
    if !host_can() {
        return;
    }
    let traveller = Traveller::new("mi", 3, 8);
    let site = &traveller.site;
    traveller.wait_until_it_beats(1, 3);
    for (to, by) in [(2, 3), (1, 1), (3, 2)] {
        let plan = site.json(
            by,
            &[
                "guest",
                "migrate",
                "web",
                "--dry-run",
                "--to",
                &format!("node{to}"),
            ],
        );
        assert_eq!(
            (&plan["to"], &plan["live"]),
            (&format!("node{to}").into(), &true.into())
        );
        let task = traveller.migrate(by, &["--to", &format!("node{to}")]);
        forecast_is_kept(site, by, &plan["forecast"], &task);
        let downtime_ms = task["result"]["downtime_us"].as_f64().unwrap() / 1e3;
        let blackout_ms = traveller.wait_until_it_beats(to, by);
        println!(
            "to node{to}: blackout {blackout_ms:.2} ms as the guest saw it, downtime {downtime_ms:.2} ms"
        );
        assert!(blackout_ms > 0.0 && downtime_ms > 0.0);
        assert!(traveller.show(by)["moving_to"].is_null());
        let status = format!("/proc/{}/status", traveller.show(by)["pid"]);
        let status = fs::read_to_string(status).unwrap();
        for line in [&format!("Uid:\t{VMM_USER}\t"), "CapEff:\t0000000000000000"] {
            assert!(status.contains(line), "{line} in {status}");
        }
    }
    // Its log came along.
    let beats = traveller.beats(1);
    let runners: std::collections::BTreeSet<_> = beats
        .iter()
        .map(|beat| beat["runner"].to_string())
        .collect();
    assert!(runners.len() > 1, "{runners:?}");

    // What is foretold now comes from its last move.
    let plan = ["guest", "migrate", "web", "--dry-run", "--to", "node1"];
    let forecast = site.json(1, &plan)["forecast"].clone();
    assert_eq!(forecast["speed_by"], "earlier_move", "{forecast}");
    let figure = |forecast: &Value, name: &str| forecast[name].as_u64().unwrap();
    for name in ["dirty_bytes_per_s", "downtime_us", "total_ms"] {
        assert!(figure(&forecast, name) > 0, "{forecast}");
    }
    let limits = ["--bandwidth", "1M", "--downtime-ms", "7"];
    let slow = site.json(1, &[&plan[..], &limits].concat())["forecast"].clone();
    assert!(figure(&slow, "send_bytes_per_s") <= 1 << 20, "{slow}");
    assert_eq!(slow["downtime_target_ms"], 7);
    assert!(
        figure(&slow, "total_ms") >= figure(&forecast, "total_ms"),
        "{slow} {forecast}"
    );

    // What is to change at its next start changes nothing on the way, and what has grown comes along.
    site.must(1, &["guest", "edit", "web", "--memory", "128M"]);
    site.must(2, &["guest", "disk", "resize", "web", "disk0", "64M"]);
    assert_eq!(traveller.show(2)["disks"][0]["size_mib"], 64);
    site.must(2, &["guest", "memory", "web", "90M"]);
    traveller.migrate(1, &["--to", "node2"]);
    traveller.migrate(1, &["--to", "node3"]);
    traveller.wait_until_it_beats(3, 2);

    refusals(&traveller);
    clones(&traveller);
    selftest(&traveller);

    // Paused it stays paused, and off it changes its node at once.
    site.must(1, &["guest", "pause", "web"]);
    traveller.migrate(1, &["--to", "node1"]);
    assert_eq!(
        (&traveller.show(2)["node"], &traveller.show(2)["state"]),
        (&"node1".into(), &"paused".into())
    );
    site.must(2, &["guest", "resume", "web"]);
    traveller.wait_until_it_beats(1, 2);
    site.must(2, &["guest", "stop", "web", "--force"]);
    traveller.migrate(3, &["--to", "node2"]);
    assert_eq!(traveller.show(3)["node"], "node2");
    site.must(3, &["guest", "start", "web"]);
    traveller.wait_until_it_beats(2, 3);
    // Without a name of a node the best one is chosen.
    let task = traveller.migrate(2, &[]);
    assert_ne!(task["result"]["node"], "node2");
    traveller.delete(2);
}

/// A move's log tells what was foretold and what it came to. The first one cannot know: these links
/// are no network cards.
fn forecast_is_kept(site: &Site, by: usize, forecast: &Value, task: &Value) {
    let log = site.must(by, &["task", "log", task["id"].as_str().unwrap()]);
    let told = |text: &str| log.lines().any(|line| line.contains(text));
    let figures = ["forecast: ", "; stood for "];
    let lines = log.lines();
    for line in lines.filter(|line| figures.iter().any(|figure| line.contains(figure))) {
        println!("{line}");
    }
    let known = !forecast["send_bytes_per_s"].is_null();
    assert_eq!(told("no time is foretold"), !known, "{forecast}: {log}");
    let beside = if known {
        "foretold about"
    } else {
        "not foretold"
    };
    assert!(told(beside) && told("; stood for "), "{forecast}: {log}");
}

/// Copies of a guest that is off go to a node of one's choice, if their disks can.
fn clones(traveller: &Traveller) {
    let site = &traveller.site;
    let create = [
        "guest",
        "create",
        "golden",
        "--memory",
        "64M",
        "--no-network",
    ];
    let disks = ["--disk", "8M", "--pool", "nas", "--node", "node1"];
    site.must(1, &[&create[..], &disks].concat());
    site.must(2, &["guest", "template", "golden"]);
    site.must(3, &["guest", "clone", "golden", "copy", "--to", "node2"]);
    let copy = site.json(3, &["guest", "show", "copy"]);
    assert_eq!(
        (&copy["node"], &copy["incomplete"]),
        (&"node2".into(), &false.into())
    );
    let error = site.pindah(3, &["guest", "start", "golden"]).unwrap_err();
    assert!(error.contains("guest golden is a template"), "{error}");
    let clone = ["guest", "clone", "golden", "other"];
    for (more, message) in [
        (["--to", "node9", "--pool", "nas"], "node9"),
        (
            ["--to", "node2", "--pool", "local"],
            "which no other node has",
        ),
    ] {
        let all = [&clone[..], &more].concat();
        let error = site.pindah(3, &all).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
    for name in ["golden", "copy"] {
        site.must(1, &["guest", "delete", name, "--yes"]);
    }
}

/// The site's own test finds all of it in order, and leaves nothing behind.
fn selftest(traveller: &Traveller) {
    let probe = super::programs::programs().join("pindah-probe");
    let arguments = ["selftest", "--probe", probe.to_str().unwrap(), "--json"];
    let said = traveller.site.must(2, &arguments);
    let report: Value = serde_json::from_str(&said).unwrap();
    let moves = report["moves"].as_array().unwrap();
    assert_eq!(moves.len(), 3, "{report}");
    for one in moves {
        let blackout_ms = one["blackout_ms"].as_f64().unwrap();
        let downtime_ms = one["downtime_ms"].as_f64().unwrap();
        println!("selftest: blackout {blackout_ms:.2} ms, downtime {downtime_ms:.2} ms");
        assert!(blackout_ms > 0.0 && downtime_ms > 0.0, "{report}");
    }
    let guests = traveller.site.json(1, &["guest", "list"]);
    assert_eq!(guests.as_array().unwrap().len(), 1, "{guests}");
}

fn refusals(traveller: &Traveller) {
    let site = &traveller.site;
    let refused = |guest: &str, arguments: &[&str], why: &str| {
        let all = [&["guest", "migrate", guest][..], arguments].concat();
        let error = site.pindah(1, &all).unwrap_err();
        assert!(
            error.contains(why) && !error.trim().contains('\n'),
            "{all:?}: {error}"
        );
    };
    refused("web", &["--to", "node3"], "must be another node");
    refused("web", &["--to", "node9"], "there is no node node9");
    refused("web", &["--to", "../x"], "there is no node ../x");
    refused(
        "web",
        &["--to", "node1", "--downtime-ms", "0"],
        "must be 1 to 60000 ms",
    );
    refused("nobody", &[], "there is no guest nobody");
    let probe = super::programs::programs().join("pindah-probe");
    let probe = probe.to_str().unwrap();
    let create = ["guest", "create", "own", "--memory", "64M", "--no-network"];
    let rest = ["--kernel", probe, "--disk", "1M"];
    site.must(1, &[&create[..], &rest].concat());
    refused("own", &["--to", "node2"], "its disk disk0 is in pool local");
    site.must(1, &["guest", "delete", "own", "--yes"]);
}

#[test]
fn what_breaks_on_the_way_leaves_one_guest_that_runs() {
    if !host_can() {
        return;
    }
    let mut traveller = Traveller::new("mf", 3, 24);
    traveller.wait_until_it_beats(1, 3);

    let task = traveller.begin_slow_move(3, "node2");
    traveller.site.must(3, &["task", "cancel", &task]);
    assert_eq!(traveller.wait_task(3, &task)["state"], "cancelled");
    traveller.wait_until_it_beats(1, 3);

    let pid = traveller.show(3)["pid"].clone();
    traveller.begin_slow_move(3, "node2");
    traveller.site.kill_vmm(2, &traveller.uuid);
    traveller.wait_until_it_stays(1, &pid);

    traveller.begin_slow_move(3, "node2");
    traveller.site.cut(2);
    traveller.wait_until_it_stays(1, &pid);
    traveller.site.heal(2);
    traveller.site.wait_majority(2, true);
    traveller.wait_until_it_stays(1, &pid);

    // The agents end, and the guest moves on by itself.
    traveller.begin_slow_move(3, "node2");
    traveller.site.kill_agent(1);
    traveller.site.kill_agent(2);
    traveller.site.start(1);
    traveller.site.start(2);
    traveller.wait_until_it_beats(2, 3);

    // Its process is killed: it starts again where it was.
    traveller.begin_slow_move(3, "node1");
    traveller.site.kill_vmm(2, &traveller.uuid);
    traveller.wait_until_it_beats(2, 3);

    // The power fails on both.
    traveller.begin_slow_move(3, "node1");
    traveller.site.power_off(1);
    traveller.site.power_off(2);
    traveller.site.start(1);
    traveller.site.start(2);
    traveller.wait_until_it_beats(2, 3);

    // Its node dies for good in the middle: nobody knows, so nobody runs it, until it is back.
    traveller.begin_slow_move(3, "node1");
    traveller.site.power_off(2);
    traveller.site.start(2);
    traveller.wait_until_it_beats(2, 3);
    traveller.delete(3);
}

#[test]
fn drained_node_is_empty_and_its_guests_come_back() {
    if !host_can() {
        return;
    }
    let traveller = Traveller::new("dr", 3, 4);
    let site = &traveller.site;
    create(site, "app", 4, &["--start"]);
    create(site, "off", 4, &[]);
    let own = ["guest", "create", "own", "--memory", "64M", "--no-network"];
    let probe = super::programs::programs().join("pindah-probe");
    let rest = [
        "--kernel",
        probe.to_str().unwrap(),
        "--disk",
        "1M",
        "--node",
        "node1",
    ];
    site.must(3, &[&own[..], &rest].concat());
    let pid = traveller.show(3)["pid"].clone();

    // What only it has keeps a guest there, and is named.
    let error = site.pindah(3, &["node", "drain", "node1"]).unwrap_err();
    assert!(
        error.contains("3 guests have left and 1 are still there: guest own:"),
        "{error}"
    );
    site.must(3, &["guest", "delete", "own", "--yes"]);
    site.must(3, &["node", "drain", "node1"]);
    traveller.wait_until_it_is_on(&["node2", "node3"], 3);
    let nodes = site.json(3, &["node", "list"]);
    assert_eq!(
        (&nodes[0]["drained"], &nodes[0]["guests"]),
        (&true.into(), &0.into()),
        "{nodes}"
    );
    for (arguments, why) in [
        (
            &["guest", "migrate", "web", "--to", "node1"][..],
            "node1 is drained",
        ),
        (&[&own[..], &rest].concat(), "node1 is drained"),
        (&["node", "drain", "node9"], "there is no node node9"),
        (&["node", "undrain", "node2"], "node2 is not drained"),
    ] {
        let error = site.pindah(2, arguments).unwrap_err();
        assert!(error.contains(why), "{arguments:?}: {error}");
    }
    site.must(2, &["guest", "delete", "off", "--yes"]);
    site.must(2, &["node", "undrain", "node1"]);
    for guest in ["web", "app"] {
        let shown = site.json(2, &["guest", "show", guest]);
        assert_eq!(shown["node"], "node1", "{shown}");
    }
    let blackout_ms = traveller.wait_until_it_beats(1, 2);
    println!("drained and back: blackout {blackout_ms:.2} ms as the guest saw it");
    assert!(blackout_ms > 0.0);
    assert_ne!(traveller.show(2)["pid"], pid);
    site.must(2, &["guest", "delete", "app", "--force", "--yes"]);
    traveller.delete(2);
}

/// A guest with its disk in the shared pool, on the first node. It writes to `ws_mib` MiB of random
/// content, slowly, and verifies them.
fn create(site: &Site, name: &str, ws_mib: u32, more: &[&str]) {
    let words =
        format!("beat_ms=20 gap_us=60000000 verify=1 content=random rate_mib_s=1 ws_mib={ws_mib}");
    let create = ["guest", "create", name, "--memory", "96M", "--no-network"];
    let from = ["--kernel", "nas/pindah-probe", "--cmdline", &words];
    let disk = ["--disk", "8M", "--pool", "nas", "--node", "node1"];
    site.must(1, &[&create[..], &from, &disk, more].concat());
}

impl Traveller {
    fn wait_until_it_is_on(&self, nodes: &[&str], by: usize) {
        let node = self.show(by)["node"].clone();
        assert!(nodes.iter().any(|name| node == *name), "it is on {node}");
        self.site.wait_state(by, "web", "running");
    }

    /// Waits until it has given up to move and goes on in the process that ran it before.
    fn wait_until_it_stays(&self, on: usize, pid: &Value) {
        self.site.wait(on, "its move does not end", || {
            self.show(3)["moving_to"].is_null()
        });
        self.wait_until_it_beats(on, 3);
        assert_eq!(&self.show(3)["pid"], pid);
    }
}
