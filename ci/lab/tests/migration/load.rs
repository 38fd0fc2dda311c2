//! A guest at work, and those who would notice that it moves.

use std::path::Path;
use std::time::{Duration, Instant};

use pindah_lab::guest::{ACTION_LIMIT, Guest};
use pindah_lab::ping::Ping;
use pindah_lab::{Process, Server};

use crate::site::{ADDRESS, Traveller};

const LOAD: &str = include_str!("../../assets/guest-load");
const GAP_WATCH: &str = include_str!("../../assets/guest-gap-watch");
/// The last line of what the guest serves.
const NUMBERS: u32 = 4_000_000;
/// The download is slow enough to last for all moves of a test.
const DOWNLOAD_RATE: &str = "5k";

/// Who talks with the guest all the while.
pub struct Observers {
    download: Process,
    session: Process,
    ping: Ping,
}

impl Observers {
    /// Starts the load in the guest, and then these on the host, with a key of SSH in `directory`.
    pub fn start(guest: &mut Guest<'_>, host: &Server, directory: &Path) -> Self {
        guest.check(LOAD).unwrap();
        guest.check(GAP_WATCH).unwrap();
        let key = directory.join("key").display().to_string();
        host.check(&format!("ssh-keygen -q -t ed25519 -N '' -f {key}"))
            .unwrap();
        let public = host.check(&format!("cat {key}.pub")).unwrap();
        guest
            .check(&format!(
                "echo '{}' >/root/.ssh/authorized_keys",
                public.trim_end()
            ))
            .unwrap();
        let url = format!("http://{ADDRESS}/numbers");
        let download = ["curl", "-sS", "--limit-rate", DOWNLOAD_RATE, &url];
        let target = format!("root@{ADDRESS}");
        let count = "i=0; while :; do echo $i; i=$((i + 1)); sleep 0.2; done";
        let session = [
            &["ssh", "-i", &key, "-o", "BatchMode=yes"][..],
            &["-o", "StrictHostKeyChecking=no"],
            &["-o", "UserKnownHostsFile=/dev/null"],
            &[&target, count],
        ]
        .concat();
        let mut observers = Self {
            download: host.spawn(&download).unwrap(),
            session: host.spawn(&session).unwrap(),
            ping: Ping::start(host, ADDRESS).unwrap(),
        };
        observers.wait_for_more();
        observers
    }

    /// Waits until each of them has had more from the guest, and looks at what came.
    pub fn wait_for_more(&mut self) {
        for (name, process, more) in [
            ("numbers downloaded", &mut self.download, 20_000),
            ("words in the session", &mut self.session, 10),
            ("replies to ping", self.ping.process(), 200),
        ] {
            assert!(!process.has_ended().unwrap(), "no {name} any more");
            // All that has come by now: what counts is what comes from here on.
            let before = process.stdout().len();
            let wait = |output: &[u8]| (output.len() >= before + more).then_some(());
            process.wait_for(name, ACTION_LIMIT, wait).unwrap();
        }
        assert_counts(self.download.stdout(), 1);
        assert_counts(self.session.stdout(), 0);
    }

    /// The longest time between two answers to ping, in seconds, and how many came.
    pub fn pings(&mut self) -> (f64, usize) {
        self.ping.longest_gap_s().unwrap()
    }
}

/// Whole lines count up from `first`, without a gap.
fn assert_counts(output: &[u8], first: u32) {
    let text = String::from_utf8_lossy(output);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for (line, expected) in whole.lines().zip(first..=NUMBERS) {
        assert_eq!(line, expected.to_string(), "line by line");
    }
}

/// What the guest itself says of its work.
#[derive(Debug)]
pub struct Work {
    /// Verified passes over its file.
    pub fio_rounds: u64,
    /// The longest time between two steps of a watcher in the guest, in ms.
    pub gap_ms: f64,
}

impl Work {
    /// Looks, and has the watcher begin anew.
    ///
    /// # Panics
    /// If anything that verifies has found something, or a clock has stepped back.
    pub fn look(guest: &mut Guest<'_>) -> Self {
        let bad = guest.check("cat /tmp/bad 2>/dev/null || true").unwrap();
        assert_eq!(bad, "", "the guest's work went wrong");
        guest.check("pgrep -x stress-ng >/dev/null").unwrap();
        let gap = guest.check("cat /tmp/gap; touch /tmp/gap-reset").unwrap();
        let (gap_ms, back) = gap.split_once(' ').expect("gap and steps back");
        assert_eq!(back, "0", "a clock stepped back");
        let rounds = guest.check("cat /tmp/fio-rounds 2>/dev/null || echo 0");
        Self {
            fio_rounds: rounds.unwrap().parse().expect("a number"),
            gap_ms: gap_ms.parse().expect("a number of ms"),
        }
    }

    /// Waits until fio has verified its file once more.
    pub fn wait_for_disk(traveller: &mut Traveller<'_>) {
        let (first, end) = (
            Self::look(traveller.guest()).fio_rounds,
            Instant::now() + ACTION_LIMIT,
        );
        // The round in which the guest moved, and a whole one after it.
        while Self::look(traveller.guest()).fio_rounds < first + 2 {
            assert!(Instant::now() < end, "fio does not go on");
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

/// By how much the guest's wall clock is ahead of its server's, and by how much that may be wrong,
/// in seconds: of five looks the quickest. The servers' clocks go each their own way.
pub fn clock_offset(guest: &mut Guest<'_>, server: &Server) -> (f64, f64) {
    let seconds = |text: String| -> f64 { text.trim().parse().expect("seconds") };
    let date = "date +%s.%N";
    let looks = (0..5).map(|_| {
        let before = seconds(server.check(date).unwrap());
        let there = seconds(guest.check(date).unwrap());
        let after = seconds(server.check(date).unwrap());
        let middle = f64::midpoint(before, after);
        (there - middle, after - middle)
    });
    let quickest = looks.min_by(|a, b| a.1.total_cmp(&b.1));
    quickest.expect("there are five")
}
