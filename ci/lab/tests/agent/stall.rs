//! A NAS that stalls, restarts, is cut off or comes late: its guests wait for it, and nobody else.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pindah_lab::guest::{BOOT_LIMIT, Console};

use crate::node::{ACTION_LIMIT, Node};
use crate::office::{Office, create_small, start_small, upload_small, wait_pool};

/// Writes to the disk and verifies what comes back from it, for ever; counts its rounds, and notes
/// what is wrong.
const WORK: &str = r#"
mkdir -p /disk
cat >/tmp/loop <<'EOF'
round=0
while :; do
    head -c 200000 /dev/urandom >/tmp/new
    cp /tmp/new /disk/new && sync && echo 3 >/proc/sys/vm/drop_caches && cmp /tmp/new /disk/new ||
        echo "round $round" >>/tmp/bad
    round=$((round + 1))
    echo $round >/tmp/round.new && mv /tmp/round.new /tmp/round
    sleep 1
done
EOF
setsid sh /tmp/loop >/tmp/loop.log 2>&1 </dev/null &
"#;
/// Thrice the lease: the NAS has forgotten who it served.
const STALL: Duration = Duration::from_secs(30);
/// What any request may take while the NAS stalls, in seconds: who waits for it takes four and more.
/// On a host that is not emulated it is one.
const PROMPT_S: f64 = 3.0;
const TRIES: u32 = 5;
const PATHS: [&str; 6] = [
    "/guests",
    "/nodes",
    "/images",
    "/pools",
    "/tasks",
    "/networks",
];

struct Worker {
    name: &'static str,
    console: Console,
}

impl Worker {
    /// A guest that has been started, at work from now on.
    fn start(node: &Node, name: &'static str) -> Result<Self> {
        let mut console = start_small(node, name)?;
        console.run(WORK, ACTION_LIMIT)?.ok()?;
        let mut worker = Self { name, console };
        worker.wait_for_work(node)?;
        Ok(worker)
    }

    fn round(&mut self) -> Result<u64> {
        let look = "cat /tmp/bad 2>/dev/null; dmesg | grep -i 'i/o error'; cat /tmp/round 2>/dev/null || echo 0";
        let said = self.console.run(look, ACTION_LIMIT)?.ok()?;
        let said = said.text();
        let round = said.trim().parse();
        round.map_err(|_| anyhow::anyhow!("guest {} has noticed: {said}", self.name))
    }

    /// Waits until it has done and verified more, without an error; `node` has it.
    fn wait_for_work(&mut self, node: &Node) -> Result<()> {
        let worked = self.try_wait_for_work();
        node.explain(worked)
    }

    fn try_wait_for_work(&mut self) -> Result<()> {
        let (first, end) = (self.round()?, Instant::now() + ACTION_LIMIT);
        // The round that it was in, and a whole one after it.
        while self.round()? < first + 2 {
            ensure!(Instant::now() < end, "guest {} does not go on", self.name);
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

/// The node's API answers promptly, whatever it is asked for; the longest that it took.
fn answers(node: &Node) -> Result<f64> {
    let mut longest: f64 = 0.0;
    for path in PATHS {
        // The emulator's host may be late as well, but not each time.
        let mut took_s = node.answer_s(path)?;
        for _ in 1..TRIES {
            if took_s >= PROMPT_S {
                took_s = took_s.min(node.answer_s(path)?);
            }
        }
        let name = node.name();
        ensure!(took_s < PROMPT_S, "GET {path} takes {took_s} s on {name}");
        longest = longest.max(took_s);
    }
    Ok(longest)
}

/// Both nodes see that the NAS does not answer, and say who waits for it.
fn is_seen(office: &Office) -> Result<()> {
    let [first, second] = &office.nodes;
    wait_pool(first, "node1", "stalled")?;
    wait_pool(second, "node2", "stalled")?;
    first.wait_line("pool show nas", "^node1 *stalled: .*what uses it waits")?;
    for node in &office.nodes {
        node.wait_line("guest show waits", "^reason *.*pool nas")?;
    }
    let guest = first.guest("runs")?;
    ensure!(guest["reason"].is_null(), "{guest}");
    Ok(())
}

/// An office with one guest that needs the NAS, and one beside it on the same node that does not.
struct Scene {
    office: Office,
    waits: Worker,
    runs: Worker,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let office = Office::new(name)?;
        office.create_pool()?;
        let first = &office.nodes[0];
        for (pool, guest) in [("nas", "waits"), ("local", "runs")] {
            upload_small(&office.lab, first, pool)?;
            create_small(first, guest, "node1", pool)?;
        }
        let waits = Worker::start(first, "waits")?;
        let runs = Worker::start(first, "runs")?;
        Ok(Self {
            office,
            waits,
            runs,
        })
    }

    /// All is as if nothing had happened.
    fn is_over(&mut self) -> Result<()> {
        let [first, second] = &self.office.nodes;
        wait_pool(first, "node1", "ready")?;
        wait_pool(second, "node2", "ready")?;
        self.waits.wait_for_work(first)?;
        self.runs.wait_for_work(first)?;
        first.wait_state("waits", "running")?;
        let guest = first.guest("waits")?;
        ensure!(guest["reason"].is_null(), "{guest}");
        Ok(())
    }

    /// It stands still for longer than its lease, and forgets who it has served.
    fn stall(&mut self) -> Result<()> {
        let [first, second] = &self.office.nodes;
        println!("before: {:.3} s", answers(first)?);
        self.office.nas.stall()?;
        let began = Instant::now();
        let mut longest: f64 = 0.0;
        while began.elapsed() < STALL {
            longest = longest.max(answers(first)?).max(answers(second)?);
            self.runs.wait_for_work(first)?;
        }
        println!("while it stalls the API answers within {longest:.3} s");
        is_seen(&self.office)?;
        self.office.nas.go_on()?;
        self.is_over()
    }

    /// It has forgotten what its clients have open, and asks them.
    fn restart(&mut self) -> Result<()> {
        self.office.nas.lose_power();
        is_seen(&self.office)?;
        self.office.nas.power_on(&self.office.lab)?;
        self.is_over()
    }

    /// A node without its cable has neither the NAS nor the other node.
    fn cut(&mut self) -> Result<()> {
        let first = &self.office.nodes[0];
        let switch = self.office.lab.network();
        let tap = first.server().tap();
        switch.run(&format!("ip link set dev {tap} down"))?;
        let began = Instant::now();
        first.wait_line("guest show waits", "^reason *.*pool nas")?;
        while began.elapsed() < STALL {
            answers(first)?;
            self.runs.wait_for_work(first)?;
        }
        switch.run(&format!("ip link set dev {tap} up"))?;
        self.is_over()
    }
}

#[test]
#[ignore = "lab"]
fn nas_that_stalls_holds_up_its_guests_and_nothing_else() {
    Scene::new("stall").unwrap().stall().unwrap();
}

#[test]
#[ignore = "lab"]
fn full_nas_that_restarts_or_is_cut_off_has_its_guests_afterwards() {
    let mut all = Scene::new("nas-cut").unwrap();
    all.restart().unwrap();
    all.cut().unwrap();
}

#[test]
#[ignore = "lab"]
fn full_nas_that_is_gone_keeps_nobody_from_stopping_a_guest_or_starting_a_node() {
    let Scene {
        mut office,
        waits,
        mut runs,
    } = Scene::new("nas-gone").unwrap();
    let first = &office.nodes[0];
    office.nas.stall().unwrap();
    is_seen(&office).unwrap();
    let process = first.guest("waits").unwrap()["pid"].clone();
    // It cannot end while the kernel waits for the NAS; said, and done as soon as it can.
    let stop = first.server().run("pindah guest stop waits --force");
    let said = stop.unwrap();
    let error = said.error_text();
    assert!(
        said.status != 0 && error.contains("pool nas does not answer"),
        "{error}"
    );
    first.wait_state("waits", "stopping").unwrap();
    runs.wait_for_work(first).unwrap();
    drop(waits);
    office.nas.go_on().unwrap();
    first.wait_state("waits", "stopped").unwrap();
    first
        .server()
        .check(&format!("! ls -d /proc/{process}"))
        .unwrap();
    wait_pool(first, "node1", "ready").unwrap();
    let waits = Worker::start(first, "waits").unwrap();

    // The power fails, and the NAS takes longer than the node.
    office.nas.lose_power();
    office.nodes[0].lose_power();
    drop((waits.console, runs.console));
    office.nodes[0].power_on(&office.lab).unwrap();
    let first = &office.nodes[0];
    first
        .wait_line("pool show nas", "^node1 *unavailable: .*cannot be mounted")
        .unwrap();
    first.wait_state("runs", "running").unwrap();
    answers(first).unwrap();
    office.nas.power_on(&office.lab).unwrap();
    wait_pool(first, "node1", "ready").unwrap();
    first.wait_state("waits", "running").unwrap();
    let console = first.console("waits").unwrap();
    let booted = { console }.wait_ready(BOOT_LIMIT);
    first.explain(booted).unwrap();
}
