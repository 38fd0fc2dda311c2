//! What else can become of a migration: it is cancelled, refused, capped, repeated, or the guest
//! does something of its own meanwhile.

use std::time::{Duration, Instant};

use pindah_vmm::api::client::Client;
use pindah_vmm_api::EventKind;

use super::super::api_client::request;
use super::super::harness::{DEADLINE, Guest, Setup, kvm_opens};
use super::moves::Moved;
use super::track::{Track, is_beat_of};
use super::{QUIET, Site};

const VM: &str = "/api/v1/vm";
/// As in the tests of moves.
const PATIENT: [&str; 2] = ["--downtime-ms", "1000"];
/// So slow that there is time to do something meanwhile.
const SLOW: [&str; 4] = ["--downtime-ms", "1000", "--bandwidth", "2M"];

fn probe(cmdline: &str) -> Setup {
    Setup::new(&format!("{QUIET} {cmdline}"))
}

fn post(guest: &Guest, path: &str) {
    let (status, answer) = request(&guest.path("api"), "POST", path, None);
    assert_eq!(status / 100, 2, "{answer}\n{}", guest.log());
}

/// Waits until memory is being sent.
fn wait_for_precopy(guest: &Guest) {
    let end = Instant::now() + DEADLINE;
    loop {
        let (_, status) = request(&guest.path("api"), "GET", "/api/v1/migrate", None);
        if status["phase"] == "precopy" {
            return;
        }
        assert!(Instant::now() < end, "{status}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The guest goes on in the process that it was in.
fn assert_goes_on(guest: &mut Guest) {
    let pid = guest.pid();
    let beat = guest.wait_event("beat")["seq"].as_u64();
    guest.wait_for("another beat", |line| {
        is_beat_of(line, pid) && line["seq"].as_u64() > beat
    });
    guest.command("verify");
    assert_eq!(guest.wait_event("verify")["bad_total"], 0);
}

#[test]
fn guest_moves_to_and_fro() {
    if !kvm_opens() {
        return;
    }
    let site = Site::new();
    let setup = probe("ws_mib=16 rate_mib_s=20 cpus=2 blk=1 blk_op=verify blk_s=0 blk_iops=1000")
        .memory_mib(64)
        .config("cpus = { count = 2 }\nballoon = {}")
        .table(&site.raw_disk(16));
    let mut guest = setup.twin().start();
    guest.wait_event("blk");
    for number in 1..=5 {
        let (mut destination, address) = site.receive(&setup);
        let sent = site.send(&guest, address, &PATIENT).wait();
        let moved = Moved::check(&mut guest, &mut destination, sent);
        println!("move {number}                   {moved}");
        guest = destination;
    }
}

#[test]
fn cancelled_migration_leaves_the_guest_where_it_is() {
    if !kvm_opens() {
        return;
    }
    let site = Site::new();
    let setup = probe("ws_mib=32 rate_mib_s=10 content=random").memory_mib(64);
    let mut source = setup.twin().start();
    source.wait_event("ready");
    let (mut destination, address) = site.receive(&setup);
    let sending = site.send(&source, address, &SLOW);
    wait_for_precopy(&source);
    sending.interrupt();
    let sent = sending.wait();
    assert_eq!(sent.status.code(), Some(1), "{sent:?}");
    let expected = "the guest goes on here: cancelled";
    assert!(sent.error.contains(expected), "{}", sent.error);
    assert_eq!(destination.wait_exit().code(), Some(1));
    let log = destination.log();
    assert!(log.contains("the source gave up: cancelled"), "{log}");
    assert_goes_on(&mut source);

    // And it can still move.
    let (mut destination, address) = site.receive(&setup);
    let sent = site.send(&source, address, &PATIENT).wait();
    Moved::check(&mut source, &mut destination, sent);
}

#[test]
fn paused_guest_moves_and_stays_paused() {
    if !kvm_opens() {
        return;
    }
    let site = Site::new();
    let setup = probe("ws_mib=16 rate_mib_s=10").memory_mib(64);
    let mut source = setup.twin().start();
    source.wait_event("ready");
    post(&source, &format!("{VM}/pause"));
    let (mut destination, address) = site.receive(&setup);
    let sent = site.send(&source, address, &PATIENT).wait();
    assert!(sent.status.success(), "{sent:?}\n{}", source.log());
    assert_eq!(source.wait_exit().code(), Some(5));
    let (_, info) = request(&destination.path("api"), "GET", VM, None);
    assert_eq!(info["state"], "paused", "{info}");
    let exits = |guest: &Guest| {
        let (_, metrics) = request(&guest.path("api"), "GET", "/api/v1/metrics", None);
        metrics["vcpus"][0]["exits"].clone()
    };
    let before = exits(&destination);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(exits(&destination), before, "it runs");
    post(&destination, &format!("{VM}/resume"));
    let mut track = Track::of_arrival(&mut destination);
    assert_eq!(
        track.runners(),
        [source.pid(), destination.pid()].map(u64::from)
    );
    track.verify(&mut destination);
    track.assert_whole();
}

#[test]
fn guest_that_resets_itself_on_its_way_starts_anew_and_moves() {
    if !kvm_opens() {
        return;
    }
    let site = Site::new();
    let setup = probe("ws_mib=8 rate_mib_s=1 cpus=2")
        .memory_mib(64)
        .config("cpus = { count = 2 }");
    let mut source = setup.twin().start();
    source.wait_event("ready");
    let (mut destination, address) = site.receive(&setup);
    let arguments = [
        "--bandwidth",
        "256K",
        "--compression",
        "none",
        "--verify-memory",
    ];
    let arguments = [&PATIENT[..], &arguments].concat();
    let sending = site.send(&source, address, &arguments);
    wait_for_precopy(&source);
    for _ in 0..2 {
        source.command("reset");
        source.wait_event("ready");
    }
    let sent = sending.wait();
    let logs = format!("{}\n{}", source.log(), destination.log());
    assert!(sent.status.success(), "{sent:?}\n{logs}");
    assert_eq!(source.wait_exit().code(), Some(5), "{logs}");
    let mut track = Track::of_arrival(&mut destination);
    track.verify(&mut destination);
    // And where it has come to.
    destination.command("reset");
    destination.wait_event("ready");
    assert_goes_on(&mut destination);
}

#[test]
fn unlike_destination_refuses_at_once_and_names_what_differs() {
    if !kvm_opens() {
        return;
    }
    let site = Site::new();
    let disk = site.raw_disk(16);
    let base = || probe("ws_mib=4 cpus=2");
    let setup = base()
        .memory_mib(64)
        .config("cpus = { count = 2 }\nballoon = {}")
        .table(&disk);
    let mut source = setup.twin().start();
    source.wait_event("ready");
    let two = "cpus = { count = 2 }\nballoon = {}";
    let unlike = [
        (
            base().memory_mib(96).config(two).table(&disk),
            "memory.size_mib is 64 at the source and 96 here",
        ),
        (
            base().memory_mib(64).config("balloon = {}").table(&disk),
            "cpus.count is 2 at the source and 1 here",
        ),
        (
            base().memory_mib(64).config(two),
            "the number of disks is 1 at the source and 0 here",
        ),
        (
            base()
                .memory_mib(64)
                .config("cpus = { count = 2 }")
                .table(&disk),
            "a balloon is true at the source and false here",
        ),
        (
            base()
                .memory_mib(64)
                .config(&format!("{two}\nrng = false"))
                .table(&disk),
            "rng is true at the source and false here",
        ),
    ];
    for (unlike, expected) in unlike {
        refuse_within_a_second(&site, &source, &unlike, expected);
    }
    let stood = pauses(&source);
    assert_eq!(stood, 0, "the guest stood {stood} times");
    assert_goes_on(&mut source);
}

/// Three times, since the host may have been busy with something else.
fn refuse_within_a_second(site: &Site, source: &Guest, unlike: &Setup, expected: &str) {
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let (mut destination, address) = site.receive(unlike);
        let sent = site.send(source, address, &PATIENT).wait();
        assert_eq!(sent.status.code(), Some(1), "{sent:?}");
        assert!(sent.error.contains(expected), "{}", sent.error);
        assert_eq!(destination.wait_exit().code(), Some(1));
        fastest = fastest.min(sent.took);
        if fastest < Duration::from_secs(1) {
            return;
        }
    }
    panic!("{expected}: said only after {fastest:?}");
}

/// How often the guest has stood so far.
fn pauses(guest: &Guest) -> usize {
    let (_, metrics) = request(&guest.path("api"), "GET", "/api/v1/vm", None);
    assert_eq!(metrics["state"], "running");
    let client = Client::connect(&guest.path("api")).expect("the API listens");
    let events = client.events(Some(0)).expect("the API tells events");
    let kinds = events.map(|event| event.expect("the VMM lives").kind);
    let mut failures = 0;
    // The last refusal is the fifth at least.
    kinds
        .take_while(|kind| {
            failures += usize::from(matches!(kind, EventKind::MigrationFailed { .. }));
            failures < 5
        })
        .filter(|kind| matches!(kind, EventKind::Paused { .. }))
        .count()
}

/// Bytes a second.
const CAP: f64 = (8 << 20) as f64;

#[test]
fn bandwidth_cap_holds() {
    if !kvm_opens() {
        return;
    }
    let site = Site::new();
    let setup = probe("ws_mib=32 content=random").memory_mib(64);
    let mut source = setup.twin().start();
    source.wait_event("ready");
    let (mut destination, address) = site.receive(&setup);
    let arguments = [&PATIENT[..], &["--bandwidth", "8M"]].concat();
    let sent = site.send(&source, address, &arguments).wait();
    let moved = Moved::check(&mut source, &mut destination, sent);
    println!("capped to 8 MiB/s        {moved}");
    let report = &moved.report;
    assert!(report.sent_bytes > 32 << 20, "{report:?}");
    let rate = report.sent_bytes as f64 / (report.total_ms as f64 / 1e3);
    assert!(rate <= CAP * 1.1, "{rate} bytes/s: {report:?}");
}

#[test]
fn stranger_gets_no_guest() {
    if !kvm_opens() {
        return;
    }
    let (site, stranger, plain) = (Site::new(), Site::new(), Site::plain());
    let setup = probe("ws_mib=4").memory_mib(64);
    let mut source = setup.twin().start();
    source.wait_event("ready");
    let (mut destination, address) = site.receive(&setup);
    for other in [&stranger, &plain] {
        let sent = other.send(&source, address, &PATIENT).wait();
        assert_eq!(sent.status.code(), Some(1), "{sent:?}");
        assert!(sent.error.contains("goes on here"), "{}", sent.error);
    }
    assert_goes_on(&mut source);
    // Whoever was sent away does not keep the right one from coming.
    let sent = site.send(&source, address, &PATIENT).wait();
    Moved::check(&mut source, &mut destination, sent);
}
