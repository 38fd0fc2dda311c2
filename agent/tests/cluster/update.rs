//! All nodes of a cluster are updated, one after the other, the one that leads too.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::harness::{Site, host_can};
use super::programs::{RAUC, SYSTEMCTL};

struct Fleet {
    site: Site,
    /// Nodes in the order in which they restarted.
    restarted: Vec<usize>,
}

impl Fleet {
    fn new(tag: &str) -> Self {
        let site = Site::with_programs(tag, 3, &[("rauc", RAUC), ("systemctl", SYSTEMCTL)]);
        site.form();
        for number in 1..=3 {
            let good = site.here(number, "good-A");
            site.wait(number, "it does not say that it works", || good.exists());
        }
        Self {
            site,
            restarted: Vec::new(),
        }
    }

    fn bundle(&self) -> PathBuf {
        let path = self.site.path("new.raucb");
        fs::write(&path, "pindah-x86_64 99.0.0 ours\n").unwrap();
        path
    }

    /// Begins the update; its task.
    fn begin(&self, by: usize) -> String {
        let bundle = self.bundle();
        let begin = ["cluster", "update", bundle.to_str().unwrap(), "--no-wait"];
        let said = self.site.must(by, &begin);
        said.trim().strip_prefix("task ").unwrap().to_owned()
    }

    /// Waits until one node asks for its restart; no other may.
    fn next_restart(&self) -> usize {
        let asked = || (1..=3).filter(|&number| self.site.here(number, "restarts").exists());
        self.site
            .wait(1, "no node restarts", || asked().next().is_some());
        let asked: Vec<usize> = asked().collect();
        assert_eq!(asked.len(), 1, "{asked:?} restart at once");
        asked[0]
    }

    /// The node's host is off, and on again in `slot`.
    fn restart(&mut self, number: usize, slot: &str) {
        let site = &mut self.site;
        site.power_off(number);
        let pending = site.state(number, "update/pending.json");
        let mut value: Value = serde_json::from_slice(&fs::read(&pending).unwrap()).unwrap();
        value["restarting"] = json!("another start of the host");
        fs::write(&pending, value.to_string()).unwrap();
        fs::write(site.here(number, "running"), slot).unwrap();
        fs::remove_file(site.here(number, "restarts")).unwrap();
        site.start(number);
        self.restarted.push(number);
    }

    fn task(&self, by: usize, id: &str) -> Value {
        self.site.json(by, &["task", "show", id])
    }

    /// Waits until the task has ended.
    fn end(&self, by: usize, id: &str) -> Value {
        let mut task = Value::Null;
        self.site.wait(by, "the update does not end", || {
            task = self.task(by, id);
            task["state"].is_string() && task["state"] != "running"
        });
        task
    }
}

#[test]
fn nodes_are_updated_in_turn_though_the_one_that_leads_dies() {
    if !host_can() {
        return;
    }
    let mut fleet = Fleet::new("ur");
    let task = fleet.begin(2);
    let first = fleet.next_restart();
    assert_eq!(first, 1);
    let drained = fleet.site.json(3, &["node", "show", "node1"])["drained"].clone();
    assert_eq!(drained, true);
    let error = fleet
        .site
        .pindah(3, &["cluster", "update", fleet.bundle().to_str().unwrap()]);
    let error = error.unwrap_err();
    assert!(error.contains("led by node node2"), "{error}");

    // The one that leads dies, too.
    fleet.site.kill_agent(2);
    fleet.site.start(2);
    fleet.restart(1, "B");
    for _ in 0..2 {
        let number = fleet.next_restart();
        fleet.restart(number, "B");
    }
    let ended = fleet.end(3, &task);
    assert_eq!(ended["state"], "done", "{ended}\n{}", fleet.site.log(2));
    assert_eq!(ended["result"]["nodes"], json!(["node1", "node3", "node2"]));
    assert_eq!(fleet.restarted, [1, 3, 2]);
    fleet.site.wait_ready(3);
    for (number, name) in [(1, "node1"), (2, "node2"), (3, "node3")] {
        let mut node = Value::Null;
        fleet.site.wait(number, "it does not say what it runs", || {
            node = fleet.site.json(3, &["node", "show", name]);
            node["slots"]["running"] == "B" && node["drained"] == false
        });
        assert_eq!(node["last_update"]["version"], "99.0.0", "{node}");
        assert!(!fleet.site.state(number, "update/bundle.raucb").exists());
    }
}

#[test]
fn first_node_that_falls_back_ends_it() {
    if !host_can() {
        return;
    }
    let mut fleet = Fleet::new("uf");
    let task = fleet.begin(3);
    assert_eq!(fleet.next_restart(), 1);
    fleet.restart(1, "B");
    assert_eq!(fleet.next_restart(), 2);
    fleet.restart(2, "A");
    let ended = fleet.end(1, &task);
    assert_eq!(ended["state"], "failed", "{ended}");
    let error = ended["error"].as_str().unwrap();
    for part in [
        "node node2: ",
        "99.0.0 in slot B has not come up healthy",
        "1 nodes run 99.0.0, and 1 were not touched",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!fleet.site.here(3, "installs").exists());
    assert!(!fleet.site.here(3, "restarts").exists());
    let mut node = Value::Null;
    fleet.site.wait(1, "node2 does not take guests again", || {
        node = fleet.site.json(1, &["node", "show", "node2"]);
        node["drained"] == false && node["last_update"]["fell_back"].is_string()
    });
    assert_eq!(node["slots"]["running"], "A", "{node}");
}
