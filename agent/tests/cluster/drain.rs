//! A node is emptied for its maintenance, and parts die meanwhile.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::harness::{DEADLINE, host_can};
use super::traveller::{Traveller, create};

/// How often guests are looked at that are about to go.
const POLL: Duration = Duration::from_millis(5);
/// A link on which a guest is on its way for some seconds.
const LINK: &str = "40mbit";
const GUESTS: [&str; 3] = ["web", "app", "db"];

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

/// Who dies, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    /// The agent of the node that is emptied, while a guest is on its way.
    Agent,
    /// The same, when one guest has left and others have not.
    AgentHalfWay,
    /// The agent of the node that a guest moves to.
    Destination,
    /// The same, and it is not started again before the guest's record says that it is there.
    DestinationForLong,
    /// The VMM of a guest that is on its way.
    Vmm,
}

/// Three guests on a node with a slow link.
struct Maintenance {
    traveller: Traveller,
}

impl Maintenance {
    fn new(tag: &str) -> Self {
        let traveller = Traveller::new(tag, 3, 8);
        for guest in &GUESTS[1..] {
            create(&traveller.site, guest, 8, &["--start"]);
        }
        traveller.wait_until_it_beats(1, 3);
        traveller.site.slow(1, LINK);
        Self { traveller }
    }

    fn begin(&self, arguments: &[&str]) -> Child {
        let mut command = self.traveller.site.command(3, arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("pindah starts")
    }

    fn guests(&self) -> Vec<Value> {
        let guests = self.traveller.site.json(3, &["guest", "list"]);
        guests.as_array().cloned().unwrap_or_default()
    }

    /// A guest of which this is so, as soon as there is one.
    fn wait_for(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(guest) = self.guests().into_iter().find(&is) {
                return guest;
            }
            assert!(Instant::now() < end, "no guest {what}");
            std::thread::sleep(POLL);
        }
    }

    /// Kills a part while guests leave the first node, or come back to it, and starts it again.
    fn die(&mut self, death: Death) {
        let moves = |guest: &Value| !guest["moving_to"].is_null();
        let node = |name: &Value| name.as_str().unwrap()["node".len()..].parse().unwrap();
        match death {
            Death::Agent => {
                self.wait_for("moves", moves);
                self.restart(1);
            }
            Death::AgentHalfWay => {
                self.wait_for("has left", |guest| guest["node"] != "node1");
                self.wait_for("moves", moves);
                self.restart(1);
            }
            Death::Destination => {
                let guest = self.wait_for("moves", moves);
                self.restart(node(&guest["moving_to"]));
            }
            Death::DestinationForLong => {
                let guest = self.wait_for("moves", moves);
                let number = node(&guest["moving_to"]);
                let site = &mut self.traveller.site;
                site.kill_agent(number);
                let uuid = guest["uuid"].as_str().unwrap();
                site.wait(1, "nobody writes down where it is", || {
                    let now = site.json(1, &["guest", "show", uuid]);
                    now["node"] == guest["moving_to"] && now["moving_to"].is_null()
                });
                assert_eq!(site.runs_on(uuid), [guest["moving_to"].as_str().unwrap()]);
                site.start(number);
            }
            Death::Vmm => {
                let guest = self.wait_for("moves", moves);
                let uuid = guest["uuid"].as_str().unwrap();
                self.traveller.site.kill_vmm(node(&guest["node"]), uuid);
            }
        }
    }

    fn restart(&mut self, number: usize) {
        self.traveller.site.kill_agent(number);
        self.traveller.site.start(number);
    }

    /// Waits until all run, once each, where `is_there` says.
    fn wait_until_all_run(&self, what: &str, is_there: impl Fn(&str) -> bool) {
        let site = &self.traveller.site;
        site.wait(1, what, || {
            let guests = self.guests();
            guests.len() == GUESTS.len()
                && guests.iter().all(|guest| {
                    let node = guest["node"].as_str().unwrap();
                    let uuid = guest["uuid"].as_str().unwrap();
                    guest["state"] == "running"
                        && guest["moving_to"].is_null()
                        && is_there(node)
                        && site.runs_on(uuid) == [node]
                })
        });
    }

    /// The first node's drain, with a death in its midst, and all back after it.
    fn drain(&mut self, death: Death) {
        let what = format!("{death:?}: not all have left");
        let mut drain = self.begin(&["node", "drain", "node1"]);
        self.die(death);
        self.wait_until_all_run(&what, |node| node != "node1");
        let _ = drain.wait();
        let nodes = self.traveller.site.json(3, &["node", "list"]);
        assert_eq!(nodes[0]["drained"], true, "{death:?}: {nodes}");
        self.wait_task("drain_node");
    }

    fn undrain(&mut self, death: Option<Death>) {
        let mut undrain = self.begin(&["node", "undrain", "node1"]);
        if let Some(death) = death {
            self.die(death);
        }
        self.wait_until_all_run("not all are back", |node| node == "node1");
        let _ = undrain.wait();
        self.wait_task("undrain_node");
        let nodes = self.traveller.site.json(3, &["node", "list"]);
        assert_eq!(nodes[0]["drained"], false, "{nodes}");
    }

    /// The last task of the kind ends well, whoever began it.
    fn wait_task(&self, kind: &str) {
        let site = &self.traveller.site;
        site.wait(1, &format!("{kind} is not done"), || {
            let tasks = site.json(3, &["task", "list"]);
            let tasks = tasks.as_array().cloned().unwrap_or_default();
            let last = tasks.iter().find(|task| task["kind"] == kind);
            last.is_some_and(|task| task["state"] == "done")
        });
    }

    fn end(self) {
        self.traveller.wait_until_it_beats(1, 3);
        for guest in &GUESTS[1..] {
            let delete = ["guest", "delete", guest, "--force", "--yes"];
            self.traveller.site.must(3, &delete);
        }
        self.traveller.delete(3);
    }
}

#[test]
fn drain_whose_parts_die_goes_on_and_so_does_its_end() {
    if !host_can() {
        return;
    }
    let mut maintenance = Maintenance::new("dk");
    maintenance.drain(Death::AgentHalfWay);
    maintenance.undrain(Some(Death::Agent));
    maintenance.drain(Death::Vmm);
    maintenance.undrain(None);
    maintenance.end();
}

#[test]
#[ignore = "the whole matrix"]
fn full_drain_whose_parts_die_at_each_step_goes_on() {
    if !host_can() {
        return;
    }
    let mut maintenance = Maintenance::new("df");
    let deaths = [
        Death::Agent,
        Death::AgentHalfWay,
        Death::Destination,
        Death::DestinationForLong,
        Death::Vmm,
    ];
    for death in deaths {
        maintenance.drain(death);
        maintenance.undrain(match death {
            Death::Agent | Death::AgentHalfWay => Some(Death::Agent),
            Death::Destination | Death::DestinationForLong => Some(Death::Destination),
            // It starts again where it is, and its way back is not tried a second time.
            Death::Vmm => None,
        });
    }
    maintenance.end();
}
