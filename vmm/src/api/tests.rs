//! The server on real sockets, with a machine that is none.

mod migrate;

use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pindah_vmm_api::{
    AfterSnapshot, BalloonTarget, DeviceInfo, DiskFormat, DiskResize, ErrorBody, ErrorCode, Event,
    EventKind, Metrics, PauseReason, ResumeRequest, RunState, SnapshotReport, SnapshotRequest,
    VmConfig, VmInfo,
};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::client::{Client, ClientError};
use super::{Limits, Server};
use crate::memory::{DirtyRegion, GuestMemory};
use crate::migration::worker::Migrator;
use crate::vm::events::Events;
use crate::vm::machine::{Machine, MachineError};
use crate::vm::migratable::{Migratable, MigratableError};
use crate::vm::state::VmState;

/// Longer than anything takes on a slow host.
const PATIENCE: Duration = Duration::from_secs(30);

/// A machine without a processor. Its calls are recorded.
struct FakeMachine {
    events: Events,
    memory: Arc<GuestMemory>,
    running: AtomicBool,
    calls: Mutex<Vec<String>>,
    /// While set, `reset` and `save` do not return.
    stuck: Mutex<bool>,
    freed: Condvar,
}

impl FakeMachine {
    fn new() -> Arc<Self> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        memory.write_slice(b"guest", GuestAddress(0x2000)).unwrap();
        Arc::new(Self {
            events: Events::default(),
            memory: Arc::new(memory),
            running: AtomicBool::new(true),
            calls: Mutex::default(),
            stuck: Mutex::new(false),
            freed: Condvar::new(),
        })
    }

    fn record(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn set_stuck(&self, stuck: bool) {
        *self.stuck.lock().unwrap() = stuck;
        self.freed.notify_all();
    }

    fn wait_while_stuck(&self) {
        let stuck = self.stuck.lock().unwrap();
        drop(self.freed.wait_while(stuck, |stuck| *stuck).unwrap());
    }
}

impl Machine for FakeMachine {
    fn info(&self) -> VmInfo {
        let running = self.running.load(Ordering::SeqCst);
        VmInfo {
            name: "fake".into(),
            state: if running {
                RunState::Running
            } else {
                RunState::Paused
            },
            pause_reason: None,
            vmm_version: "0".into(),
            pid: 1,
            started_unix_ms: 0,
            cpus: 1,
            memory_mib: 4,
            devices: vec![DeviceInfo::Disk {
                id: "disk0".into(),
                size_bytes: 512,
                format: DiskFormat::Raw,
                read_only: false,
            }],
        }
    }

    fn config(&self) -> VmConfig {
        serde_json::from_str(r#"{"memory": {"size_mib": 16}}"#).unwrap()
    }

    fn metrics(&self) -> Metrics {
        Metrics::default()
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn pause(&self) -> Result<(), MachineError> {
        self.record("pause");
        self.running.store(false, Ordering::SeqCst);
        let reason = PauseReason::Requested;
        self.events.publish(EventKind::Paused { reason });
        Ok(())
    }

    fn resume(&self, force: bool) -> Result<(), MachineError> {
        self.record(if force { "resume by force" } else { "resume" });
        self.running.store(true, Ordering::SeqCst);
        self.events.publish(EventKind::Resumed);
        Ok(())
    }

    fn press_power_button(&self) -> Result<(), MachineError> {
        Err(MachineError::State {
            action: "the power button",
            state: RunState::Paused,
        })
    }

    fn power_off(&self) -> Result<(), MachineError> {
        self.record("power off");
        Ok(())
    }

    fn reset(&self) -> Result<(), MachineError> {
        self.record("reset");
        self.wait_while_stuck();
        Ok(())
    }

    fn set_balloon_target(&self, target_mib: u64) -> Result<(), MachineError> {
        if target_mib > 4 {
            return Err(MachineError::Value {
                field: "target_mib",
                value: target_mib.to_string(),
                allowed: "at most 4".into(),
            });
        }
        self.record(format!("balloon {target_mib}"));
        Ok(())
    }

    fn resize_disk(&self, id: &str, size_bytes: u64) -> Result<(), MachineError> {
        match id {
            "disk0" => {
                self.record(format!("resize {id} {size_bytes}"));
                Ok(())
            }
            "broken" => Err(MachineError::Host {
                action: "resize broken".into(),
                source: std::io::Error::from(std::io::ErrorKind::StorageFull).into(),
            }),
            id => Err(MachineError::NoDevice {
                kind: "disk",
                id: id.into(),
            }),
        }
    }

    fn attach_console(
        &self,
        id: &str,
        stream: UnixStream,
        greeting: &[u8],
    ) -> Result<(), MachineError> {
        if id != "serial" {
            return Err(MachineError::NoDevice {
                kind: "console",
                id: id.into(),
            });
        }
        stream.set_nonblocking(false).unwrap();
        let greeting = greeting.to_vec();
        std::thread::spawn(move || {
            let mut stream = stream;
            stream.write_all(&greeting).unwrap();
            let mut byte = [0];
            while stream.read(&mut byte).is_ok_and(|count| count == 1) {
                stream
                    .write_all(&byte.map(|byte| byte.to_ascii_uppercase()))
                    .unwrap();
            }
        });
        Ok(())
    }

    fn migratable(&self) -> &dyn Migratable {
        self
    }
}

impl Migratable for FakeMachine {
    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.memory)
    }

    fn start_dirty_log(&self) -> Result<(), MigratableError> {
        Ok(())
    }

    fn take_dirty(&self) -> Result<Vec<DirtyRegion>, MigratableError> {
        Ok(vec![])
    }

    fn stop_dirty_log(&self) -> Result<(), MigratableError> {
        Ok(())
    }

    fn pause(&self, reason: PauseReason) -> Result<bool, MigratableError> {
        assert_eq!(reason, PauseReason::Snapshot);
        Ok(self.running.swap(false, Ordering::SeqCst))
    }

    fn save(&self) -> Result<VmState, MigratableError> {
        self.record("save");
        self.wait_while_stuck();
        Ok(VmState::new(Machine::config(self), vec![]))
    }

    fn resume(&self) -> Result<(), MigratableError> {
        self.running.store(true, Ordering::SeqCst);
        Ok(())
    }
}

struct Fixture {
    machine: Arc<FakeMachine>,
    server: Option<Server>,
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("api")).unwrap();
        let machine = FakeMachine::new();
        let migrator = Migrator::spawn(migrate::pretend).unwrap();
        let server = Server::spawn_with(listener, machine.clone(), migrator, limits).unwrap();
        Self {
            machine,
            server: Some(server),
            directory,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("api")
    }

    fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn client(&self) -> Client {
        Client::new(self.stream())
    }

    /// Sends bytes, closes the sending side and returns all that comes back.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.stream();
        // The server may have refused and closed before it has all.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn is_alive(&self) -> bool {
        self.client().get::<VmInfo>("/api/v1/vm").is_ok()
    }

    fn snapshot_files(&self) -> (File, File) {
        let file = |name: &str| {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(self.directory.path().join(name))
                .unwrap()
        };
        (file("state"), file("memory"))
    }
}

fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "it never came true");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn status_and_code(answer: &str) -> (u16, Option<ErrorCode>) {
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let error: Option<ErrorBody> = serde_json::from_str(body).ok();
    (status, error.map(|body| body.error.code))
}

fn command(fixture: &Fixture, method: &str, path: &str) -> Result<(), ErrorCode> {
    match fixture.client().command::<()>(method, path, None) {
        Ok(()) => Ok(()),
        Err(ClientError::Refused(error)) => Err(error.code),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn state_and_commands_reach_the_machine() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let info: VmInfo = client.get("/api/v1/vm").unwrap();
    assert_eq!(
        (info.name.as_str(), info.state),
        ("fake", RunState::Running)
    );
    client
        .command::<()>("POST", "/api/v1/vm/pause", None)
        .unwrap();
    let info: VmInfo = client.get("/api/v1/vm").unwrap();
    assert_eq!(info.state, RunState::Paused);
    for path in ["resume", "power-off", "reset"] {
        let path = format!("/api/v1/vm/{path}");
        client.command::<()>("POST", &path, None).unwrap();
    }
    let force = ResumeRequest { force: true };
    client
        .command("POST", "/api/v1/vm/resume", Some(&force))
        .unwrap();
    let target = BalloonTarget { target_mib: 3 };
    client
        .command("PUT", "/api/v1/balloon", Some(&target))
        .unwrap();
    let resize = DiskResize { size_bytes: 1024 };
    client
        .command("PATCH", "/api/v1/disks/disk0", Some(&resize))
        .unwrap();
    assert_eq!(
        fixture.machine.calls(),
        [
            "pause",
            "resume",
            "power off",
            "reset",
            "resume by force",
            "balloon 3",
            "resize disk0 1024"
        ]
    );
    let config: VmConfig = client.get("/api/v1/vm/config").unwrap();
    assert_eq!(config.memory.size_mib, 16);
    let _: Metrics = client.get("/api/v1/metrics").unwrap();
    let document: serde_json::Value = client.get("/api/v1/openapi.json").unwrap();
    assert_eq!(document["openapi"], "3.1.0");
}

#[test]
fn refusals_of_the_machine_have_their_status_and_causes() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let mut refused = |method: &str, path: &str, body: serde_json::Value| match client.command(
        method,
        path,
        Some(&body),
    ) {
        Err(ClientError::Refused(error)) => (error.code, error.message),
        other => panic!("{other:?}"),
    };
    let empty = serde_json::json!({});
    let (code, message) = refused("POST", "/api/v1/vm/power-button", empty);
    assert_eq!(code, ErrorCode::Conflict);
    assert_eq!(
        message,
        "the power button is not possible while the guest is paused"
    );
    let size = serde_json::json!({"size_bytes": 512});
    let (code, message) = refused("PATCH", "/api/v1/disks/disk9", size.clone());
    assert_eq!(
        (code, message.as_str()),
        (ErrorCode::NotFound, "there is no disk disk9")
    );
    let (code, message) = refused("PATCH", "/api/v1/disks/broken", size);
    assert_eq!(code, ErrorCode::HostError);
    assert!(message.starts_with("resize broken: "), "{message}");
    let (code, message) = refused(
        "PUT",
        "/api/v1/balloon",
        serde_json::json!({"target_mib": 5}),
    );
    assert_eq!(
        (code, message.as_str()),
        (ErrorCode::InvalidValue, "target_mib = 5: at most 4")
    );
    for body in [
        serde_json::json!({}),
        serde_json::json!({"target_mib": -1}),
        serde_json::json!({"target_mib": "1G"}),
        serde_json::json!({"target_mib": 1, "extra": 1}),
        serde_json::json!([1]),
    ] {
        assert_eq!(
            refused("PUT", "/api/v1/balloon", body).0,
            ErrorCode::BadRequest
        );
    }
}

#[test]
fn bad_requests_get_their_error() {
    let fixture = Fixture::new();
    let huge_header = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(9000));
    for (request, expected) in [
        ("GARBAGE\r\n\r\n", ErrorCode::BadRequest),
        ("\x16\x03\x01\x02\0\x01", ErrorCode::BadRequest),
        ("GET /nowhere HTTP/1.1\r\n\r\n", ErrorCode::NotFound),
        (
            "DELETE /api/v1/vm HTTP/1.1\r\n\r\n",
            ErrorCode::MethodNotAllowed,
        ),
        (
            "POST /api/v1/vm/pause HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ErrorCode::LengthRequired,
        ),
        (
            "PUT /api/v1/balloon HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n",
            ErrorCode::BodyTooLarge,
        ),
        (
            "PUT /api/v1/balloon HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
            ErrorCode::UnsupportedMediaType,
        ),
        (
            "PUT /api/v1/balloon HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{x",
            ErrorCode::BadRequest,
        ),
        (
            "POST /api/v1/vm/pause HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
            ErrorCode::BadRequest,
        ),
        (
            "GET /api/v1/events?since=yesterday HTTP/1.1\r\n\r\n",
            ErrorCode::BadRequest,
        ),
        (
            "POST /api/v1/snapshot HTTP/1.1\r\n\r\n",
            ErrorCode::BadRequest,
        ),
        (
            "POST /api/v1/consoles/serial/attach HTTP/1.1\r\n\r\n",
            ErrorCode::BadRequest,
        ),
        (&huge_header, ErrorCode::HeaderTooLarge),
    ] {
        let answer = fixture.exchange(request.as_bytes());
        assert_eq!(
            status_and_code(&answer),
            (expected.status(), Some(expected)),
            "{request:?} gives {answer:?}"
        );
    }
    let answer = fixture.exchange(b"DELETE /api/v1/vm HTTP/1.1\r\n\r\n");
    assert!(answer.contains("\r\nAllow: GET\r\n"), "{answer}");
    assert_eq!(fixture.machine.calls(), [""; 0]);
}

#[test]
fn body_beyond_the_limit_is_refused_while_the_client_still_sends() {
    let fixture = Fixture::new();
    let mut request = b"PUT /api/v1/balloon HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n".to_vec();
    request.resize(8_000_000, b'x');
    let answer = fixture.exchange(&request);
    assert_eq!(status_and_code(&answer).0, 413, "{answer}");
    assert!(fixture.is_alive());
}

#[test]
fn requests_in_one_write_are_answered_in_order() {
    let fixture = Fixture::new();
    let answer = fixture.exchange(
        b"POST /api/v1/vm/pause HTTP/1.1\r\n\r\nGET /api/v1/vm HTTP/1.1\r\n\r\n\
          POST /api/v1/vm/resume HTTP/1.1\r\n\r\nGET /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n",
    );
    let statuses: Vec<_> = answer
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &answer[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["204", "200", "204", "404"]);
    assert!(answer.contains("\"state\":\"paused\""), "{answer}");
    assert!(answer.contains("Connection: close"), "{answer}");
}

#[test]
fn expect_continue_is_answered_before_the_body() {
    let fixture = Fixture::new();
    let mut stream = fixture.stream();
    let head = "PUT /api/v1/balloon HTTP/1.1\r\nContent-Type: application/json\r\n\
        Expect: 100-continue\r\nContent-Length: 16\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{\"target_mib\": 2").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    stream = fixture.stream();
    stream
        .write_all(head.replace("16", "17").as_bytes())
        .unwrap();
    stream.read_exact(&mut interim).unwrap();
    stream.write_all(b"{\"target_mib\": 2}").unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 204");
    assert_eq!(fixture.machine.calls(), ["balloon 2"]);
}

#[test]
fn client_that_sends_a_byte_at_a_time_is_cut_at_its_deadline_and_blocks_nobody() {
    let limits = Limits {
        request: Duration::from_millis(300),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits);
    let mut slow = fixture.stream();
    slow.write_all(b"GET /api/v1/vm HTTP/1.1\r\nX: ").unwrap();
    assert!(fixture.is_alive());
    // Whatever it sends, the deadline of the whole request stands.
    let mut writer = slow.try_clone().unwrap();
    std::thread::spawn(move || {
        while writer.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert_eq!(status_and_code(&answer), (408, Some(ErrorCode::Timeout)));
    assert!(fixture.is_alive());
}

#[test]
fn idle_client_is_closed_without_a_word() {
    let limits = Limits {
        idle: Duration::from_millis(100),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits);
    let mut idle = fixture.stream();
    let mut answer = String::new();
    idle.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "");
}

#[test]
fn connection_beyond_the_limit_takes_an_idle_ones_place_or_is_refused() {
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let fixture = Fixture::with(limits);
    let mut idle = fixture.stream();
    let head = "POST /api/v1/vm/pause HTTP/1.1\r\nContent-Type: application/json\r\n\
        Expect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    // Each is inside a request once it has been told to go on.
    let mut busy = [(), ()].map(|()| {
        let mut stream = fixture.stream();
        stream.write_all(head.as_bytes()).unwrap();
        stream.read_exact(&mut [0; 25]).unwrap();
        stream
    });
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "it has made room");
    let answer = fixture.exchange(b"");
    assert_eq!(
        status_and_code(&answer),
        (503, Some(ErrorCode::TooManyConnections))
    );
    for stream in &mut busy {
        stream.write_all(b"{}").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 204");
    }
}

#[test]
fn state_is_answered_while_a_command_takes_long() {
    let fixture = Fixture::new();
    fixture.machine.set_stuck(true);
    let path = fixture.path();
    let slow = std::thread::spawn(move || {
        let mut client = Client::connect(&path).unwrap();
        client.command::<()>("POST", "/api/v1/vm/reset", None)
    });
    wait_until(|| fixture.machine.calls() == ["reset"]);
    assert!(fixture.is_alive());
    assert!(!slow.is_finished());
    fixture.machine.set_stuck(false);
    slow.join().unwrap().unwrap();
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let fixture = Fixture::new();
    let path = fixture.path();
    let clients: Vec<_> = (0..16)
        .map(|number| {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut client = Client::connect(&path).unwrap();
                for _ in 0..50 {
                    let info: VmInfo = client.get("/api/v1/vm").unwrap();
                    assert_eq!(info.name, "fake");
                    let target = BalloonTarget {
                        target_mib: number % 5,
                    };
                    client
                        .command("PUT", "/api/v1/balloon", Some(&target))
                        .unwrap();
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(fixture.machine.calls().len(), 16 * 50);
}

fn kinds(events: impl Iterator<Item = Result<Event, ClientError>>) -> Vec<EventKind> {
    events.map(|event| event.unwrap().kind).collect()
}

#[test]
fn event_stream_gives_what_happens_and_ends_with_the_machine() {
    let mut fixture = Fixture::new();
    fixture.machine.events.publish(EventKind::Started);
    assert!(fixture.is_alive());
    let from_now = fixture.client().events(None).unwrap();
    let from_start = fixture.client().events(Some(0)).unwrap();
    command(&fixture, "POST", "/api/v1/vm/pause").unwrap();
    fixture.machine.events.publish(EventKind::PowerButton);
    fixture.server.take().unwrap().stop();
    let paused = EventKind::Paused {
        reason: PauseReason::Requested,
    };
    assert_eq!(kinds(from_now), [paused.clone(), EventKind::PowerButton]);
    assert_eq!(
        kinds(from_start),
        [EventKind::Started, paused, EventKind::PowerButton]
    );
}

#[test]
fn reader_that_does_not_take_its_events_is_cut_and_others_are_not() {
    let limits = Limits {
        stream_bytes: 1000,
        ..Limits::default()
    };
    let fixture = Fixture::with(limits);
    let slow = fixture.client().events(None).unwrap();
    let mut quick = fixture.client().events(None).unwrap();
    // More than a socket holds, in steps that the server itself can follow.
    let message = "x".repeat(10_000);
    for _ in 0..100 {
        let id = "disk0".to_owned();
        let message = message.clone();
        fixture
            .machine
            .events
            .publish(EventKind::DiskError { id, message });
        assert!(matches!(
            quick.next().unwrap().unwrap().kind,
            EventKind::DiskError { .. }
        ));
    }
    let got = kinds(slow);
    assert!(got.len() < 100);
    assert_eq!(got.last(), Some(&EventKind::Lagged));
}

#[test]
fn console_connection_becomes_raw() {
    let fixture = Fixture::new();
    let mut console = fixture.client().attach_console("serial").unwrap();
    console.get_mut().write_all(b"login\n").unwrap();
    let mut line = String::new();
    console.read_line(&mut line).unwrap();
    assert_eq!(line, "LOGIN\n");
    let Err(ClientError::Refused(error)) = fixture.client().attach_console("hvc9") else {
        panic!("there is no such console");
    };
    assert_eq!(error.code, ErrorCode::NotFound);
    // The API has let go of the socket: stopping it leaves the console alone.
    drop(fixture);
    console.get_mut().write_all(b"still\n").unwrap();
    line.clear();
    console.read_line(&mut line).unwrap();
    assert_eq!(line, "STILL\n");
}

#[test]
fn refused_console_leaves_the_connection_usable() {
    let fixture = Fixture::new();
    let attach = "POST /api/v1/consoles/hvc9/attach HTTP/1.1\r\nUpgrade: pindah-console\r\n\r\n";
    let mut stream = fixture.stream();
    stream.write_all(attach.as_bytes()).unwrap();
    let mut answer = [0; 4096];
    let count = stream.read(&mut answer).unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 404"));
    stream
        .write_all(b"GET /api/v1/vm HTTP/1.1\r\n\r\n")
        .unwrap();
    let count = stream.read(&mut answer).unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 200"));
}

#[test]
fn snapshot_goes_to_the_descriptors_that_come_with_it() {
    let fixture = Fixture::new();
    let (state, memory) = fixture.snapshot_files();
    let request = SnapshotRequest::default();
    let report: SnapshotReport = fixture
        .client()
        .post_with_descriptors(
            "/api/v1/snapshot",
            &request,
            &[state.as_fd(), memory.as_fd()],
        )
        .unwrap();
    assert_eq!((report.ram_bytes, report.written_bytes), (4 << 20, 4096));
    assert_eq!(memory.metadata().unwrap().len(), 4 << 20);
    assert_eq!(state.metadata().unwrap().len(), report.state_bytes);
    assert!(fixture.machine.running.load(Ordering::SeqCst));
    let request = SnapshotRequest {
        then: AfterSnapshot::Exit,
    };
    let (state, memory) = fixture.snapshot_files();
    let report: SnapshotReport = fixture
        .client()
        .post_with_descriptors(
            "/api/v1/snapshot",
            &request,
            &[state.as_fd(), memory.as_fd()],
        )
        .unwrap();
    assert_eq!(report.paused_ms, None);
    assert_eq!(fixture.machine.calls(), ["save", "save", "power off"]);
}

#[test]
fn snapshot_to_descriptors_of_the_wrong_kind_is_refused() {
    let fixture = Fixture::new();
    let (state, memory) = fixture.snapshot_files();
    let (socket, _other) = UnixStream::pair().unwrap();
    let read_only = File::open(fixture.directory.path().join("memory")).unwrap();
    let full = fixture.directory.path().join("full");
    std::fs::write(&full, "x").unwrap();
    let full = File::options().read(true).write(true).open(full).unwrap();
    let attempt = |descriptors: &[std::os::fd::BorrowedFd<'_>]| {
        let request = SnapshotRequest::default();
        let mut client = fixture.client();
        match client.post_with_descriptors::<_, SnapshotReport>(
            "/api/v1/snapshot",
            &request,
            descriptors,
        ) {
            Err(ClientError::Refused(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(attempt(&[]).code, ErrorCode::BadRequest);
    assert_eq!(attempt(&[state.as_fd()]).code, ErrorCode::BadRequest);
    let three = [state.as_fd(), memory.as_fd(), memory.as_fd()];
    assert_eq!(attempt(&three).code, ErrorCode::BadRequest);
    for (file, message) in [
        (socket.as_fd(), "the memory file must be a regular file"),
        (
            read_only.as_fd(),
            "the memory file must be open for writing",
        ),
        (full.as_fd(), "the memory file must be empty"),
    ] {
        let error = attempt(&[state.as_fd(), file]);
        assert_eq!(
            (error.code, error.message.as_str()),
            (ErrorCode::InvalidValue, message)
        );
    }
    assert!(fixture.machine.running.load(Ordering::SeqCst));
    assert_eq!(fixture.machine.calls(), [""; 0]);
}

#[test]
fn descriptors_where_none_are_taken_are_refused_and_closed() {
    let fixture = Fixture::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let answer: Result<VmInfo, _> = fixture.client().post_with_descriptors(
        "/api/v1/vm/pause",
        &serde_json::json!({}),
        &[ours.as_fd()],
    );
    assert!(
        matches!(answer, Err(ClientError::Refused(error)) if error.code == ErrorCode::BadRequest)
    );
    drop(ours);
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(
        theirs.read(&mut [0]).unwrap(),
        0,
        "nobody holds the other end"
    );
}

#[test]
fn snapshot_whose_client_leaves_is_given_up_and_the_guest_goes_on() {
    let fixture = Fixture::new();
    fixture.machine.set_stuck(true);
    let events = fixture.machine.events.subscribe().unwrap();
    let (state, memory) = fixture.snapshot_files();
    let stream = fixture.stream();
    let descriptors = [state.as_fd(), memory.as_fd()];
    let request = b"POST /api/v1/snapshot HTTP/1.1\r\n\r\n";
    super::socket::send(&stream, request, &descriptors).unwrap();
    wait_until(|| fixture.machine.calls() == ["save"]);
    assert_eq!(
        command(&fixture, "POST", "/api/v1/vm/reset"),
        Err(ErrorCode::Conflict),
        "one operation at a time"
    );
    drop(stream);
    // The server has seen it go before it answers a connection that came later.
    assert!(fixture.is_alive());
    fixture.machine.set_stuck(false);
    wait_until(|| fixture.machine.running.load(Ordering::SeqCst));
    wait_until(|| command(&fixture, "POST", "/api/v1/vm/reset").is_ok());
    assert_eq!(events.receiver.try_iter().count(), 0, "nothing was taken");
}

#[test]
fn stopped_server_answers_what_it_has_taken_and_goes() {
    let mut fixture = Fixture::new();
    let mut idle = fixture.stream();
    let mut stream = fixture.stream();
    stream
        .write_all(b"POST /api/v1/vm/power-off HTTP/1.1\r\n\r\n")
        .unwrap();
    wait_until(|| fixture.machine.calls() == ["power off"]);
    fixture.server.take().unwrap().stop();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    assert!(UnixStream::connect(fixture.path()).is_err());
}

#[test]
fn curl_understands_the_server() {
    let Ok(version) = std::process::Command::new("curl").arg("--version").output() else {
        return;
    };
    assert!(version.status.success());
    let fixture = Fixture::new();
    let curl = |arguments: &[&str]| {
        let output = std::process::Command::new("curl")
            .args(["-sS", "-w", " %{http_code}", "--unix-socket"])
            .arg(fixture.path())
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let state = curl(&["http://vm/api/v1/vm"]);
    assert!(
        state.contains("\"name\":\"fake\"") && state.ends_with(" 200"),
        "{state}"
    );
    assert_eq!(curl(&["-X", "POST", "http://vm/api/v1/vm/pause"]), " 204");
    let json = ["-X", "PUT", "-H", "Content-Type: application/json", "-d"];
    let url = "http://vm/api/v1/balloon";
    assert_eq!(
        curl(&[&json[..], &["{\"target_mib\": 1}", url]].concat()),
        " 204"
    );
    let long = format!("{{\"target_mib\": 1{}}}", " ".repeat(2_000));
    let expect = ["-H", "Expect: 100-continue"];
    assert_eq!(curl(&[&json[..], &[&long, url], &expect].concat()), " 204");
    let huge = format!("{{\"target_mib\": 1{}}}", " ".repeat(100_000));
    let refused = curl(&[&json[..], &[&huge, url]].concat());
    assert!(refused.ends_with(" 413"), "{refused}");
}

/// Sends `bytes` and reads what comes until the server closes, which it does as the other
/// direction is closed.
fn survives(path: &Path, bytes: &[u8]) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
}

#[test]
fn any_bytes_are_survived() {
    let fixture = Fixture::new();
    let path = fixture.path();
    let method = prop_oneof!["GET|PUT|POST|PATCH|DELETE", "[A-Z]{1,9}"];
    let target = prop_oneof![
        proptest::sample::select(super::routes::ROUTES).prop_map(|route| route.path.to_owned()),
        "/[ -~]{0,40}",
    ];
    let header = prop_oneof![
        "Content-Length: [0-9]{0,6}",
        "Content-Type: application/json",
        "Expect: 100-continue",
        "[ -~]{0,40}",
    ];
    let headers = proptest::collection::vec(header, 0..5);
    let body = proptest::collection::vec(any::<u8>(), 0..200);
    let request = (method, target, headers, body);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(500));
    runner
        .run(&request, |(method, target, headers, body)| {
            // A stream would go on for ever; it has tests of its own.
            prop_assume!(!target.starts_with("/api/v1/events"));
            let headers: Vec<_> = headers
                .iter()
                .map(|header| format!("{header}\r\n"))
                .collect();
            let head = format!("{method} {target} HTTP/1.1\r\n{}\r\n", headers.concat());
            survives(&path, &[head.as_bytes(), &body].concat());
            survives(&path, &body);
            Ok(())
        })
        .unwrap();
    assert!(fixture.is_alive());
}
