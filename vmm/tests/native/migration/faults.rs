//! Something breaks at each message of the protocol, and exactly one process runs the guest.
//!
//! What a VMM says of itself decides nothing here: the guest's heartbeats carry the process that
//! runs them. A guest may stand still in doubt only if what broke did so between COMMIT and its
//! answer, and it may be lost only with the process that was to run it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpStream};
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Instant;

use pindah_vmm::api::client::Client;
use pindah_vmm::migration::protocol::Kind;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use super::super::harness::{Guest, Setup, kvm_opens};
use super::proxy::{Fate, Message, Moment, Proxy, Trigger, Way};
use super::verdict::{Known, Outcome, Verdict, judge};
use super::{QUIET, Site};

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillSource,
    KillDestination,
    Cut,
    Stall,
    Corrupt,
    Cancel,
    /// The destination gets no memory any more.
    Starve,
    /// Another process has the lock of the disk's image when the destination wants it.
    HoldLock,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    trigger: Trigger,
    fault: Fault,
    with_disk: bool,
}

impl Case {
    fn new(kind: Kind, nth: u32, moment: Moment, fault: Fault, with_disk: bool) -> Self {
        Self {
            trigger: Trigger {
                message: Message::Plain(kind),
                nth,
                moment,
            },
            fault,
            with_disk,
        }
    }

    /// What the source sends from here to COMMIT it sends without waiting for anything.
    fn is_last_burst(&self) -> bool {
        let burst = [Kind::Flush, Kind::State].map(Message::Plain);
        burst.contains(&self.trigger.message)
    }

    fn encrypted(&self) -> bool {
        matches!(self.trigger.message, Message::Record(_))
    }

    /// Breaks it, and says who has the guest then.
    fn run(&self) -> Verdict {
        let mut site = if self.encrypted() {
            Site::new()
        } else {
            Site::plain()
        };
        // After a greeting that nobody understands it waits for another one.
        site.patience_s = 15;
        site.address = own_address();
        let setup = self.setup(&site);
        let mut source = setup.twin().start();
        source.wait_event("ready");
        let (destination, address) = site.receive(&setup);
        let action = self.action(&site, &source, &destination);
        let release = (self.fault == Fault::HoldLock).then(|| {
            let image = site.directory.path().join("disk.img");
            Box::new(move || locks::release(&image)) as Box<dyn Fn() + Send + Sync>
        });
        let proxy = Proxy::start(address, self.encrypted(), self.trigger, action, release);
        let arguments = ["--downtime-ms", "2000", "--verify-memory"];
        let sent = site.send(&source, proxy.address(), &arguments).wait();
        // A message of which there are too few.
        assert!(proxy.has_fired(), "nothing broke: {sent:?}");
        let known = |proxy: &Proxy| Known {
            killed_source: self.fault == Fault::KillSource,
            killed_destination: matches!(self.fault, Fault::KillDestination | Fault::Starve),
            has_disk: self.with_disk,
            tells: !self.encrypted(),
            commit_came: proxy.commit_came() || self.is_last_burst(),
            commit_passed: proxy.commit_passed(),
            running_passed: proxy.running_passed(),
        };
        let verdict = judge(source, destination, &proxy, known);
        drop(proxy);
        let left = TcpStream::connect(address);
        assert!(left.is_err(), "somebody still listens on {address}");
        verdict
    }

    fn setup(&self, site: &Site) -> Setup {
        let mut cmdline = format!("{QUIET} beat_ms=20 ws_mib=8 rate_mib_s=10 content=random");
        let mut disk = String::new();
        if self.with_disk {
            cmdline += " blk=1 blk_op=verify blk_qd=8 blk_s=0 blk_iops=500";
            disk = site.raw_disk(8);
        }
        Setup::new(&cmdline).memory_mib(64).table(&disk)
    }

    fn action(
        &self,
        site: &Site,
        source: &Guest,
        destination: &Guest,
    ) -> impl Fn() -> Fate + Send + Sync + use<> {
        let (fault, api) = (self.fault, source.path("api"));
        let image = site.directory.path().join("disk.img");
        let pid = |guest: &Guest| Pid::from_raw(guest.pid() as i32).expect("a process's id");
        let (source, destination) = (pid(source), pid(destination));
        let is_before = self.trigger.moment == Moment::Before;
        move || {
            match fault {
                Fault::KillSource => kill(source),
                Fault::KillDestination => kill(destination),
                Fault::Cut => return Fate::Cut,
                Fault::Stall => return Fate::Stall,
                Fault::Corrupt => return Fate::Corrupt,
                Fault::Cancel => cancel(&api),
                Fault::Starve => starve(destination),
                Fault::HoldLock => locks::hold(&image),
            }
            // What a host that dies has not sent is lost.
            let dies = matches!(fault, Fault::KillSource | Fault::KillDestination);
            if dies && is_before {
                Fate::Cut
            } else {
                Fate::Pass
            }
        }
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Trigger {
            message,
            nth,
            moment,
        } = self.trigger;
        let disk = if self.with_disk { "with" } else { "without" };
        let fault = self.fault;
        write!(f, "{fault:?} {moment:?} {message:?} {nth}, {disk} a disk")
    }
}

/// An address of this host that no other case has: what listens there is this one's.
fn own_address() -> Ipv4Addr {
    static LAST: AtomicU16 = AtomicU16::new(1);
    let [high, low] = LAST.fetch_add(1, Ordering::SeqCst).to_be_bytes();
    Ipv4Addr::new(127, 1, high, low)
}

fn kill(process: Pid) {
    kill_process(process, Signal::KILL).expect("it is not reaped before the test says so");
}

fn cancel(api: &std::path::Path) {
    let client = Client::connect(api);
    // It may be too late, and the VMM may be about to end.
    let _ = client.and_then(|mut client| client.command::<()>("DELETE", "/api/v1/migrate", None));
}

fn starve(process: Pid) {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    prlimit(Some(process), Resource::As, none).expect("it is not reaped before the test says so");
}

/// A lock on an image, held by this process.
mod locks {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;

    use rustix::fs::{FlockOperation, fcntl_lock};

    static HELD: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());

    pub fn hold(image: &Path) {
        let file = File::options().read(true).write(true).open(image);
        let file = file.expect("the image is there");
        let exclusive = FlockOperation::NonBlockingLockExclusive;
        fcntl_lock(&file, exclusive).expect("the source has given it up");
        HELD.lock().unwrap().insert(image.to_owned(), file);
    }

    pub fn release(image: &Path) {
        HELD.lock().unwrap().remove(image);
    }
}

/// Runs all cases, several at a time, and tells how many ended how.
fn run(name: &str, cases: &[Case], threads: usize) {
    if !kvm_opens() {
        return;
    }
    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let counts = Mutex::new(BTreeMap::<Outcome, usize>::new());
    let (rolled_back, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let began = Instant::now();
                    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| case.run()));
                    let took = began.elapsed().as_secs_f64();
                    if let Ok(verdict) = outcome {
                        println!("{case}: {verdict}, {took:.1} s");
                        *counts.lock().unwrap().entry(verdict.outcome).or_default() += 1;
                        let back = usize::from(verdict.rolled_back);
                        rolled_back.fetch_add(back, Ordering::SeqCst);
                    } else {
                        println!("{case}: FAILED, {took:.1} s");
                        failed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    let counts = counts.into_inner().unwrap();
    let (rolled_back, failed) = (rolled_back.into_inner(), failed.into_inner());
    let seconds = start.elapsed().as_secs();
    let total = cases.len();
    println!(
        "{name}: {total} faults in {seconds} s: {counts:?}; {rolled_back} guests went on at the \
         source after they had begun at the destination; {failed} cases failed"
    );
    assert_eq!(failed, 0, "{failed} of {total} cases");
}

const BOTH: [Moment; 2] = [Moment::Before, Moment::After];

/// Every message of a migration, in the order in which they come.
const MESSAGES: [(Kind, u32); 13] = [
    (Kind::Hello, 1),
    (Kind::Welcome, 1),
    (Kind::Rehearse, 1),
    (Kind::Rehearsed, 1),
    (Kind::Pages, 1),
    (Kind::Ack, 1),
    (Kind::Pages, 12),
    (Kind::Ack, 4),
    (Kind::Flush, 1),
    (Kind::State, 1),
    (Kind::Commit, 1),
    (Kind::Running, 1),
    (Kind::Pages, 20),
];

/// All faults but those that only a deadline ends.
const QUICK: [Fault; 6] = [
    Fault::KillSource,
    Fault::KillDestination,
    Fault::Cut,
    Fault::Corrupt,
    Fault::Cancel,
    Fault::Starve,
];

fn matrix(messages: &[(Kind, u32)], faults: &[Fault], disks: &[bool]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(kind, nth) in messages {
        for moment in BOTH {
            for &fault in faults {
                // Afterwards it would be the next message's.
                if fault == Fault::Corrupt && moment == Moment::After {
                    continue;
                }
                let of = |&with_disk| Case::new(kind, nth, moment, fault, with_disk);
                cases.extend(disks.iter().map(of));
            }
        }
    }
    cases
}

/// Bits of TLS records, which tell nobody what they hold.
fn records(numbers: &[u32]) -> Vec<Case> {
    let mut cases = Vec::new();
    for way in [Way::ControlOut, Way::ControlBack, Way::DataOut] {
        for &nth in numbers {
            let trigger = Trigger {
                message: Message::Record(way),
                nth,
                moment: Moment::Before,
            };
            cases.push(Case {
                trigger,
                fault: Fault::Corrupt,
                with_disk: false,
            });
        }
    }
    cases
}

#[test]
fn fault_at_the_point_of_no_return_leaves_one_runner() {
    let messages = [(Kind::State, 1), (Kind::Commit, 1), (Kind::Running, 1)];
    let faults = [Fault::KillSource, Fault::KillDestination, Fault::Cut];
    run("no return", &matrix(&messages, &faults, &[false, true]), 2);
}

#[test]
fn fault_on_the_way_leaves_the_guest_where_it_is() {
    let faults = [Fault::KillDestination, Fault::Cut, Fault::Cancel];
    let mut cases = matrix(&[(Kind::Pages, 12)], &faults, &[true]);
    let early = [(Kind::Hello, 1), (Kind::Rehearse, 1)];
    cases.extend(matrix(&early, &[Fault::Cancel], &[false]));
    cases.extend(matrix(&[(Kind::State, 1)], &[Fault::Starve], &[false]));
    let corrupted = [(Kind::Rehearsed, 1), (Kind::Flush, 1), (Kind::Running, 1)];
    cases.extend(matrix(&corrupted, &[Fault::Corrupt], &[false]));
    cases.extend(records(&[4]));
    run("on the way", &cases, 2);
}

#[test]
fn destination_that_does_not_get_the_lock_gives_the_guest_back() {
    let case = Case::new(Kind::Commit, 1, Moment::Before, Fault::HoldLock, true);
    run("disk lock", &[case], 1);
}

#[test]
#[ignore = "some ten minutes: ci/test --full"]
fn full_matrix_of_faults() {
    let mut cases = matrix(&MESSAGES, &QUICK, &[false, true]);
    cases.extend(records(&[1, 2, 3, 4, 5, 6]));
    run("all faults", &cases, 3);
}

#[test]
#[ignore = "ended by the protocol's own deadlines: ci/test --full"]
fn full_matrix_of_stalls() {
    let cases = matrix(&MESSAGES, &[Fault::Stall], &[false, true]);
    run("stalls", &cases, 8);
}
