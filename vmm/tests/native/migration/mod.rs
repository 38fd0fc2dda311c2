//! Guests that move from one process to another.
//!
//! Who runs a guest is what its own heartbeats say: each carries the process id of the VMM that
//! runs it. Both sides' serial ports are read, and the destination's history holds what the guest
//! said at its source: the whole is one track without a gap.

mod endings;
mod faults;
mod losses;
mod moves;
mod proxy;
mod track;
mod verdict;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use pindah_vmm::api::client::Client;
use pindah_vmm_api::{EventKind, MigrationReport};

use super::harness::{DEADLINE, Guest, Setup};

/// Words for the probe without which a busy host's gaps push all else out of the history of its
/// serial port, and with which it verifies its memory all the time.
const QUIET: &str = "gap_us=60000000 verify=1";

/// What both ends can reach: keys and disk images.
struct Site {
    directory: tempfile::TempDir,
    protection: Vec<String>,
    /// How long a destination waits for its guest.
    patience_s: u64,
    /// Where it listens.
    address: Ipv4Addr,
}

impl Site {
    /// With TLS, and keys for this host.
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let keys = directory.path().join("keys");
        let made = Command::new(env!("CARGO_BIN_EXE_pindah-vmm"))
            .arg("keys")
            .arg(&keys)
            .arg("127.0.0.1")
            .output()
            .expect("pindah-vmm starts");
        assert!(made.status.success(), "{made:?}");
        Self {
            directory,
            protection: vec!["--tls".to_owned(), keys.display().to_string()],
            patience_s: 60,
            address: Ipv4Addr::LOCALHOST,
        }
    }

    /// Without encryption.
    fn plain() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            protection: vec!["--plaintext".to_owned()],
            patience_s: 60,
            address: Ipv4Addr::LOCALHOST,
        }
    }

    /// `[[disks]]` with a raw image that is made here.
    fn raw_disk(&self, mib: u64) -> String {
        let path = self.directory.path().join("disk.img");
        let file = File::create(&path).expect("a file in a temporary directory");
        file.set_len(mib << 20).expect("a sparse file");
        disk(&path, "raw")
    }

    /// The same in qcow2, if `qemu-img` is here.
    fn qcow2_disk(&self, mib: u64) -> Option<String> {
        let path = self.directory.path().join("disk.qcow2");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&path)
            .arg(format!("{mib}M"))
            .status();
        match made {
            Ok(status) if status.success() => Some(disk(&path, "qcow2")),
            other => {
                eprintln!("skipped: qemu-img: {other:?}");
                None
            }
        }
    }

    /// A machine like `setup` that waits for its guest.
    fn receive(&self, setup: &Setup) -> (Guest, SocketAddr) {
        let patience = ["--timeout-s".to_owned(), self.patience_s.to_string()];
        setup
            .twin()
            .receive(self.address, &[&self.protection[..], &patience].concat())
    }

    /// Begins to move `source`.
    fn send(&self, source: &Guest, to: SocketAddr, arguments: &[&str]) -> Sending {
        Sending::start(&source.path("api"), to, &self.protection, arguments)
    }
}

fn disk(path: &Path, format: &str) -> String {
    let path = path.display();
    format!("[[disks]]\npath = '{path}'\nformat = '{format}'\ncache = 'buffered'")
}

/// A `pindah-vmm send`.
struct Sending {
    process: Child,
    outcome: Receiver<EventKind>,
    started: Instant,
}

/// How it ended.
#[derive(Debug)]
struct Sent {
    status: ExitStatus,
    output: String,
    error: String,
    took: Duration,
    /// What the VMM says of it, if the guest moved.
    report: Option<MigrationReport>,
}

impl Sending {
    fn start(api: &Path, to: SocketAddr, protection: &[String], arguments: &[&str]) -> Self {
        let outcome = watch_outcome(api);
        let started = Instant::now();
        let process = Command::new(env!("CARGO_BIN_EXE_pindah-vmm"))
            .args(["send", "--api"])
            .arg(api)
            .args(protection)
            .args(arguments)
            .arg(to.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("pindah-vmm starts");
        Self {
            process,
            outcome,
            started,
        }
    }

    /// As Ctrl-C does.
    fn interrupt(&self) {
        let kill = Command::new("kill")
            .args(["-s", "INT", &self.process.id().to_string()])
            .status();
        assert!(kill.expect("kill starts").success());
    }

    /// Waits for its end.
    fn wait(mut self) -> Sent {
        let end = self.started + 2 * DEADLINE;
        while self.process.try_wait().expect("a child of ours").is_none() {
            if Instant::now() > end {
                let _ = self.process.kill();
                let output = self.process.wait_with_output();
                panic!("send does not end: {output:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let took = self.started.elapsed();
        let output = self.process.wait_with_output().expect("a child of ours");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let report = output
            .status
            .success()
            .then(|| match self.outcome.recv_timeout(DEADLINE) {
                Ok(EventKind::MigrationCompleted { report }) => *report,
                other => panic!("send succeeds, and the VMM says {other:?}"),
            });
        Sent {
            status: output.status,
            output: text(&output.stdout),
            error: text(&output.stderr),
            took,
            report,
        }
    }
}

/// The last event of the next migration of the guest with this API socket.
fn watch_outcome(api: &Path) -> Receiver<EventKind> {
    let client = Client::connect(api).expect("the API listens");
    let events = client.events(None).expect("the API tells events");
    let (sender, outcome) = channel();
    std::thread::spawn(move || {
        let ends = |kind: &EventKind| {
            matches!(
                kind,
                EventKind::MigrationCompleted { .. } | EventKind::MigrationFailed { .. }
            )
        };
        let mut kinds = events.map_while(Result::ok).map(|event| event.kind);
        if let Some(kind) = kinds.find(ends) {
            let _ = sender.send(kind);
        }
    });
    outcome
}
