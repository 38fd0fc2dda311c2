//! A Debian guest made by cloud-init moves by the agent, and nobody who talks with it notices.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pindah_lab::guest::{BOOT_LIMIT, Console};
use pindah_lab::ping::Ping;
use pindah_lab::{Process, Server};

use crate::node::ACTION_LIMIT;
use crate::office::Office;

const ADDRESS: &str = "10.9.0.130";
const MAC: &str = "52:54:00:09:01:30";
const PAGE: &str = "It moves, and keeps its word";
/// The image has no locales to choose from.
const USER_DATA: &str = "#cloud-config
locale: false
write_files:
  - path: /var/www/html/index.html
    content: PAGE
";
const NETWORK_CONFIG: &str = "version: 2
ethernets:
  lan0:
    match: { macaddress: 'MAC' }
    set-name: lan0
    addresses: [ADDRESS/24]
";
const WORKLOAD: &str = include_str!("../../assets/guest-workload");
const GAP_WATCH: &str = include_str!("../../assets/guest-gap-watch");
/// The last line of what is downloaded all the while, slowly enough to last.
const NUMBERS: u32 = 4_000_000;
const DOWNLOAD_RATE: &str = "5k";

fn check(console: &mut Console, command: &str) -> Result<String> {
    let output = console.run(command, ACTION_LIMIT)?.ok()?;
    Ok(output.text().trim_end().to_owned())
}

/// Creates it at the second node, as one who has an image of Debian for clouds does.
fn create(office: &Office) -> Result<Console> {
    let [first, second] = &office.nodes;
    first.pindah("network create lan --bridge br0")?;
    let image = second
        .server()
        .artifact(&office.lab.artifacts().cloud_disk()?);
    let image = image.display();
    second.pindah(&format!(
        "image upload {image} --name debian.qcow2 --pool nas"
    ))?;
    let server = first.server();
    let user_data = USER_DATA.replace("PAGE", PAGE);
    server.put("/root/user-data", user_data.as_bytes())?;
    let network_config = NETWORK_CONFIG.replace("MAC", MAC);
    let network_config = network_config.replace("ADDRESS", ADDRESS);
    server.put("/root/network-config", network_config.as_bytes())?;
    first.pindah(&format!(
        "guest create web --memory 320M --pool nas --image nas/debian.qcow2 --network lan \
         --mac {MAC} --address {ADDRESS} --user-data /root/user-data \
         --network-config /root/network-config --node node1 --start"
    ))?;
    let mut console = first.console("web")?;
    first.explain(console.wait_ready(BOOT_LIMIT))?;
    let status = console.run("cloud-init status --wait --long", ACTION_LIMIT)?;
    let status = status.ok()?.text().into_owned();
    ensure!(status.contains("status: done"), "cloud-init says {status}");
    ensure!(status.contains("NoCloud"), "cloud-init says {status}");
    let hostname = check(&mut console, "hostname")?;
    ensure!(hostname == "web", "it is called {hostname:?}");
    Ok(console)
}

/// Who talks with the guest all the while.
struct Observers {
    ping: Ping,
    pages: Process,
    download: Process,
}

impl Observers {
    fn start(host: &Server) -> Result<Self> {
        let pages = format!(
            "while :; do curl -sS --max-time 60 -w ' %{{http_code}}\\n' http://{ADDRESS}/ 2>&1 \
             | tr -d '\\n'; echo; sleep 0.2; done"
        );
        let numbers = format!("http://{ADDRESS}/numbers");
        let download = ["curl", "-sS", "--limit-rate", DOWNLOAD_RATE, &numbers];
        Ok(Self {
            ping: Ping::start(host, ADDRESS)?,
            pages: host.spawn(&["sh", "-c", &pages])?,
            download: host.spawn(&download)?,
        })
    }

    /// Waits until each of them has had more from the guest, and looks at what came.
    fn wait_for_more(&mut self) -> Result<()> {
        for (name, process, more) in [
            ("answers to ping", self.ping.process(), 1000),
            ("pages", &mut self.pages, 150),
            ("numbers downloaded", &mut self.download, 20_000),
        ] {
            ensure!(!process.has_ended()?, "no {name} any more");
            let before = process.stdout().len();
            let wait = |output: &[u8]| (output.len() >= before + more).then_some(());
            process.wait_for(name, ACTION_LIMIT, wait)?;
        }
        let expected = format!("{PAGE} 200");
        let pages = String::from_utf8_lossy(self.pages.stdout()).into_owned();
        let whole = pages.rfind('\n').map_or("", |end| &pages[..end]);
        let wrong = whole.lines().find(|line| *line != expected);
        ensure!(wrong.is_none(), "a page is {wrong:?}");
        let numbers = String::from_utf8_lossy(self.download.stdout()).into_owned();
        let whole = numbers.rfind('\n').map_or("", |end| &numbers[..end]);
        for (line, expected) in whole.lines().zip(1..=NUMBERS) {
            ensure!(
                line == expected.to_string(),
                "after {} comes {line}",
                expected - 1
            );
        }
        Ok(())
    }
}

/// What the guest itself says of its work since the last look: rounds over its memory and disk that
/// it has verified, and the longest time between two of its steps, in ms.
fn work(console: &mut Console) -> Result<(u64, f64)> {
    let bad = check(console, "cat /tmp/work/bad 2>/dev/null || true")?;
    ensure!(bad.is_empty(), "the guest's work went wrong: {bad}");
    let errors = check(console, "dmesg | grep -i 'i/o error' || true")?;
    ensure!(errors.is_empty(), "the guest saw {errors}");
    let gap = check(console, "cat /tmp/gap; touch /tmp/gap-reset")?;
    let (gap_ms, back) = gap.split_once(' ').context("gap and steps back")?;
    ensure!(back == "0", "a clock stepped back");
    let round = check(console, "cat /tmp/work/round 2>/dev/null || echo 0")?;
    Ok((round.parse()?, gap_ms.parse()?))
}

/// The guest, wherever it is.
struct Traveller<'a> {
    office: &'a Office,
    console: Console,
    observers: &'a mut Observers,
}

impl Traveller<'_> {
    /// Has `command` move the guest to the node `to`. It works on, and whoever talks with it notices
    /// nothing.
    fn travel(&mut self, command: &str, to: &str) -> Result<()> {
        let [first, second] = &self.office.nodes;
        let last = self.last_move()?;
        let (before, _) = work(&mut self.console)?;
        self.observers.ping.longest_gap_s()?;
        let moved = second.pindah(command);
        let task = self.last_move()?.filter(|task| last.as_ref() != Some(task));
        let Some(task) = task else {
            moved?;
            bail!("`{command}` has moved nothing");
        };
        let log = first.pindah(&format!("task log {task}"))?;
        moved.with_context(|| format!("the task's log is\n{log}"))?;
        let downtime = log.split("the guest stood for ").nth(1);
        let downtime = downtime.and_then(|rest| rest.split([',', '\n']).next());
        let downtime =
            downtime.with_context(|| format!("no downtime in the task's log:\n{log}"))?;
        let guest = first.wait_state("web", "running")?;
        ensure!(guest["node"] == to, "it is on {}", guest["node"]);
        // Any node's command line finds it where it is now.
        self.console = first.console("web")?;
        let (_, gap_ms) = work(&mut self.console)?;
        ensure!(gap_ms > 0.0, "the guest saw no blackout");
        self.observers.wait_for_more()?;
        let (ping_gap_s, answers) = self.observers.ping.longest_gap_s()?;
        println!(
            "`{command}`: downtime {downtime}; blackout at most {gap_ms:.0} ms as the guest saw it, \
             {ping_gap_s:.2} s between two of {answers} answers to ping"
        );
        let end = Instant::now() + ACTION_LIMIT;
        // The round in which it moved, and a whole one after it.
        while work(&mut self.console)?.0 < before + 2 {
            ensure!(Instant::now() < end, "its work does not go on");
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }

    /// The id of the last task that has moved it.
    fn last_move(&self) -> Result<Option<String>> {
        let tasks = self.office.nodes[0].json("task list")?;
        let tasks = tasks.as_array().context("tasks")?;
        let moves = tasks.iter().filter(|task| {
            let kinds = ["migrate_guest", "drain_node"];
            kinds.iter().any(|kind| task["kind"] == *kind)
        });
        // They sort by age.
        let ids = moves.filter_map(|task| task["id"].as_str());
        Ok(ids.max().map(str::to_owned))
    }
}

/// The guest moves by each command, to that node.
fn guest_moves_under_load(name: &str, journey: &[(&str, &str)]) {
    let office = Office::new(name).unwrap();
    office.create_pool().unwrap();
    let mut console = create(&office).unwrap();
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let booted = check(&mut console, boot).unwrap();
    let numbers = format!("seq 1 {NUMBERS} >/var/www/html/numbers && mkdir /disk && sync");
    check(&mut console, &numbers).unwrap();
    check(&mut console, WORKLOAD).unwrap();
    check(&mut console, GAP_WATCH).unwrap();
    let host = office.lab.host().unwrap();
    let mut observers = Observers::start(&host).unwrap();
    observers.wait_for_more().unwrap();

    let mut guest = Traveller {
        office: &office,
        console,
        observers: &mut observers,
    };
    for (command, to) in journey {
        guest.travel(command, to).unwrap();
    }
    assert_eq!(check(&mut guest.console, boot).unwrap(), booted);
}

#[test]
#[ignore = "lab"]
fn debian_guest_moves_under_load_by_the_agent() {
    let journey = [("guest migrate web --to node2", "node2")];
    guest_moves_under_load("agent-moves", &journey);
}

#[test]
#[ignore = "lab"]
fn full_debian_guest_moves_under_load_and_its_node_is_drained() {
    let journey = [
        ("guest migrate web --to node2", "node2"),
        ("node drain node2", "node1"),
        ("node undrain node2", "node2"),
    ];
    guest_moves_under_load("agent-drain", &journey);
}
