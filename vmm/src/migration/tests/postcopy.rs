//! Hybrid mode, with real faults on the memory of guests that need no KVM.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use pindah_vmm_api::MigrationMode;

use super::*;
use crate::migration::connection::Connection;
use crate::migration::left;
use crate::migration::pending::Pending;
use crate::migration::protocol::{
    Channel, Commit, Dropped, Fetched, Hello, Kind, Preamble, VERSION, Welcome,
};
use crate::vm::migratable::{Migratable, MigrationSource};

fn rig() -> Option<Rig> {
    if let Err(error) = Userfault::open() {
        eprintln!("skipped: {error}");
        return None;
    }
    let mut rig = Rig::new().with_content();
    rig.request.mode = MigrationMode::Hybrid;
    Some(rig)
}

/// Slower than the guest writes.
fn on_a_slow_link(mut rig: Rig) -> Rig {
    rig.request.bandwidth_bytes_per_s = Some(4 << 20);
    rig.request.downtime_target_ms = 10;
    rig
}

#[test]
fn guest_that_writes_too_fast_leaves_pages_behind_and_gets_them() {
    let Some(rig) = rig().map(on_a_slow_link) else {
        return;
    };
    let (words, reads) = (AtomicU64::new(1), AtomicU64::new(0));
    let (sent, received) = rig.run_both(
        |guest| write_noise(guest, &words, 512),
        |guest| {
            let number = reads.fetch_add(1, Ordering::SeqCst);
            guest.read((number * 0x9e37_79b9 % (8 << 20)) & !7);
            thread::sleep(Duration::from_micros(300));
        },
    );
    let report = sent.unwrap();
    received.unwrap();
    rig.assert_moved();
    assert_eq!(report.throttle_percent, 0);
    assert_eq!(rig.source.holds.load(Ordering::SeqCst), 0);
    let postcopy = report.postcopy.expect("it left pages behind");
    assert!(postcopy.pages > 100, "{postcopy:?}");
    assert!(postcopy.demanded_pages > 0, "{postcopy:?}");
    assert!(postcopy.fault_max_us >= postcopy.fault_median_us);
    assert!(postcopy.fault_median_us > 0, "{postcopy:?}");
    assert!(u128::from(report.downtime_us) < 2_000_000, "{report:?}");
    assert_eq!(rig.outgoing.status().phase, MigrationPhase::Completed);
}

#[test]
fn guest_that_ends_before_its_pages_have_come_needs_them_no_more() {
    let Some(rig) = rig().map(on_a_slow_link) else {
        return;
    };
    let words = AtomicU64::new(1);
    let (sent, received) = rig.run_both(
        |guest| write_noise(guest, &words, 512),
        |guest| guest.ended.store(true, Ordering::SeqCst),
    );
    assert!(sent.unwrap().postcopy.is_some());
    received.unwrap();
    assert_eq!(rig.outgoing.status().phase, MigrationPhase::Completed);
    assert!(!rig.destination.lost.load(Ordering::SeqCst));
}

#[test]
fn page_that_restoring_needs_comes_before_the_guest_runs() {
    let Some(mut rig) = rig().map(on_a_slow_link) else {
        return;
    };
    rig.connections = 2;
    rig.destination.read_in_restore = Some(4096);
    let words = AtomicU64::new(1);
    let (sent, received) = rig.run(|guest| write_noise(guest, &words, 512));
    let report = sent.unwrap();
    received.unwrap();
    rig.assert_moved();
    assert!(report.postcopy.expect("it left pages behind").pages > 0);
}

#[test]
fn guest_that_writes_little_leaves_nothing_behind() {
    let Some(rig) = rig() else { return };
    let count = AtomicU64::new(1);
    let (sent, received) = rig.run(|guest| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        guest.write(number * 4096 % (1 << 20), &number.to_le_bytes());
        rest(guest);
    });
    let report = sent.unwrap();
    received.unwrap();
    rig.assert_moved();
    assert_eq!(report.postcopy, None);
}

#[test]
fn destination_that_cannot_do_it_refuses_before_the_guest_stands() {
    let mut rig = Rig::new().with_content();
    rig.request.mode = MigrationMode::Hybrid;
    rig.lacks_postcopy = true;
    let (sent, received) = rig.run(rest);
    let error = sent.unwrap_err().to_string();
    assert!(error.contains("no hybrid mode on this machine"), "{error}");
    assert!(matches!(received, Err(ReceiveError::NoPostcopy(_))));
    assert!(rig.destination.restored.lock().unwrap().is_empty());
    rig.assert_stayed();
}

#[test]
fn destination_that_fails_after_commit_gives_a_guest_that_left_pages_back() {
    let Some(mut rig) = rig().map(on_a_slow_link) else {
        return;
    };
    rig.destination.refuse_restore_from = Some(1);
    let words = AtomicU64::new(1);
    let (sent, received) = rig.run(|guest| write_noise(guest, &words, 512));
    assert!(matches!(sent, Err(MigrationError::Refused(_))), "{sent:?}");
    assert!(matches!(received, Err(ReceiveError::Machine(_))));
    rig.assert_stayed();
}

/// A source that says what a test wants.
struct Script {
    control: Connection,
    data: Connection,
    urgent: Connection,
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

impl Script {
    fn connect(address: std::net::SocketAddr, guest: &Fake) -> Self {
        let cancel = Cancel::new().unwrap();
        let open = |channel| {
            let preamble = Preamble {
                version: VERSION,
                channel,
                number: 0,
                migration: [1; 16],
            };
            let stream = TcpStream::connect(address).unwrap();
            Connection::connect(stream, &Identity::Plain, None, preamble, soon(), &cancel).unwrap()
        };
        let mut script = Self {
            control: open(Channel::Control),
            data: open(Channel::Data),
            urgent: open(Channel::Urgent),
        };
        let hello = Hello {
            vmm_version: "1".to_owned(),
            config: MigrationSource::config(guest).clone(),
            regions: fake::RANGES
                .map(|(start, bytes)| (start.0, bytes as u64))
                .into(),
            data_connections: 1,
            verify_memory: false,
            may_leave_pages: true,
        };
        script.say(Kind::Hello, &hello);
        let welcome: Welcome = script.hear(Kind::Welcome);
        assert!(welcome.may_leave_pages);
        script.state(guest, Kind::Rehearse);
        let _: crate::migration::protocol::Rehearsed = script.hear(Kind::Rehearsed);
        script
    }

    fn say(&mut self, kind: Kind, message: &impl serde::Serialize) {
        self.control.send_message(kind, message, soon()).unwrap();
    }

    fn hear<T: serde::de::DeserializeOwned>(&mut self, kind: Kind) -> T {
        let frame = self.control.receive(soon()).unwrap();
        assert_eq!(frame.kind, kind);
        frame.message().unwrap()
    }

    fn state(&mut self, guest: &Fake, kind: Kind) {
        guest.running.store(false, Ordering::SeqCst);
        let state = guest.save().unwrap().encode().unwrap();
        self.control.send_frame(kind, &state, soon()).unwrap();
    }

    /// All pages stay behind.
    fn leave_all(&mut self, guest: &Fake) -> u64 {
        let all = Pending::all(&guest.memory);
        for body in left::encode(&all) {
            self.control.send_frame(Kind::Leave, &body, soon()).unwrap();
            let _: Dropped = self.hear(Kind::Dropped);
        }
        all.count()
    }

    fn commit(&mut self, guest: &Fake, left_pages: u64) {
        self.data.send_frame(Kind::Flush, &[], soon()).unwrap();
        self.state(guest, Kind::State);
        guest.give_up();
        let commit = Commit {
            bytes: 0,
            left_pages,
            checksum: None,
            paused: false,
            failed: None,
            clock_ahead_ns: 0,
        };
        self.say(Kind::Commit, &commit);
    }
}

/// Plays `script` against the destination of a rig.
fn play(rig: &Rig, script: impl FnOnce(Script, &Fake) + Send) -> Result<Running, ReceiveError> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| script(Script::connect(address, &rig.source), &rig.source));
        let progress = Progress::new(Cancel::new().unwrap());
        let incoming = rig.incoming(listener);
        destination::receive(&rig.destination, incoming, Priority::default(), &progress)
    })
}

#[test]
fn source_hears_that_a_guest_has_ended_and_wants_no_more() {
    let Some(rig) = rig() else { return };
    let received = play(&rig, |mut script, guest| {
        let pages = script.leave_all(guest);
        script.commit(guest, pages);
        let _: Running = script.hear(Kind::Running);
        rig.destination.ended.store(true, Ordering::SeqCst);
        let frame = script.urgent.receive(soon()).unwrap();
        assert_eq!(frame.kind, Kind::Fetched);
        assert!(frame.message::<Fetched>().unwrap().ended);
    });
    received.unwrap();
    assert!(!rig.destination.lost.load(Ordering::SeqCst));
}

#[test]
fn guest_whose_pages_do_not_come_stands_for_good() {
    let Some(rig) = rig() else { return };
    let received = play(&rig, |mut script, guest| {
        let pages = script.leave_all(guest);
        script.commit(guest, pages);
        let _: Running = script.hear(Kind::Running);
    });
    assert!(
        matches!(received, Err(ReceiveError::Lost(_))),
        "{received:?}"
    );
    assert!(rig.destination.lost.load(Ordering::SeqCst));
    assert!(!rig.destination.is_running());
}

#[test]
fn guest_whose_pages_do_not_come_while_it_is_restored_never_runs() {
    let Some(mut rig) = rig() else { return };
    rig.destination.read_in_restore = Some(4096);
    let received = play(&rig, |mut script, guest| {
        let pages = script.leave_all(guest);
        script.commit(guest, pages);
        // Until it is wanted.
        let frame = script.urgent.receive(soon()).unwrap();
        assert_eq!(
            (frame.kind, frame.body),
            (Kind::Want, &4096_u64.to_le_bytes()[..])
        );
    });
    assert!(
        matches!(received, Err(ReceiveError::Unfetched(_))),
        "{received:?}"
    );
    assert!(!rig.destination.lost.load(Ordering::SeqCst));
    assert!(!rig.destination.is_running());
    assert_eq!(rig.record.holder(), None);
    // And RAM is as any other.
    assert_eq!(rig.destination.read(1 << 20), 0);
}

#[test]
fn source_that_breaks_the_rules_of_leaving_gets_its_guest_refused() {
    let Some(rig) = rig() else { return };
    let refused = |script: fn(Script, &Fake), expected: &str| {
        let error = play(&rig, script).unwrap_err();
        let error = crate::causes::chain(&error);
        assert!(error.contains(expected), "{error}");
        rig.destination.restored.lock().unwrap().clear();
        assert!(!rig.destination.is_running());
    };
    refused(
        |mut script, guest| {
            let pages = script.leave_all(guest);
            script.commit(guest, pages - 1);
            let _: crate::migration::protocol::Reason = script.hear(Kind::Aborted);
        },
        "pages were to be left behind",
    );
    refused(
        |mut script, guest| {
            script.leave_all(guest);
            script.state(guest, Kind::Rehearse);
            let _: crate::migration::protocol::Reason = script.hear(Kind::Aborted);
        },
        "a rehearsal without memory",
    );
    refused(
        |mut script, guest| {
            script.leave_all(guest);
            script.data.send_frame(Kind::Pages, &[], soon()).unwrap();
            let _: crate::migration::protocol::Reason = script.hear(Kind::Aborted);
        },
        "pages after those that stay behind",
    );
    refused(
        |mut script, _| {
            script
                .control
                .send_frame(Kind::Leave, &[9; 8], soon())
                .unwrap();
            let _: crate::migration::protocol::Reason = script.hear(Kind::Aborted);
        },
        "there is no chunk",
    );
}
