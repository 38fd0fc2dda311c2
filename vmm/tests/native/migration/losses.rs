//! Something breaks while a guest in hybrid mode has pages at its source that it needs.
//!
//! Before COMMIT nothing is lost. After RUNNING the guest needs both processes and the link: if one
//! of them goes, nobody runs it any more, and each process that is left says so, runs it by no
//! means, and ends when it is told to. A guest that is switched off then is not lost: it needs no
//! page any more.

use std::time::{Duration, Instant};

use pindah_vmm::migration::protocol::Kind;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::super::api_client::request;
use super::super::harness::{DEADLINE, Guest, Setup, kvm_opens};
use super::proxy::{Fate, Message, Moment, Proxy, Trigger};
use super::track::is_beat_of;
use super::{QUIET, Site};

const VM: &str = "/api/v1/vm";
/// Of `pindah-vmm send`.
const ARGUMENTS: &[&str] = &["--mode", "hybrid", "--bandwidth", "4M"];
/// So long nobody must hear of a guest that stands.
const QUIETNESS: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillSource,
    KillDestination,
    Cut,
}

/// What becomes of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// It runs the guest.
    Runs,
    /// It has ended.
    Gone,
    /// It stands still for good.
    Lost,
    /// It stands still since the other one may run the guest.
    InDoubt,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    at: (Kind, u32, Moment),
    fault: Fault,
    with_disk: bool,
    source: Side,
    destination: Side,
}

impl Case {
    fn run(&self) {
        println!("{self:?}");
        let site = Site::plain();
        let setup = setup(&site, self.with_disk);
        let mut source = setup.twin().start();
        source.wait_event("ready");
        let (mut destination, address) = site.receive(&setup);
        let (kind, nth, moment) = self.at;
        let trigger = Trigger {
            message: Message::Plain(kind),
            nth,
            moment,
        };
        let action = self.action(&source, &destination);
        let proxy = Proxy::start(address, false, trigger, action, None);
        let sent = site.send(&source, proxy.address(), ARGUMENTS).wait();
        assert!(proxy.has_fired(), "nothing broke: {sent:?}");
        assert_eq!(sent.status.code(), Some(1), "{sent:?}");
        check(&mut source, self.source);
        check(&mut destination, self.destination);
        if self.source == Side::Lost {
            let expected = "the guest is lost, and stands still here and there";
            assert!(sent.error.contains(expected), "{}", sent.error);
        }
        for (guest, side) in [
            (&mut source, self.source),
            (&mut destination, self.destination),
        ] {
            if side != Side::Gone {
                let (status, answer) = post(guest, "power-off", None);
                assert_eq!(status / 100, 2, "{answer}");
                assert_eq!(guest.wait_exit().code(), Some(0), "{}", guest.log());
            }
        }
    }

    fn action(
        &self,
        source: &Guest,
        destination: &Guest,
    ) -> impl Fn() -> Fate + Send + Sync + use<> {
        let fault = self.fault;
        let pid = |guest: &Guest| Pid::from_raw(guest.pid() as i32).expect("a process's id");
        let (source, destination) = (pid(source), pid(destination));
        move || {
            let kill = |process| kill_process(process, Signal::KILL).expect("it is not reaped yet");
            match fault {
                Fault::KillSource => kill(source),
                Fault::KillDestination => kill(destination),
                Fault::Cut => {}
            }
            Fate::Cut
        }
    }
}

/// A guest that writes more than the link carries.
fn setup(site: &Site, with_disk: bool) -> Setup {
    let mut cmdline =
        format!("{QUIET} beat_ms=20 cpus=2 ws_mib=16 rate_mib_s=16 content=random rewrite=1");
    let mut disk = String::new();
    if with_disk {
        cmdline += " blk=1 blk_op=verify blk_qd=8 blk_s=0 blk_iops=500";
        disk = site.raw_disk(8);
    }
    Setup::new(&cmdline)
        .memory_mib(64)
        .config("cpus = { count = 2 }")
        .table(&disk)
}

fn post(guest: &Guest, what: &str, body: Option<&Value>) -> (u16, Value) {
    request(&guest.path("api"), "POST", &format!("{VM}/{what}"), body)
}

fn check(guest: &mut Guest, side: Side) {
    match side {
        Side::Runs => {
            let pid = guest.pid();
            listen(guest);
            for _ in 0..5 {
                guest.wait_for("a beat", |line| is_beat_of(line, pid));
            }
            guest.command("verify");
            assert_eq!(guest.wait_event("verify")["bad_total"], 0);
        }
        Side::Gone => {
            let code = guest.wait_exit().code();
            assert!(matches!(code, None | Some(1)), "it ends with {code:?}");
        }
        Side::Lost | Side::InDoubt => {
            let cause = match side {
                Side::Lost => "postcopy_lost",
                _ => "in_doubt",
            };
            wait_for_cause(guest, cause);
            assert_stands(guest);
            let refusals: &[Option<Value>] = match side {
                // By no means.
                Side::Lost => &[None, Some(json!({ "force": true }))],
                _ => &[],
            };
            for body in refusals {
                let (status, answer) = post(guest, "resume", body.as_ref());
                assert_eq!(status, 409, "{answer}");
            }
            if side == Side::Lost {
                let (_, migration) = request(&guest.path("api"), "GET", "/api/v1/migrate", None);
                assert_eq!(migration["phase"], "lost", "{migration}");
                assert_eq!(post(guest, "reset", None).0, 409);
            }
        }
    }
}

fn wait_for_cause(guest: &mut Guest, cause: &str) {
    let end = Instant::now() + DEADLINE;
    loop {
        let (_, info) = request(&guest.path("api"), "GET", VM, None);
        if info["state"] == "paused" && info["pause_reason"]["cause"] == cause {
            return;
        }
        if Instant::now() > end {
            guest.fail(&format!("it is not {cause}: {info}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads what there is.
fn listen(guest: &mut Guest) -> usize {
    let (pid, mut beats) = (guest.pid(), 0);
    while let Ok(line) = guest.next_line(Instant::now()) {
        beats += usize::from(is_beat_of(&line, pid));
    }
    beats
}

fn assert_stands(guest: &mut Guest) {
    std::thread::sleep(QUIETNESS);
    listen(guest);
    std::thread::sleep(QUIETNESS);
    assert_eq!(listen(guest), 0, "it runs\n{}", guest.log());
}

fn run(cases: &[Case]) {
    if kvm_opens() {
        cases.iter().for_each(Case::run);
    }
}

#[test]
fn guest_that_misses_pages_stands_for_good_when_its_source_is_lost() {
    let lost = Case {
        at: (Kind::Want, 20, Moment::After),
        fault: Fault::Cut,
        with_disk: false,
        source: Side::Lost,
        destination: Side::Lost,
    };
    run(&[
        lost,
        Case {
            with_disk: true,
            ..lost
        },
        Case {
            fault: Fault::KillSource,
            source: Side::Gone,
            ..lost
        },
        Case {
            fault: Fault::KillDestination,
            destination: Side::Gone,
            with_disk: true,
            ..lost
        },
    ]);
}

#[test]
fn guest_that_is_switched_off_while_it_misses_pages_is_not_lost() {
    if !kvm_opens() {
        return;
    }
    let site = Site::plain();
    let setup = setup(&site, true);
    let mut source = setup.twin().start();
    source.wait_event("ready");
    let (mut destination, address) = site.receive(&setup);
    let trigger = Trigger {
        message: Message::Plain(Kind::Want),
        nth: 20,
        moment: Moment::After,
    };
    let api = destination.path("api");
    let switch_off = move || {
        let (status, answer) = request(&api, "POST", &format!("{VM}/power-off"), None);
        assert_eq!(status / 100, 2, "{answer}");
        Fate::Pass
    };
    let proxy = Proxy::start(address, false, trigger, switch_off, None);
    let sent = site.send(&source, proxy.address(), ARGUMENTS).wait();
    assert!(proxy.has_fired(), "it was never switched off: {sent:?}");
    assert_eq!(sent.status.code(), Some(0), "{sent:?}");
    assert_eq!(source.wait_exit().code(), Some(5), "{}", source.log());
    let code = destination.wait_exit().code();
    assert_eq!(code, Some(0), "{}", destination.log());
}

#[test]
fn guest_whose_word_that_it_runs_is_lost_runs_nowhere() {
    let doubtful = Case {
        at: (Kind::Running, 1, Moment::Before),
        fault: Fault::Cut,
        with_disk: false,
        source: Side::InDoubt,
        destination: Side::Lost,
    };
    run(&[
        doubtful,
        Case {
            with_disk: true,
            ..doubtful
        },
    ]);
}

#[test]
fn guest_that_is_about_to_leave_pages_behind_goes_on_when_something_breaks() {
    let stayed = |kind, fault, with_disk| Case {
        at: (kind, 1, Moment::Before),
        fault,
        with_disk,
        source: Side::Runs,
        destination: Side::Gone,
    };
    run(&[
        stayed(Kind::Leave, Fault::Cut, false),
        stayed(Kind::Dropped, Fault::KillDestination, false),
        // The disk's lock decides.
        stayed(Kind::State, Fault::Cut, true),
        stayed(Kind::Commit, Fault::Cut, true),
        stayed(Kind::Commit, Fault::KillDestination, true),
    ]);
}
