//! The small office: seven servers on two nodes, one of which is maintained.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::page::Page;
use super::site::{LIMIT, OBSERVER, Site};

/// A server that the office needs.
struct Role {
    name: &'static str,
    node: &'static str,
    /// MiB that it works on.
    working_set_mib: u32,
    /// MiB of these that it writes in a second, and verifies.
    rate_mib_s: u32,
}

const fn role(name: &'static str, node: &'static str, ws: u32, rate: u32) -> Role {
    Role {
        name,
        node,
        working_set_mib: ws,
        rate_mib_s: rate,
    }
}

const ROLES: [Role; 7] = [
    role("web", "node1", 16, 2),
    role("app", "node1", 32, 10),
    role("db", "node1", 64, 20),
    role("proxy", "node1", 8, 1),
    role("firewall", "node2", 8, 1),
    role("storage", "node2", 32, 5),
    role("monitoring", "node2", 16, 2),
];
/// The one that moves while somebody pings it.
const MOVER: usize = 2;

/// Shows all of it; with `keep` it stays until somebody presses Enter.
pub(super) fn show(page: &Page, keep: bool) -> Result<()> {
    page.heading("A small office: two nodes, a shared directory as NAS, 1 Gbit/s between them");
    let start = Instant::now();
    let site = Site::start()?;
    page.step(
        start,
        "two agents run and are one cluster, with a real etcd",
    );
    let start = Instant::now();
    site.furnish()?;
    page.step(start, "pool nas and network lan are the same on both");
    let start = Instant::now();
    for (index, role) in ROLES.iter().enumerate() {
        create(&site, index, role)?;
    }
    for role in &ROLES {
        wait_for_beats(&site, role.name, |beats| !beats.is_empty())?;
    }
    page.step(start, "seven bare-metal guests write memory, and verify it");

    move_while_it_works(page, &site)?;
    page.heading("node1 is drained for its maintenance");
    let start = Instant::now();
    site.follow(page, "node drain node1")?;
    page.step(start, "node1 is empty");
    page.heading("What guests and nodes take");
    site.wait_for("figures of guests", "guest list", |guests| {
        let measured = |guest: &Value| !guest["usage"]["network_tx_kbit_per_s"].is_null();
        all(guests, measured)
    })?;
    site.wait_for("figures of nodes", "node list", |nodes| {
        let measured = |node: &Value| node["guests_running"] == node["guests"];
        all(nodes, measured)
    })?;
    for table in ["guest list", "node list"] {
        for line in site.pindah(table)?.lines() {
            page.line(line);
        }
    }
    page.heading("node1 is back");
    let start = Instant::now();
    site.follow(page, "node undrain node1")?;
    page.step(start, "its guests are there again");
    if keep {
        stay(page, &site)?;
    }
    let start = Instant::now();
    for role in &ROLES {
        site.pindah(&format!("guest delete {} --force --yes", role.name))?;
    }
    page.step(
        start,
        "all guests are deleted; nodes and networks end with this",
    );
    Ok(())
}

fn all(list: &Value, fits: impl Fn(&Value) -> bool) -> bool {
    list.as_array().is_some_and(|list| list.iter().all(fits))
}

fn address(index: usize) -> String {
    format!("10.20.0.{}", index + 1)
}

fn create(site: &Site, index: usize, role: &Role) -> Result<()> {
    let Role {
        name,
        node,
        working_set_mib,
        rate_mib_s,
    } = role;
    let words = format!(
        "ws_mib={working_set_mib} rate_mib_s={rate_mib_s} verify=1 beat_ms=200 gap_us=60000000 \
         net=1 ip={} peer={OBSERVER}",
        address(index)
    );
    site.pindah(&format!(
        "guest create {name} --memory 128M --kernel nas/pindah-probe --cmdline '{words}' \
         --disk 64M --pool nas --network lan --node {node} --start"
    ))?;
    Ok(())
}

fn move_while_it_works(page: &Page, site: &Site) -> Result<()> {
    let name = ROLES[MOVER].name;
    page.heading(&format!(
        "{name} moves to node2 while it works, and somebody pings it"
    ));
    let before = wait_for_beats(site, name, |beats| beats.len() > 2)?;
    let before = before.last().context("no beat before the move")?["runner"].clone();
    let address = address(MOVER);
    let mut ping = site.nodes[0].spawn(&["ping", "-n", "-i", "0.02", &address])?;
    ping.wait_for("replies", LIMIT, |output| {
        (replies(output).len() > 50).then_some(())
    })?;
    let idle = replies(ping.stdout()).len();
    let start = Instant::now();
    let task = site.follow(page, &format!("guest migrate {name} --to node2"))?;
    page.step(start, "moved, over TLS 1.3");
    let is_new = |beat: &&Value| beat["runner"] != before;
    let beats = wait_for_beats(site, name, |beats| beats.iter().filter(is_new).count() > 2)?;
    let first = beats
        .iter()
        .find(is_new)
        .context("no beat after the move")?;
    let ms = |value: &Value| value.as_f64().unwrap_or(f64::NAN) / 1e3;
    let downtime = ms(&task["result"]["downtime_us"]);
    page.fact("downtime", &format!("{downtime:.2} ms, as the VMM says"));
    let blackout = ms(&first["gap_max_us"]);
    page.fact(
        "blackout",
        &format!("{blackout:.2} ms, as the guest saw it"),
    );
    let bad: u64 = beats.iter().filter_map(|beat| beat["bad"].as_u64()).sum();
    let checked = &first["checked"];
    page.fact("verified", &format!("{checked} pages, {bad} bad"));
    ensure!(bad == 0, "the guest's memory is not what it wrote");
    let all = ping.wait_for("replies", LIMIT, |output| {
        let all = replies(output);
        (all.len() > idle + 100).then_some(all)
    })?;
    let (before, during) = all.split_at(idle);
    let worst = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    let (before, during) = (worst(before), worst(during));
    page.fact(
        "ping",
        &format!("at most {during:.1} ms; {before:.1} ms before"),
    );
    Ok(())
}

/// Milliseconds of each reply to ping.
fn replies(output: &[u8]) -> Vec<f64> {
    let text = String::from_utf8_lossy(output);
    let times = text
        .lines()
        .filter_map(|line| line.split_once("time=")?.1.split(' ').next());
    times.filter_map(|time| time.parse().ok()).collect()
}

/// Waits until what the guest has said of itself fits.
fn wait_for_beats(site: &Site, name: &str, fits: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
    let end = Instant::now() + LIMIT;
    loop {
        let log = site.pindah(&format!("guest log {name}"))?;
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let beats: Vec<Value> = lines.filter(|line: &Value| line["ev"] == "beat").collect();
        if fits(&beats) {
            return Ok(beats);
        }
        ensure!(Instant::now() < end, "guest {name} does not beat:\n{log}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn stay(page: &Page, site: &Site) -> Result<()> {
    let command = site.command_for_a_person();
    page.note("The office stays until you press Enter. Look around in another terminal:");
    for arguments in [
        "top",
        "guest list",
        "guest console web",
        "guest migrate web",
    ] {
        page.line(&format!("{command} {arguments}"));
    }
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}
