//! Requests to a disk: whatever the guest asks for, only the sectors that it names change.
//!
//! Headers that write name sectors at the image's start only, and all of RAM that is not a header
//! or a ring is filled so that it cannot pass for one. The image's end, farther away than the
//! longest chain reaches, must stay as it is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{LazyLock, Mutex};

use pindah_vmm::devices::virtio::block::BlockHandle;

use crate::driver::{Buffer, DATA, Driver, HEADERS};
use crate::input::Input;
use crate::machine::{self, QUEUE_SIZE, RAM_BYTES, Virtio};

/// What requests name, at the image's start.
const LOW_SECTORS: u64 = 32;
const LOW_BYTES: usize = LOW_SECTORS as usize * 512;
/// Where the guarded end starts: no chain has more bytes than a queue's size times RAM's.
const GUARD_AT: u64 = QUEUE_SIZE as u64 * RAM_BYTES as u64 + LOW_BYTES as u64;
const GUARD_BYTES: usize = 0x2000;
const DISK_BYTES: u64 = GUARD_AT + GUARD_BYTES as u64;
const DISK_SECTORS: u64 = DISK_BYTES / 512;
/// As a type it is unknown, as a sector beyond the end.
const RAM_FILL: u8 = 0xaa;
const LOW_FILL: u8 = 0x33;
const GUARD_FILL: u8 = 0x55;
/// Room for one header.
const HEADER_STRIDE: u64 = 16;
/// Room for one request's data.
const DATA_STRIDE: u64 = 0x1000;
const REQUESTS_MAX: usize = 32;

// Request types (virtio 1.2, section 5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

struct Fixture {
    device: Virtio,
    image: File,
    handle: BlockHandle,
}

static FIXTURE: LazyLock<Mutex<Fixture>> = LazyLock::new(|| {
    let image = machine::memfd(&[]);
    refill(&image);
    let (block, handle) = machine::block(&image);
    let device = Virtio::new(Box::new(block), &machine::memory());
    Mutex::new(Fixture {
        device,
        image,
        handle,
    })
});

/// Runs one case.
pub fn run(data: &[u8]) {
    let fixture = FIXTURE.lock().expect("a failed case ends the process");
    let input = &mut Input::new(data);
    let mut driver = Driver::new(&fixture.device);
    driver.reset();
    machine::fill(&fixture.device.memory, RAM_FILL);
    clear_rings(&driver);
    let mut requests = 0;
    for _ in 0..input.below(8) {
        request(&mut driver, input, &mut requests);
    }
    driver.start(input);
    for _ in 0..48 {
        if input.is_empty() {
            break;
        }
        match input.below(8) {
            0..=3 => request(&mut driver, input, &mut requests),
            4 | 5 => driver.kick(input.below(3) as u64),
            6 => drop(fixture.handle.metrics()),
            _ => driver.disturb(input),
        }
    }
    fixture.device.transport.pause();
    let saved = fixture.device.transport.save();
    saved.expect("a paused device can be saved");
    fixture.device.transport.resume();
    driver.reset();
    assert_guard(&fixture.image);
    refill(&fixture.image);
    read_one(&mut driver);
}

/// The rings' pages begin as zeroes: nothing is available.
fn clear_rings(driver: &Driver) {
    for page in 0..6 {
        driver.poke(page * 0x1000, &[0; 0x1000]);
    }
}

fn request(driver: &mut Driver, input: &mut Input, requests: &mut usize) {
    let slot = (*requests % REQUESTS_MAX) as u64;
    *requests += 1;
    let kind = match input.below(16) {
        0..=3 => IN,
        4..=8 => OUT,
        9 => FLUSH,
        10 => GET_ID,
        11 | 12 => DISCARD,
        13 | 14 => WRITE_ZEROES,
        _ => input.edge() as u32 | 0x100,
    };
    let sectors = 1 + input.below(4) as u64;
    let mut sector = input.below((LOW_SECTORS - sectors) as usize) as u64;
    if input.chance(16) {
        // Reads may go anywhere. What writes is only ever told a sector beyond the disk.
        sector = input.edge().max(if kind == IN { 0 } else { DISK_SECTORS });
    }
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    let at = HEADERS + slot * HEADER_STRIDE;
    driver.poke(at, &header);
    let chain = chain(driver, input, slot, kind, sector, sectors);
    let queue = input.below(2);
    driver.push(input, queue, &chain);
}

/// Header, data in one buffer or two, status.
fn chain(
    driver: &Driver,
    input: &mut Input,
    slot: u64,
    kind: u32,
    sector: u64,
    sectors: u64,
) -> Vec<Buffer> {
    let data = DATA + slot * DATA_STRIDE;
    let len = match kind {
        IN | OUT => 512 * sectors as u32,
        GET_ID => 20,
        DISCARD | WRITE_ZEROES => {
            let mut segment = [0; 16];
            segment[..8].copy_from_slice(&sector.to_le_bytes());
            segment[8..12].copy_from_slice(&(sectors as u32).to_le_bytes());
            segment[12] = input.byte() & 1;
            driver.poke(data, &segment);
            16
        }
        FLUSH => 0,
        _ => input.below(64) as u32,
    };
    let writable = matches!(kind, IN | GET_ID);
    let part = |address, len, writable| Buffer {
        address,
        len,
        writable,
    };
    let mut chain = vec![part(HEADERS + slot * HEADER_STRIDE, 16, false)];
    let first = match input.below(4) {
        0 if len > 1 => 1 + input.below(len as usize - 1) as u32,
        _ => len,
    };
    if first > 0 {
        chain.push(part(data, first, writable));
    }
    if len > first {
        chain.push(part(data + u64::from(first), len - first, writable));
    }
    chain.push(part(data + DATA_STRIDE - 1, 1, true));
    if input.chance(32) {
        let left = input.below(chain.len());
        chain.remove(left);
    }
    chain
}

/// The image as it is at the beginning of a case.
fn refill(image: &File) {
    // Drops all that was written between start and end.
    let filled = image
        .set_len(0)
        .and_then(|()| image.write_all_at(&[LOW_FILL; LOW_BYTES], 0))
        .and_then(|()| image.write_all_at(&[GUARD_FILL; GUARD_BYTES], GUARD_AT));
    filled.expect("memory for a small file");
}

fn assert_guard(image: &File) {
    let mut guard = [0; GUARD_BYTES];
    let read = image.read_exact_at(&mut guard, GUARD_AT);
    read.expect("the image has its length");
    let touched = guard.iter().position(|&byte| byte != GUARD_FILL);
    assert_eq!(touched, None, "a sector that no request has named");
    let len = image.metadata().expect("the image is open").len();
    assert_eq!(len, DISK_BYTES);
}

/// The disk works after a reset.
fn read_one(driver: &mut Driver) {
    let mut header = [0; 16];
    header[8..].copy_from_slice(&(GUARD_AT / 512).to_le_bytes());
    let part = |address, len, writable| Buffer {
        address,
        len,
        writable,
    };
    let chain = [
        (part(HEADERS, 16, false), &header[..]),
        (part(DATA, 512, true), &[]),
        (part(DATA + 512, 1, true), &[]),
    ];
    assert_eq!(driver.assert_works(0, &chain), 513);
    let [data @ .., status]: [u8; 513] = driver.peek(DATA);
    assert!(data.iter().all(|&byte| byte == GUARD_FILL));
    assert_eq!(status, 0);
}
