//! Parts die at each step of a join. Afterwards the node is in or as it was, the same command does
//! what is left, and the rest of the cluster has its majority all the while.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::harness::{DEADLINE, Site, host_can};

/// How often a step is looked for: some are short.
const POLL: Duration = Duration::from_millis(2);
/// How often the rest is looked at while a part is dead: several rounds of what it does by itself.
const LOOKS: usize = 10;

/// Steps of the join of node 2 by node 1, each by what shows that it is done.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// Node 1 has a record of node 2.
    LetIn,
    /// Its etcd has a member more, without a name yet.
    Added,
    /// Node 2 has the cluster's authority.
    Answered,
    /// It has written down that it enters.
    WrittenDown,
    /// Its etcd has begun.
    Begun,
    /// The others know that.
    Known,
    /// It votes.
    Votes,
}

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    /// Node 1's agent.
    Admitter,
    /// Node 2's agent.
    Joiner,
    /// Node 2's etcd.
    Etcd,
    /// Both of node 2.
    Node,
}

fn members(site: &Site) -> Vec<Value> {
    let members = site.json(1, &["cluster", "show"])["members"].clone();
    members.as_array().cloned().unwrap_or_default()
}

fn nodes(site: &Site) -> Vec<Value> {
    let nodes = site.json(1, &["node", "list"]);
    nodes.as_array().cloned().unwrap_or_default()
}

impl Step {
    fn is_done(self, site: &Site) -> bool {
        let member = |which: fn(&Value) -> bool| members(site).iter().any(which);
        match self {
            Self::LetIn => nodes(site).len() > 1,
            Self::Added => members(site).len() > 1,
            Self::Answered => site.state(2, "private/ca.pem.staged").exists(),
            Self::WrittenDown => site.state(2, "cluster.json").exists(),
            Self::Begun => site.state(2, "etcd/data/member/wal").exists(),
            Self::Known => member(|one| one["node"] == "node2"),
            Self::Votes => member(|one| one["node"] == "node2" && one["votes"] == true),
        }
    }

    /// Waits until it is done, or the join has ended: some steps are over before they are seen.
    fn wait(self, site: &Site, join: &mut Child) {
        let end = Instant::now() + DEADLINE;
        while !self.is_done(site) && join.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "{self:?}\n{}", site.log(1));
            std::thread::sleep(POLL);
        }
    }
}

/// Two nodes, of which the first is a cluster with a guest.
struct Entry {
    site: Site,
    uuid: String,
    pid: Value,
}

impl Entry {
    fn new(tag: &str) -> Self {
        let site = Site::new(tag, 2);
        for number in 1..=2 {
            site.wait_until_it_serves(number);
        }
        site.must(1, &["cluster", "init"]);
        let uuid = site.create(1, 1, "web");
        let pid = site.json(1, &["guest", "show", "web"])["pid"].clone();
        Self { site, uuid, pid }
    }

    fn begin(&self, arguments: &[&str]) -> Child {
        let mut join = self.site.command(2, arguments);
        join.stdout(Stdio::null()).stderr(Stdio::piped());
        join.spawn().expect("pindah starts")
    }

    fn kill(&mut self, part: Part) {
        match part {
            Part::Admitter => self.site.kill_agent(1),
            Part::Joiner => self.site.kill_agent(2),
            Part::Node => self.site.power_off(2),
            Part::Etcd => self.site.kill_etcd_if_any(2),
        }
    }

    /// Node 1 can change something, however often it is asked.
    fn assert_majority(&self, when: &str) {
        for _ in 0..LOOKS {
            let token = self.site.pindah(1, &["cluster", "token"]);
            assert!(token.is_ok(), "{when}: {token:?}\n{}", self.site.log(1));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The join, with a death in its midst, and what is to be done after it.
    fn die(&mut self, step: Step, part: Part) {
        let when = format!("{part:?} after {step:?}");
        let token = self.site.must(1, &["cluster", "token"]);
        let arguments = ["cluster", "join", "10.77.0.1", token.trim()];
        let mut join = self.begin(&arguments);
        step.wait(&self.site, &mut join);
        self.kill(part);
        // One that votes is missed, as any node of two is.
        if part == Part::Node && step != Step::Votes && join.try_wait().unwrap().is_none() {
            self.assert_majority(&when);
        }
        match part {
            Part::Admitter => self.site.start(1),
            Part::Joiner | Part::Node => self.site.start(2),
            Part::Etcd => {}
        }
        let said = join.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.success() || !error.trim().is_empty(), "{when}");
        for number in 1..=2 {
            self.site.wait_until_it_serves(number);
        }
        let is_in = self.site.state(2, "cluster.json").exists();
        println!("{when}: in: {is_in}; {}", error.trim());
        if !is_in {
            assert!(!said.status.success(), "{when}");
            assert_eq!(self.site.etcds(2), 0, "{when}");
            let again = self.site.pindah(2, &arguments);
            assert!(again.is_ok(), "{when}: {again:?}\n{}", self.site.log(1));
        }
        self.assert_whole(&when);
    }

    /// Two nodes, two voters, one guest that noticed nothing.
    fn assert_whole(&self, when: &str) {
        for number in 1..=2 {
            self.site.wait_majority(number, true);
            self.site.wait_ready(number);
        }
        self.site.wait(1, &format!("{when}: not both vote"), || {
            members(&self.site).iter().all(|one| one["votes"] == true)
        });
        assert_eq!((nodes(&self.site).len(), members(&self.site).len()), (2, 2));
        assert_eq!(self.site.etcds(2), 1, "{when}");
        assert!(!self.site.state(2, "private/ca.pem.staged").exists());
        self.site.wait_state(2, "web", "running");
        let guest = self.site.json(2, &["guest", "show", "web"]);
        assert_eq!(guest["pid"], self.pid, "{when}");
        assert_eq!(self.site.runs_on(&self.uuid), ["node1"], "{when}");
    }

    fn leave(&self) {
        self.site.must(2, &["cluster", "leave"]);
        self.site.wait_until_it_serves(2);
    }

    fn end(self) {
        self.site
            .must(1, &["guest", "delete", "web", "--force", "--yes"]);
        self.site.assert_clean();
    }
}

#[test]
fn join_whose_parts_die_is_done_or_done_again_by_the_same_command() {
    if !host_can() {
        return;
    }
    let mut entry = Entry::new("en");
    for (step, part) in [
        (Step::LetIn, Part::Admitter),
        (Step::Answered, Part::Joiner),
        (Step::WrittenDown, Part::Node),
        (Step::Begun, Part::Node),
        (Step::Begun, Part::Etcd),
        (Step::Known, Part::Admitter),
    ] {
        entry.die(step, part);
        entry.leave();
    }
    entry.end();
}

#[test]
#[ignore = "the whole matrix"]
fn full_join_whose_parts_die_at_each_step_is_done_or_done_again() {
    if !host_can() {
        return;
    }
    let mut entry = Entry::new("ef");
    let steps = [
        Step::LetIn,
        Step::Added,
        Step::Answered,
        Step::WrittenDown,
        Step::Begun,
        Step::Known,
        Step::Votes,
    ];
    for step in steps {
        for part in [Part::Admitter, Part::Joiner, Part::Etcd, Part::Node] {
            entry.die(step, part);
            entry.leave();
        }
    }
    entry.end();
}

/// It holds up nobody for long: its place is free without anybody's doing.
#[test]
#[ignore = "takes what a node may take to come"]
fn full_node_that_was_let_in_and_never_came_is_forgotten() {
    if !host_can() {
        return;
    }
    let mut entry = Entry::new("ev");
    let token = entry.site.must(1, &["cluster", "token"]);
    let mut join = entry.begin(&["cluster", "join", "10.77.0.1", token.trim()]);
    Step::Answered.wait(&entry.site, &mut join);
    entry.site.power_off(2);
    let _ = join.wait();
    entry.site.start(2);
    entry.site.wait_until_it_serves(2);
    assert!(!entry.site.state(2, "cluster.json").exists(), "too late");
    assert_eq!(
        (nodes(&entry.site).len(), members(&entry.site).len()),
        (2, 2)
    );
    let end = Instant::now() + 3 * DEADLINE;
    while (nodes(&entry.site).len(), members(&entry.site).len()) != (1, 1) {
        assert!(Instant::now() < end, "{}", entry.site.log(1));
        std::thread::sleep(Duration::from_secs(1));
    }
    entry.site.join(2, 1);
    entry.assert_whole("after it was forgotten");
    entry.leave();
    entry.end();
}
