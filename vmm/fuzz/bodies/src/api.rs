//! Bytes of a connection to the API, in front of a machine that is none.

use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use pindah_vmm::api::routes::ROUTES;
use pindah_vmm::api::{Limits, Server};
use pindah_vmm::memory::{DirtyRegion, GuestMemory};
use pindah_vmm::migration::worker::Migrator;
use pindah_vmm::vm::events::Events;
use pindah_vmm::vm::machine::{Machine, MachineError};
use pindah_vmm::vm::migratable::{Migratable, MigratableError};
use pindah_vmm::vm::state::VmState;
use pindah_vmm_api::{DiskLimits, EventKind, Metrics, PauseReason, RunState, VmConfig, VmInfo};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::input::Input;
use crate::machine;

/// Longer than any answer takes on a slow host.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine without a processor.
struct Fake {
    events: Events,
    memory: Arc<GuestMemory>,
    running: AtomicBool,
}

impl Machine for Fake {
    fn info(&self) -> VmInfo {
        VmInfo {
            name: "fake".to_owned(),
            state: if self.running.load(Ordering::SeqCst) {
                RunState::Running
            } else {
                RunState::Paused
            },
            pause_reason: None,
            vmm_version: "0".to_owned(),
            pid: 1,
            started_unix_ms: 0,
            cpus: 1,
            memory_mib: 1,
            devices: Vec::new(),
        }
    }

    fn config(&self) -> VmConfig {
        serde_json::from_str(r#"{"memory": {"size_mib": 16}}"#).expect("a valid configuration")
    }

    fn metrics(&self) -> Metrics {
        Metrics::default()
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn pause(&self) -> Result<(), MachineError> {
        self.running.store(false, Ordering::SeqCst);
        let reason = PauseReason::Requested;
        self.events.publish(EventKind::Paused { reason });
        Ok(())
    }

    fn resume(&self, _force: bool) -> Result<(), MachineError> {
        self.running.store(true, Ordering::SeqCst);
        self.events.publish(EventKind::Resumed);
        Ok(())
    }

    fn relock(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn press_power_button(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn power_off(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn reset(&self) -> Result<(), MachineError> {
        Ok(())
    }

    fn set_balloon_target(&self, _: u64) -> Result<(), MachineError> {
        Ok(())
    }

    fn resize_disk(&self, id: &str, _: u64) -> Result<(), MachineError> {
        Err(MachineError::NoDevice {
            kind: "disk",
            id: id.to_owned(),
        })
    }

    fn limit_disk(&self, _: &str, _: DiskLimits) -> Result<(), MachineError> {
        Ok(())
    }

    fn attach_console(&self, _: &str, stream: UnixStream, _: &[u8]) -> Result<(), MachineError> {
        drop(stream);
        Ok(())
    }

    fn migratable(&self) -> &dyn Migratable {
        self
    }
}

impl Migratable for Fake {
    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.memory)
    }

    fn start_dirty_log(&self) -> Result<(), MigratableError> {
        Ok(())
    }

    fn take_dirty(&self) -> Result<Vec<DirtyRegion>, MigratableError> {
        Ok(Vec::new())
    }

    fn stop_dirty_log(&self) -> Result<(), MigratableError> {
        Ok(())
    }

    fn pause(&self, _: PauseReason) -> Result<bool, MigratableError> {
        Ok(self.running.swap(false, Ordering::SeqCst))
    }

    fn save(&self) -> Result<VmState, MigratableError> {
        Ok(VmState::new(Machine::config(self), Vec::new()))
    }

    fn resume(&self) -> Result<(), MigratableError> {
        self.running.store(true, Ordering::SeqCst);
        Ok(())
    }
}

struct Fixture {
    address: SocketAddr,
    files: [File; 2],
    _server: Server,
}

static FIXTURE: LazyLock<Mutex<Fixture>> = LazyLock::new(|| {
    let name = format!("pindah-fuzz-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    let listener = UnixListener::bind_addr(&address).expect("a name of our own");
    let machine = Arc::new(Fake {
        events: Events::default(),
        memory: machine::memory(),
        running: AtomicBool::new(true),
    });
    let limits = Limits {
        connections: 4,
        ..Limits::default()
    };
    let migrator = Migrator::spawn(|_, _| ());
    let server = Server::spawn_with(listener, machine, migrator.expect("a thread"), limits);
    Mutex::new(Fixture {
        address,
        files: [machine::memfd(&[]), machine::memfd(&[])],
        _server: server.expect("a host with two threads to spare"),
    })
});

/// Runs one case.
pub fn run(data: &[u8]) {
    let fixture = FIXTURE.lock().expect("a failed case ends the process");
    let input = &mut Input::new(data);
    for file in &fixture.files {
        file.set_len(0).expect("a file of our own");
    }
    let mut bytes = Vec::new();
    for _ in 0..=input.below(3) {
        request(input, &mut bytes);
    }
    if input.chance(4) {
        corrupt(input, &mut bytes);
    }
    let descriptors = match input.below(6) {
        0 => 2,
        1 => input.below(12),
        _ => 0,
    };
    let answer = exchange(&fixture, input, &bytes, descriptors);
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 "),
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
    // Whatever that was, the next client is served.
    let alive = b"GET /api/v1/vm HTTP/1.1\r\nConnection: close\r\n\r\n";
    let answer = exchange(&fixture, &mut Input::new(&[]), alive, 0);
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
}

/// Sends it all in one piece or several, and returns what comes back before the server closes,
/// or before a stream begins.
fn exchange(fixture: &Fixture, input: &mut Input, bytes: &[u8], descriptors: usize) -> Vec<u8> {
    let mut stream = UnixStream::connect_addr(&fixture.address).expect("a server that listens");
    let limit = Some(PATIENCE);
    stream.set_read_timeout(limit).expect("a limit above zero");
    stream.set_write_timeout(limit).expect("a limit above zero");
    let fds: Vec<_> = (0..descriptors)
        .map(|number| fixture.files[number % 2].as_raw_fd())
        .collect();
    let mut rest = bytes;
    let mut first = true;
    while !rest.is_empty() {
        let len = match input.below(4) {
            0 => 1 + input.below(rest.len()),
            _ => rest.len(),
        };
        let fds: &[i32] = if std::mem::take(&mut first) {
            &fds
        } else {
            &[]
        };
        // The server may have refused and closed before it has all.
        match stream.send_with_fds(&[&rest[..len]], fds) {
            Ok(sent) if sent > 0 => rest = &rest[sent..],
            _ => break,
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return answer,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return answer,
            Err(error) => panic!("no answer: {error}"),
        }
        if contains(&answer, b"x-ndjson") {
            return answer;
        }
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

const HEADERS: [&str; 12] = [
    "Host: localhost",
    "Content-Type: application/json",
    "Connection: close",
    "Connection: upgrade",
    "Connection: keep-alive",
    "Expect: 100-continue",
    "Upgrade: pindah-console",
    "Transfer-Encoding: chunked",
    "Content-Length: 0",
    "Content-Length: 18446744073709551616",
    "Accept: */*",
    "X: \u{ff}",
];

const BODIES: [&str; 9] = [
    "",
    "{}",
    r#"{"target_mib":1}"#,
    r#"{"target_mib":-1}"#,
    r#"{"size_bytes":1048576}"#,
    r#"{"after":"resume"}"#,
    r#"{"after":"pause"}"#,
    "[[[[[[[[[[[[[[[[",
    r#"{"a":{"#,
];

/// A request as a client would send it, more or less.
fn request(input: &mut Input, bytes: &mut Vec<u8>) {
    let route = input.pick(ROUTES);
    let method = match input.below(12) {
        0 => input.pick(&["GET", "POST", "PUT", "PATCH", "DELETE", "", "get"]),
        _ => route.method,
    };
    let id = input.pick(&["disk0", "serial", "console", "", "%2e%2e", "a/b", "\u{fc}"]);
    let path = route.path.replace("{id}", id);
    let query = input.pick(&["", "", "", "?from=0", "?from=x", "?", "?a=b&a=c"]);
    let version = input.pick(&["1.1", "1.1", "1.1", "1.0", "2.0", "x"]);
    bytes.extend(format!("{method} {path}{query} HTTP/{version}\r\n").bytes());
    for _ in 0..input.below(4) {
        let header = input.pick(&HEADERS);
        bytes.extend(format!("{header}\r\n").bytes());
    }
    let body = input.pick(&BODIES);
    if !body.is_empty() {
        bytes.extend(b"Content-Type: application/json\r\n");
        let length = match input.below(12) {
            0 => input.edge(),
            _ => body.len() as u64,
        };
        bytes.extend(format!("Content-Length: {length}\r\n").bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body.bytes());
}

fn corrupt(input: &mut Input, bytes: &mut Vec<u8>) {
    for _ in 0..=input.below(4) {
        let at = input.below(bytes.len());
        match input.below(4) {
            0 => bytes[at] = input.byte(),
            1 => bytes.truncate(at + 1),
            2 => {
                let more = vec![input.byte(); input.pick(&[1, 40, 9000, 70_000])];
                bytes.splice(at..at, more);
            }
            _ => drop(bytes.remove(at)),
        }
        if bytes.is_empty() {
            bytes.push(b'\n');
        }
    }
}
