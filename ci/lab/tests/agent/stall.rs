//! A NAS that stalls, restarts, is cut off or comes late: its guests wait for it, and nobody else.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pindah_lab::guest::Console;

use crate::node::{ACTION_LIMIT, Node};
use crate::office::{Office, start_small};

/// Writes to the disk and verifies what comes back from it, for ever; counts its rounds, and notes
/// what is wrong.
const WORK: &str = r#"
mkdir -p /disk
cat >/tmp/loop <<'EOF'
round=0
while :; do
    head -c 500000 /dev/urandom >/tmp/new
    cp /tmp/new /disk/new && sync && echo 3 >/proc/sys/vm/drop_caches && cmp /tmp/new /disk/new ||
        echo "round $round" >>/tmp/bad
    round=$((round + 1))
    echo $round >/tmp/round.new && mv /tmp/round.new /tmp/round
    sleep 0.2
done
EOF
setsid sh /tmp/loop >/tmp/loop.log 2>&1 </dev/null &
"#;
const STALL: Duration = Duration::from_secs(60);
/// What any request may take while the NAS stalls, in seconds.
const PROMPT_S: f64 = 1.0;

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
        worker.wait_for_work()?;
        Ok(worker)
    }

    fn round(&mut self) -> Result<u64> {
        let look =
            "cat /tmp/bad 2>/dev/null; dmesg | grep -i 'i/o error'; cat /tmp/round || echo 0";
        let said = self.console.run(look, ACTION_LIMIT)?.ok()?;
        let said = said.text();
        let round = said.trim().parse();
        round.map_err(|_| anyhow::anyhow!("guest {} has noticed: {said}", self.name))
    }

    /// Waits until it has done and verified more, without an error.
    fn wait_for_work(&mut self) -> Result<()> {
        let (first, end) = (self.round()?, Instant::now() + ACTION_LIMIT);
        // The round that it was in, and a whole one after it.
        while self.round()? < first + 2 {
            ensure!(Instant::now() < end, "guest {} does not go on", self.name);
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

/// The node's API answers promptly, whatever it is asked for.
fn answers(node: &Node) -> Result<f64> {
    let mut longest: f64 = 0.0;
    for path in [
        "/guests",
        "/nodes",
        "/images",
        "/pools",
        "/tasks",
        "/networks",
    ] {
        let took_s = node.answer_s(path)?;
        ensure!(
            took_s < PROMPT_S,
            "GET {path} takes {took_s} s on {}",
            node.name()
        );
        longest = longest.max(took_s);
    }
    Ok(longest)
}

/// An office with one guest that needs the NAS, and one beside it on the same node that does not.
fn office(name: &str) -> Result<(Office, Worker, Worker)> {
    let office = Office::new(name)?;
    office.create_pool()?;
    let first = &office.nodes[0];
    for (pool, guest) in [("nas", "waits"), ("local", "runs")] {
        office.upload_small(first, pool)?;
        office.create_small(first, guest, "node1", pool)?;
    }
    let waits = Worker::start(first, "waits")?;
    let runs = Worker::start(first, "runs")?;
    Ok((office, waits, runs))
}

/// Both nodes see that the NAS does not answer, and say who waits for it.
fn is_seen(office: &Office) -> Result<()> {
    let [first, second] = &office.nodes;
    office.wait_pool(first, "node1", "stalled")?;
    office.wait_pool(second, "node2", "stalled")?;
    first.wait_line("pool show nas", "^node1 *stalled: .*what uses it waits")?;
    for node in &office.nodes {
        node.wait_line("guest show waits", "^reason *.*pool nas")?;
    }
    let guest = first.guest("runs")?;
    ensure!(guest["reason"].is_null(), "{guest}");
    Ok(())
}

/// All is as if nothing had happened.
fn is_over(office: &Office, waits: &mut Worker, runs: &mut Worker) -> Result<()> {
    let [first, second] = &office.nodes;
    office.wait_pool(first, "node1", "ready")?;
    office.wait_pool(second, "node2", "ready")?;
    waits.wait_for_work()?;
    runs.wait_for_work()?;
    let guest = first.guest("waits")?;
    ensure!(
        guest["state"] == "running" && guest["reason"].is_null(),
        "{guest}"
    );
    Ok(())
}

#[test]
#[ignore = "lab"]
fn full_nas_that_stalls_holds_up_its_guests_and_nothing_else() {
    let (office, mut waits, mut runs) = office("stall").unwrap();
    let first = &office.nodes[0];
    println!("before: {:.3} s", answers(first).unwrap());

    office.nas.stall().unwrap();
    let began = Instant::now();
    let mut longest: f64 = 0.0;
    while began.elapsed() < STALL {
        for node in &office.nodes {
            longest = longest.max(answers(node).unwrap());
        }
        runs.wait_for_work().unwrap();
    }
    println!("while it stalls the API answers within {longest:.3} s");
    is_seen(&office).unwrap();
    office.nas.go_on().unwrap();
    is_over(&office, &mut waits, &mut runs).unwrap();

    // Restarted it has forgotten its clients, and what they have open.
    office.nas.lose_power();
    is_seen(&office).unwrap();
    office.nas.power_on(&office.lab).unwrap();
    is_over(&office, &mut waits, &mut runs).unwrap();

    // A node without its cable has neither the NAS nor the other node.
    let switch = office.lab.network();
    let tap = first.server().tap();
    switch.run(&format!("ip link set dev {tap} down")).unwrap();
    first
        .wait_line("guest show waits", "^reason *.*pool nas")
        .unwrap();
    answers(first).unwrap();
    runs.wait_for_work().unwrap();
    switch.run(&format!("ip link set dev {tap} up")).unwrap();
    is_over(&office, &mut waits, &mut runs).unwrap();
}

#[test]
#[ignore = "lab"]
fn full_nas_that_is_gone_keeps_nobody_from_stopping_a_guest_or_starting_a_node() {
    let (mut office, waits, mut runs) = office("gone").unwrap();
    let first = &office.nodes[0];
    office.nas.stall().unwrap();
    is_seen(&office).unwrap();
    first.pindah("guest stop waits --force").unwrap();
    let guest = first.guest("waits").unwrap();
    assert!(
        guest["state"] == "stopped" && guest["pid"].is_null(),
        "{guest}"
    );
    first
        .server()
        .check("! pgrep -f 'pindah-vmm.*waits'")
        .unwrap();
    runs.wait_for_work().unwrap();
    office.nas.go_on().unwrap();
    office.wait_pool(first, "node1", "ready").unwrap();
    drop(waits);
    let mut waits = Worker::start(first, "waits").unwrap();

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
    office.wait_pool(first, "node1", "ready").unwrap();
    first.wait_state("waits", "running").unwrap();
    waits.console = first.console("waits").unwrap();
    waits
        .console
        .run("true", ACTION_LIMIT)
        .unwrap()
        .ok()
        .unwrap();
}
