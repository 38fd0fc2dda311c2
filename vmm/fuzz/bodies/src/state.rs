//! Saved state: sections of a machine that ran, corrupted, given back to it; and the bytes that
//! hold them, in a migration's form and in a snapshot's file.
//!
//! What a machine takes it must be able to run with, save and take again.

use std::fs;
use std::path::Path;
use std::sync::{LazyLock, Mutex};

use ciborium::Value;
use pindah_vmm::arch::x86_64::layout;
use pindah_vmm::snapshot::{MEMORY_FILE, Manifest, MemoryMap, STATE_FILE, Snapshot};
use pindah_vmm::state::Section;
use pindah_vmm::vm::state::VmState;
use pindah_vmm_api::VmConfig;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

use crate::driver::{Driver, buffers};
use crate::input::Input;
use crate::machine;
use crate::platform::{Machine, assert_same};

/// Magic, format and length before a snapshot's body.
const HEADER: usize = 20;

struct Fixture {
    machine: Machine,
    encoded: Vec<u8>,
    manifest: Vec<u8>,
    directory: TempDir,
}

static FIXTURE: LazyLock<Mutex<Fixture>> = LazyLock::new(|| Mutex::new(Fixture::new()));

impl Fixture {
    fn new() -> Self {
        let machine = Machine::new();
        let config: VmConfig =
            serde_json::from_str(r#"{"memory": {"size_mib": 64}}"#).expect("a valid configuration");
        let vm = VmState::new(config, machine.save());
        let encoded = vm.encode().expect("a small state");
        let manifest = Manifest {
            vm,
            memory: MemoryMap::default(),
        };
        let mut body = Vec::new();
        ciborium::into_writer(&manifest, &mut body).expect("a vector takes all");
        // Memory, so that a million cases cost no disk; anywhere else does too.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let directory = directory.expect("a place for two files");
        fs::write(directory.path().join(MEMORY_FILE), []).expect("room for no bytes");
        machine.resume();
        Self {
            machine,
            encoded,
            manifest: body,
            directory,
        }
    }
}

/// Runs one case.
pub fn run(data: &[u8]) {
    let fixture = FIXTURE.lock().expect("a failed case ends the process");
    let input = &mut Input::new(data);
    match input.below(8) {
        0 => decode(&fixture.encoded, input),
        1 => open(&fixture.manifest, fixture.directory.path(), input),
        2 => clocks(&fixture.machine, input),
        _ => sections(&fixture.machine, input),
    }
}

/// Bytes as a peer sends them.
fn decode(encoded: &[u8], input: &mut Input) {
    let mut bytes = encoded.to_vec();
    corrupt_bytes(&mut bytes, input);
    if let Ok(state) = VmState::decode(&bytes) {
        let again = state.encode().expect("what was decoded can be encoded");
        VmState::decode(&again).expect("what was encoded can be decoded");
    }
}

/// A snapshot's file, with a checksum that is right most of the time.
fn open(manifest: &[u8], directory: &Path, input: &mut Input) {
    let mut body = manifest.to_vec();
    corrupt_bytes(&mut body, input);
    let mut file = b"PINDAHSS\x01\0\0\0".to_vec();
    file.extend((body.len() as u64).to_le_bytes());
    file.extend(body);
    if input.chance(4) {
        let at = input.below(HEADER);
        file[at] = input.byte();
    }
    let checksum = xxh3_64(&file);
    file.extend(checksum.to_le_bytes());
    if input.chance(8) {
        let len = input.below(file.len());
        file.truncate(len);
    }
    fs::write(directory.join(STATE_FILE), &file).expect("room for a small file");
    // What is not right is refused.
    let _ = Snapshot::open(directory);
}

fn corrupt_bytes(bytes: &mut Vec<u8>, input: &mut Input) {
    for _ in 0..=input.below(6) {
        let at = input.below(bytes.len());
        match input.below(6) {
            0 => bytes[at] ^= 1 << input.below(8),
            1 => bytes[at] = input.byte(),
            // Heads of CBOR items of unlimited length.
            2 => bytes[at] = input.pick(&[0x5f, 0x7f, 0x9f, 0xbf, 0x9b, 0xbb, 0x5b, 0x7b, 0xff]),
            3 => {
                let value = input.edge().to_be_bytes();
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&value[..end - at]);
            }
            4 => drop(bytes.remove(at)),
            _ => bytes.insert(at, input.byte()),
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
}

fn clocks(machine: &Machine, input: &mut Input) {
    let mut saved = machine.save_clocks();
    corrupt(&mut saved[input.below(2)], input);
    if machine.restore_clocks(&saved).is_ok() {
        for _ in 0..8 {
            let (base, len) = input.pick(&[(layout::PORT_RTC, 2), (layout::PORT_ACPI_PM, 0x10)]);
            let port = base + input.below(len) as u64;
            machine.ports.write(port, &[input.byte()]);
            machine.ports.read(port, &mut [0]);
            machine.ports.read(layout::PORT_ACPI_PM + 8, &mut [0; 4]);
        }
        let saved = machine.save_clocks();
        let restored = machine.restore_clocks(&saved);
        restored.expect("what was saved can be restored");
    }
    machine.reset();
}

fn sections(machine: &Machine, input: &mut Input) {
    machine.reset();
    machine::fill(&machine.memory, 0);
    for device in &machine.virtio {
        let mut driver = Driver::new(device);
        driver.start(input);
        for _ in 0..input.below(4) {
            let queue = input.below(device.queues.into());
            let chain = buffers(input, 3);
            driver.push(input, queue, &chain);
        }
    }
    let mut saved = machine.save();
    for _ in 0..=input.below(3) {
        let section = input.below(saved.len());
        corrupt(&mut saved[section], input);
    }
    if machine.restore(&saved).is_err() {
        return;
    }
    let taken = machine.save();
    machine
        .restore(&taken)
        .expect("what was taken can be taken again");
    assert_same(&machine.save(), &taken);
    machine.resume();
    for device in &machine.virtio {
        let mut driver = Driver::new(device);
        driver.kick(input.below(2) as u64);
        driver.disturb(input);
    }
    let saved = machine.save();
    machine
        .restore(&saved)
        .expect("what was saved can be restored");
}

fn corrupt(section: &mut Section, input: &mut Input) {
    match input.below(64) {
        62 => section.version = input.word(),
        63 => section.id.push_str("other"),
        _ => {}
    }
    corrupt_value(&mut section.body, input);
}

/// Walks to some item and changes it.
fn corrupt_value(value: &mut Value, input: &mut Input) {
    match value {
        Value::Map(pairs) if !pairs.is_empty() && !input.chance(16) => {
            let at = input.below(pairs.len());
            match input.below(24) {
                22 => drop(pairs.remove(at)),
                23 => {
                    let pair = pairs[at].clone();
                    pairs.push(pair);
                }
                _ => corrupt_value(&mut pairs[at].1, input),
            }
        }
        Value::Array(items) if !items.is_empty() && !input.chance(16) => {
            let at = input.below(items.len());
            match input.below(12) {
                10 => items.truncate(at),
                11 => {
                    let item = items[at].clone();
                    let more = input.pick(&[1, 2, 300, 5000]);
                    items.extend(std::iter::repeat_n(item, more));
                }
                _ => corrupt_value(&mut items[at], input),
            }
        }
        other => *other = scalar(input, other),
    }
}

fn scalar(input: &mut Input, old: &Value) -> Value {
    let integer = |number: u64| Value::Integer(number.into());
    match (input.below(16), old) {
        (0, _) => Value::Null,
        (1, _) => Value::Text("text".to_owned()),
        (2, _) => Value::Array(Vec::new()),
        (3, _) => Value::Integer((input.edge() as i64).into()),
        (4, _) => integer(input.edge()),
        (_, Value::Bytes(bytes)) => {
            let mut bytes = bytes.clone();
            bytes.resize(input.pick(&[0, 1, 64, 4096, 100_000]), input.byte());
            Value::Bytes(bytes)
        }
        (_, Value::Bool(flag)) => Value::Bool(!flag),
        (5..=8, _) => integer(input.edge() & 0xff),
        (9..=11, _) => integer(input.edge() & 0xffff),
        (12, _) => integer(u64::from(input.edge() as u32)),
        _ => integer(1_u64.wrapping_shl(input.byte().into())),
    }
}
