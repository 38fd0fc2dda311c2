//! Both sides over loopback TCP, with guests that need no KVM.

mod fake;
mod postcopy;

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pindah_vmm_api::{MigrateRequest, MigrationMode, MigrationPhase, MigrationReport, PauseReason};

use super::destination::{self, Incoming, Postcopier, ReceiveError};
use super::priority::Priority;
use super::progress::Progress;
use super::protocol::Running;
use super::source::{self, EncodingThread, Links, MigrationError};
use super::tls::Identity;
use super::wait::Cancel;
use crate::memory::userfault::Userfault;
use crate::vm::migratable::MigrationSource;
use fake::{Fake, Record};

const PATIENCE: Duration = Duration::from_secs(60);

/// Both sides, and what they do to each other.
struct Rig {
    record: Arc<Record>,
    source: Fake,
    destination: Fake,
    request: MigrateRequest,
    connections: u8,
    lacks_postcopy: bool,
    outgoing: Progress,
}

type Outcome = (
    Result<MigrationReport, MigrationError>,
    Result<Running, ReceiveError>,
);

impl Rig {
    fn new() -> Self {
        let record = Record::held_by("source");
        Self {
            source: Fake::new("source", &record),
            destination: Fake::new("destination", &record),
            record,
            request: MigrateRequest {
                timeout_s: 60,
                verify_memory: true,
                ..MigrateRequest::default()
            },
            connections: 1,
            lacks_postcopy: false,
            outgoing: Progress::new(Cancel::new().unwrap()),
        }
    }

    /// With content in some pages, the last ones of each region among them.
    fn with_content(self) -> Self {
        for page in (0..2048_u64).step_by(3) {
            let bytes: Vec<u8> = (0..4096_u64).map(|at| (at * page % 251) as u8).collect();
            self.source.write(page * 4096, &bytes);
        }
        self.source.write((1 << 32) + (2 << 20) + 4096, &[7; 4096]);
        self
    }

    /// Moves the guest, while `meanwhile` runs beside until the source has ended.
    fn run(&self, meanwhile: impl Fn(&Fake) + Send + Sync) -> Outcome {
        self.run_both(meanwhile, rest)
    }

    /// The same, with something that the guest does where it has come.
    fn run_both(
        &self,
        meanwhile: impl Fn(&Fake) + Send + Sync,
        there: impl Fn(&Fake) + Send + Sync,
    ) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            let receiver = scope.spawn(move || {
                let progress = Progress::new(Cancel::new().unwrap());
                let incoming = self.incoming(listener);
                let priority = Priority::default();
                destination::receive(&self.destination, incoming, priority, &progress)
            });
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    meanwhile(&self.source);
                }
            });
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    if self.destination.is_running() {
                        there(&self.destination);
                    } else {
                        rest(&self.destination);
                    }
                }
            });
            let connect = || TcpStream::connect(address).unwrap();
            let links = Links {
                control: connect(),
                data: (0..self.connections).map(|_| connect()).collect(),
                urgent: (self.request.mode == MigrationMode::Hybrid).then(connect),
                identity: Identity::Plain,
                encoding: &EncodingThread::spawn().unwrap(),
            };
            let sent = source::migrate(
                &self.source,
                &self.request,
                links,
                Priority::default(),
                &self.outgoing,
            );
            done.store(true, std::sync::atomic::Ordering::SeqCst);
            (sent, receiver.join().unwrap())
        })
    }

    fn incoming(&self, listener: TcpListener) -> Incoming {
        Incoming {
            listener,
            identity: Identity::Plain,
            timeout: PATIENCE,
            postcopier: self.postcopier(),
        }
    }

    fn postcopier(&self) -> Option<Postcopier> {
        (!self.lacks_postcopy).then(|| Postcopier::spawn(Userfault::open()).unwrap())
    }

    fn assert_moved(&self) {
        assert!(!self.source.is_running() && self.destination.is_running());
        assert!(self.source.content() == self.destination.content());
        assert_eq!(self.record.holder(), Some("destination"));
    }

    fn assert_stayed(&self) {
        assert!(self.source.is_running() && !self.destination.is_running());
        assert_eq!(self.record.holder(), Some("source"));
    }
}

fn rest(_: &Fake) {
    thread::sleep(Duration::from_millis(1));
}

#[test]
fn idle_guest_moves_with_its_memory() {
    let rig = Rig::new().with_content();
    let (sent, received) = rig.run(rest);
    let report = sent.unwrap();
    received.unwrap();
    rig.assert_moved();
    assert!(report.downtime_us > 0 && report.sent_bytes > 0);
    assert!(report.pages.zero_pages > 1000, "{report:?}");
    assert_eq!(rig.destination.restored.lock().unwrap().len(), 2);
    assert_eq!(rig.outgoing.status().phase, MigrationPhase::Completed);
}

#[test]
fn writing_guest_moves_with_its_memory_over_several_connections() {
    let mut rig = Rig::new().with_content();
    rig.connections = 3;
    let count = std::sync::atomic::AtomicU64::new(1);
    let (sent, received) = rig.run(|guest| {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        guest.write(
            (number * 0x9e37_79b9 % (8 << 20)) & !7,
            &number.to_le_bytes(),
        );
        thread::sleep(Duration::from_micros(50));
    });
    sent.unwrap();
    received.unwrap();
    rig.assert_moved();
}

#[test]
fn paused_guest_stays_paused_where_it_goes_for_the_same_reason() {
    let failed = |message: &str, no_space| PauseReason::Device {
        id: "disk0".to_owned(),
        message: message.to_owned(),
        no_space,
    };
    // What somebody else says may be as long as they like.
    let (long, short) = ("é".repeat(2000), "é".repeat(128));
    for (reason, expected) in [
        (PauseReason::Requested, PauseReason::Requested),
        (failed("EIO", false), failed("EIO", false)),
        (failed(&long, true), failed(&short, true)),
    ] {
        let rig = Rig::new().with_content();
        rig.source
            .running
            .store(false, std::sync::atomic::Ordering::SeqCst);
        *rig.source.stands.lock().unwrap() = Some(reason);
        let (sent, received) = rig.run(rest);
        sent.unwrap();
        received.unwrap();
        assert!(!rig.source.is_running() && !rig.destination.is_running());
        assert_eq!(rig.destination.pause_reason(), Some(expected));
        assert_eq!(rig.record.holder(), Some("destination"));
    }
}

#[test]
fn destination_that_does_not_take_the_state_refuses_before_the_pause() {
    let mut rig = Rig::new().with_content();
    rig.destination.refuse_restore_from = Some(0);
    let (sent, received) = rig.run(rest);
    let error = sent.unwrap_err().to_string();
    assert!(error.contains("MSR 0x10a is unknown here"), "{error}");
    assert!(received.is_err());
    rig.assert_stayed();
}

#[test]
fn destination_that_fails_after_commit_gives_the_guest_back() {
    let mut rig = Rig::new().with_content();
    rig.destination.refuse_restore_from = Some(1);
    let (sent, received) = rig.run(rest);
    assert!(matches!(sent, Err(MigrationError::Refused(_))), "{sent:?}");
    assert!(matches!(received, Err(ReceiveError::Machine(_))));
    rig.assert_stayed();
}

#[test]
fn cancelled_migration_leaves_the_guest_where_it_is() {
    let mut rig = Rig::new().with_content();
    rig.request.bandwidth_bytes_per_s = Some(100 << 10);
    let (sent, received) = thread::scope(|scope| {
        scope.spawn(|| {
            while rig.outgoing.status().phase != MigrationPhase::Precopy {
                rest(&rig.source);
            }
            rig.outgoing.set_cancelled().unwrap();
        });
        rig.run(rest)
    });
    assert!(matches!(sent, Err(MigrationError::Cancelled)), "{sent:?}");
    assert!(
        matches!(received, Err(ReceiveError::Cancelled(_))),
        "{received:?}"
    );
    rig.assert_stayed();
}

#[test]
fn guest_that_never_converges_is_held_and_given_up_in_time() {
    let mut rig = Rig::new().with_content();
    rig.request.bandwidth_bytes_per_s = Some(4 << 20);
    rig.request.downtime_target_ms = 1;
    rig.request.timeout_s = 6;
    let words = std::sync::atomic::AtomicU64::new(1);
    let (sent, _) = rig.run(|guest| write_noise(guest, &words, 512));
    assert!(
        matches!(sent, Err(MigrationError::GivenUp { .. })),
        "{sent:?}"
    );
    rig.assert_stayed();
}

/// Content that neither a codec nor a difference makes less of, from the start of RAM on.
fn write_noise(guest: &Fake, words: &std::sync::atomic::AtomicU64, pages: u64) {
    let mut word = words.load(std::sync::atomic::Ordering::SeqCst);
    for page in 0..pages {
        let mut bytes = [0; 4096];
        for eight in bytes.as_chunks_mut().0 {
            word = word.wrapping_mul(6364136223846793005).wrapping_add(1);
            *eight = word.rotate_left(32).to_le_bytes();
        }
        guest.write(page * 4096, &bytes);
    }
    words.store(word, std::sync::atomic::Ordering::SeqCst);
}
