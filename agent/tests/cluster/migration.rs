//! Guests that move from node to node, and what may go wrong on the way.

use std::fs;

use serde_json::Value;

use super::harness::{Site, VMM_USER, host_can};
use super::traveller::Traveller;

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
