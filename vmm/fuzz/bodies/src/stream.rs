//! The whole stream of a migration, as a source that may be anybody sends it: greetings, messages
//! and pages, mostly in their order and mostly well-formed, to a machine that counts what is asked
//! of it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use pindah_vmm::memory::GuestMemory;
use pindah_vmm::memory::userfault::Userfault;
use pindah_vmm::migration::destination::{Incoming, Postcopier, receive};
use pindah_vmm::migration::priority::Priority;
use pindah_vmm::migration::progress::Progress;
use pindah_vmm::migration::protocol::{
    Channel, Commit, FailedDisk, FrameHeader, HEADER_BYTES, Hello, Kind, PREAMBLE_BYTES, Preamble,
    Reason, VERSION,
};
use pindah_vmm::migration::tls::Identity;
use pindah_vmm::migration::wait::Cancel;
use pindah_vmm::state::Section;
use pindah_vmm::vm::migratable::{MigratableError, MigrationDestination};
use pindah_vmm::vm::state::VmState;
use pindah_vmm_api::{PauseReason, VmConfig};
use serde::Serialize;
use vm_memory::{Bytes, GuestAddress};

use crate::input::Input;
use crate::pages::{self, REGION_BYTES, REGIONS};

/// Longer than anything takes but a side that waits for nothing.
const SOON: Duration = Duration::from_secs(5);
/// The source is there before anybody waits for it.
const PATIENCE: Duration = Duration::from_millis(1);
/// All that a source writes fits into a socket, so that it need not be read.
const FRAMES_MAX: usize = 24;

struct Fixture {
    listener: TcpListener,
    machine: Machine,
}

static FIXTURE: LazyLock<Mutex<Fixture>> = LazyLock::new(|| Mutex::new(Fixture::new()));

impl Fixture {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.set_nonblocking(true).expect("a socket takes it");
        let ranges = REGIONS.map(|start| (GuestAddress(start), REGION_BYTES));
        let memory = GuestMemory::from_ranges(&ranges).expect("a host that maps 64 KiB");
        let config = r#"{"memory": {"size_mib": 64}, "boot": {"kernel": "/k"}}"#;
        let machine = Machine {
            config: serde_json::from_str(config).expect("a valid configuration"),
            memory: Arc::new(memory),
            asked: Mutex::default(),
        };
        Self { listener, machine }
    }
}

/// What was asked of the machine.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools)]
struct Asked {
    refuses_restore: bool,
    owned: bool,
    restored_when_owned: bool,
    started: bool,
}

/// A machine that takes any state, and never runs.
struct Machine {
    config: VmConfig,
    memory: Arc<GuestMemory>,
    asked: Mutex<Asked>,
}

impl Machine {
    fn ask<T>(&self, question: impl FnOnce(&mut Asked) -> T) -> T {
        question(&mut self.asked.lock().expect("a failed case ends the process"))
    }
}

impl MigrationDestination for Machine {
    fn config(&self) -> &VmConfig {
        &self.config
    }

    fn memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.memory)
    }

    fn restore(&self, _: &VmState, _: i64) -> Result<(), MigratableError> {
        self.ask(|asked| {
            if asked.refuses_restore {
                return Err(MigratableError::Restore("it is fuzzed".into()));
            }
            asked.restored_when_owned = asked.owned;
            Ok(())
        })?;
        if self.ask(|asked| asked.owned) {
            // As devices do; some of it may have been left behind.
            let word: Result<u64, _> = self.memory.read_obj(GuestAddress(REGIONS[0] + 4096));
            word.expect("it is RAM");
        }
        Ok(())
    }

    fn take(&self) -> Result<(), MigratableError> {
        self.ask(|asked| {
            assert!(!asked.owned, "taken twice");
            asked.owned = true;
            Ok(())
        })
    }

    fn give_back(&self) {
        self.ask(|asked| asked.owned = false);
    }

    fn start(&self, _: Option<PauseReason>) -> Result<(), MigratableError> {
        self.ask(|asked| {
            assert!(asked.owned, "started without the right to");
            assert!(asked.restored_when_owned, "started without its state");
            asked.started = true;
            // Else the network would be told for half a second.
            Err(MigratableError::Restore("it is fuzzed".into()))
        })
    }

    fn announce(&self) {}

    fn has_ended(&self) -> bool {
        false
    }

    fn dismiss(&self) {}

    fn lose(&self) {
        panic!("it never ran");
    }
}

/// Runs one case.
pub fn run(data: &[u8]) {
    let fixture = FIXTURE.lock().expect("a failed case ends the process");
    let input = &mut Input::new(data);
    // What the last case left.
    while fixture.listener.accept().is_ok() {}
    let script = Script::new(&fixture.machine.config, input);
    fixture.machine.ask(|asked| {
        *asked = Asked {
            refuses_restore: input.chance(16),
            ..Asked::default()
        }
    });
    let address = fixture.listener.local_addr().expect("it is bound");
    let connect = move || TcpStream::connect(address).expect("it listens");
    let control = connect();
    let progress = Progress::new(Cancel::new().expect("the host has eventfds"));
    let is_committed = script.is_committed;
    let postcopier = script.may_leave_pages.then(|| {
        let userfault = Userfault::open();
        Postcopier::spawn(userfault).expect("the host has threads")
    });
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || script.play(control, connect));
        let listener = fixture.listener.try_clone();
        let incoming = Incoming {
            listener: listener.expect("the host has descriptors"),
            identity: Identity::Plain,
            timeout: PATIENCE,
            postcopier,
        };
        receive(&fixture.machine, incoming, Priority::default(), &progress)
    });
    assert!(outcome.is_err(), "the machine refuses to run");
    fixture.machine.ask(|asked| {
        assert!(!asked.owned, "the right to run the guest is kept");
        assert!(!asked.started || is_committed, "nobody gave it away");
    });
}

/// What a source sends: greetings, then frames by connection.
struct Script {
    greetings: Vec<Vec<u8>>,
    /// Each with its connection; 0 is for messages.
    frames: Vec<(usize, Vec<u8>)>,
    /// There is something that may be taken as COMMIT.
    is_committed: bool,
    /// The last connection is the urgent one.
    may_leave_pages: bool,
    left_pages: u64,
}

impl Script {
    fn new(config: &VmConfig, input: &mut Input) -> Self {
        let data_connections = 1 + input.below(2);
        let may_leave_pages = input.chance(2);
        let migration = [7; 16];
        let last = data_connections + usize::from(may_leave_pages);
        let greetings = (0..=last).map(|index| {
            let preamble = Preamble {
                version: VERSION,
                channel: match index {
                    0 => Channel::Control,
                    index if index > data_connections => Channel::Urgent,
                    _ => Channel::Data,
                },
                number: index.saturating_sub(1) as u8,
                migration,
            };
            let mut bytes = preamble.encode().to_vec();
            if input.chance(64) {
                corrupt(&mut bytes, input);
            }
            bytes
        });
        let mut script = Self {
            greetings: greetings.collect(),
            frames: Vec::new(),
            is_committed: false,
            may_leave_pages,
            left_pages: 0,
        };
        let mut hello = hello(config, data_connections, input);
        hello.may_leave_pages = may_leave_pages != input.chance(64);
        script.message(Kind::Hello, &hello, input);
        let count = input.below(FRAMES_MAX);
        let mut page_bytes = 0;
        for _ in 0..count {
            page_bytes += script.any(config, data_connections, input);
        }
        if may_leave_pages && !input.chance(4) {
            script.leave(input);
        }
        if !input.chance(4) {
            script.end(config, data_connections, page_bytes, input);
        }
        if may_leave_pages {
            script.late(data_connections, input);
        }
        script
    }

    /// Anything that may come meanwhile. Returns bytes of pages.
    fn any(&mut self, config: &VmConfig, data_connections: usize, input: &mut Input) -> u64 {
        match input.below(8) {
            0 => self.state(Kind::Rehearse, config, input),
            1 if input.chance(4) => self.state(Kind::State, config, input),
            2 if input.chance(8) => {
                let message = String::from_utf8_lossy(&input.bytes(40)).into_owned();
                self.message(Kind::Cancel, &Reason { message }, input);
            }
            3 if input.chance(4) => {
                let kind = (0..=input.byte()).rev().find_map(Kind::from_number);
                let body = input.bytes(64);
                self.frame(
                    input.below(data_connections + 1),
                    kind.unwrap_or(Kind::Ack),
                    body,
                    input,
                );
            }
            _ => {
                let body = pages::blocks(input);
                let bytes = (HEADER_BYTES + body.len()) as u64;
                let connection = 1 + input.below(data_connections);
                self.frame(connection, Kind::Pages, body, input);
                return bytes;
            }
        }
        0
    }

    /// Pages that stay behind: some of a region, or of what is none.
    fn leave(&mut self, input: &mut Input) {
        for region in 0..REGIONS.len() as u32 {
            let pages = REGION_BYTES / 4096;
            let mut bits = input.qword();
            if !input.chance(16) {
                bits &= (1 << pages) - 1;
                self.left_pages += u64::from(bits.count_ones());
            }
            let region = if input.chance(16) {
                input.edge() as u32
            } else {
                region
            };
            let chunk: u32 = if input.chance(16) {
                input.edge() as u32
            } else {
                0
            };
            let words = zstd::bulk::compress(&bits.to_le_bytes(), 1).expect("eight bytes");
            let body = [&region.to_le_bytes()[..], &chunk.to_le_bytes(), &words].concat();
            self.frame(0, Kind::Leave, body, input);
        }
    }

    /// What comes when the guest may run already.
    fn late(&mut self, data_connections: usize, input: &mut Input) {
        for _ in 0..input.below(FRAMES_MAX / 2) {
            let connection = 1 + input.below(data_connections + 1);
            let kind = match input.below(16) {
                0 => Kind::Flush,
                1 => Kind::Want,
                _ => Kind::Pages,
            };
            let body = match kind {
                Kind::Flush => Vec::new(),
                _ => pages::blocks(input),
            };
            self.frame(connection, kind, body, input);
        }
    }

    /// The switchover.
    fn end(
        &mut self,
        config: &VmConfig,
        data_connections: usize,
        page_bytes: u64,
        input: &mut Input,
    ) {
        for connection in 1..=data_connections {
            if !input.chance(16) {
                self.frame(connection, Kind::Flush, Vec::new(), input);
            }
        }
        if !input.chance(16) {
            self.state(Kind::State, config, input);
        }
        let commit = Commit {
            bytes: if input.chance(8) {
                input.edge()
            } else {
                page_bytes
            },
            left_pages: if input.chance(16) {
                input.edge()
            } else {
                self.left_pages
            },
            checksum: input.chance(8).then(|| input.qword()),
            paused: input.chance(2),
            clock_ahead_ns: input.edge() as i64,
            failed: input.chance(8).then(|| FailedDisk {
                id: "disk0".to_owned(),
                message: "é".repeat(input.below(600)),
                no_space: input.chance(2),
            }),
        };
        self.message(Kind::Commit, &commit, input);
    }

    fn state(&mut self, kind: Kind, config: &VmConfig, input: &mut Input) {
        let sections = (0..input.below(4)).map(|index| {
            let (kind, body) = (input.pick(&["vcpu", "kvm", "rtc"]), input.bytes(32));
            Section::new(kind, &index.to_string(), 1, &body).expect("bytes can be encoded")
        });
        let state = VmState::new(config.clone(), sections.collect());
        let body = state.encode().expect("a small state");
        self.frame(0, kind, body, input);
    }

    fn message(&mut self, kind: Kind, message: &impl Serialize, input: &mut Input) {
        let mut body = Vec::new();
        ciborium::into_writer(message, &mut body).expect("a vector takes all");
        self.frame(0, kind, body, input);
    }

    fn frame(&mut self, connection: usize, kind: Kind, mut body: Vec<u8>, input: &mut Input) {
        if input.chance(24) {
            corrupt(&mut body, input);
        }
        let length = body.len();
        let mut bytes = FrameHeader { kind, length }.encode().to_vec();
        if input.chance(48) {
            corrupt(&mut bytes, input);
            // It may be anything now.
            self.is_committed = true;
        }
        self.is_committed |= kind == Kind::Commit;
        bytes.append(&mut body);
        self.frames.push((connection, bytes));
    }

    /// Sends all of it, as far as somebody listens.
    fn play(self, control: TcpStream, connect: impl Fn() -> TcpStream) {
        let mut streams = Vec::new();
        let mut first = Some(control);
        for greeting in &self.greetings {
            let stream = first.take().unwrap_or_else(&connect);
            match greet(stream, greeting) {
                Some(stream) => streams.push(stream),
                // With the streams all that the other side waits for ends.
                None => return,
            }
        }
        for (connection, bytes) in &self.frames {
            if streams[*connection].write_all(bytes).is_err() {
                return;
            }
        }
        for stream in &streams {
            let _ = stream.shutdown(Shutdown::Write);
        }
        for mut stream in streams {
            let mut scrap = [0; 4096];
            while stream.read(&mut scrap).is_ok_and(|count| count > 0) {}
        }
    }
}

/// Says `greeting`, and hears the answer.
fn greet(mut stream: TcpStream, greeting: &[u8]) -> Option<TcpStream> {
    stream.set_read_timeout(Some(SOON)).ok()?;
    stream.set_write_timeout(Some(SOON)).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.write_all(greeting).ok()?;
    if greeting.len() < PREAMBLE_BYTES {
        return None;
    }
    let mut answer = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut answer).ok()?;
    Some(stream)
}

fn hello(config: &VmConfig, data_connections: usize, input: &mut Input) -> Hello {
    let mut hello = Hello {
        vmm_version: "1".to_owned(),
        config: config.clone(),
        regions: REGIONS.map(|start| (start, REGION_BYTES as u64)).into(),
        data_connections: data_connections as u8,
        verify_memory: input.chance(2),
        may_leave_pages: false,
    };
    match input.below(64) {
        60 => hello.config.memory.size_mib = input.edge(),
        61 => hello.config.cpus.count = input.byte(),
        62 => hello.regions.push((input.edge(), input.edge())),
        63 => hello.data_connections = input.byte(),
        _ => {}
    }
    hello
}

fn corrupt(bytes: &mut Vec<u8>, input: &mut Input) {
    for _ in 0..=input.below(3) {
        if bytes.is_empty() {
            bytes.push(input.byte());
        }
        let at = input.below(bytes.len());
        match input.below(4) {
            0 => bytes[at] ^= 1 << input.below(8),
            1 => bytes[at] = input.byte(),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, input.byte()),
        }
    }
}
