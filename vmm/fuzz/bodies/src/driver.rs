//! A virtio driver that means well most of the time.

use vm_memory::{Bytes, GuestAddress};

use crate::input::Input;
use crate::machine::{QUEUE_SIZE, RAM_BYTES, Virtio, width};

/// Between the rings of two queues, in bytes: a page for each of the three parts.
const QUEUE_STRIDE: u64 = 0x3000;
/// Indirect tables.
const INDIRECT: u64 = 0x1_4000;
const INDIRECT_BYTES: u64 = 0x400;
/// Where requests' headers are, one page in all.
pub const HEADERS: u64 = 0x1_e000;
/// Where buffers are, to the end of RAM.
pub const DATA: u64 = 0x2_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_FLAG: u16 = 4;

// Offsets in the BAR (virtio 1.2, section 4.1.4.3, and this transport's regions).
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
pub const DEVICE_STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE_REGISTER: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_RINGS: u64 = 0x20;
const ISR: u64 = 0x1000;
const DEVICE_CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const NOTIFY_MULTIPLIER: u64 = 4;
const MSIX_TABLE: u64 = 0x4000;

pub const VERSION_1: u64 = 1 << 32;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

/// A buffer as good as any.
const FIRST_PAGE: Buffer = Buffer {
    address: DATA,
    len: 0x1000,
    writable: false,
};

/// The driver's side of a queue.
struct Ring {
    index: u16,
    size: u16,
    next_descriptor: u16,
    available: u16,
}

impl Ring {
    fn new(index: u16, size: u16) -> Self {
        Self {
            index,
            size,
            next_descriptor: 0,
            available: 0,
        }
    }

    fn descriptors(&self) -> u64 {
        u64::from(self.index) * QUEUE_STRIDE
    }

    fn available_ring(&self) -> u64 {
        self.descriptors() + 0x1000
    }

    fn used_ring(&self) -> u64 {
        self.descriptors() + 0x2000
    }
}

/// The driver of one device.
pub struct Driver<'a> {
    device: &'a Virtio,
    rings: Vec<Ring>,
}

impl<'a> Driver<'a> {
    pub fn new(device: &'a Virtio) -> Self {
        let rings = (0..device.queues).map(|index| Ring::new(index, QUEUE_SIZE));
        Self {
            device,
            rings: rings.collect(),
        }
    }

    /// Resets the device.
    pub fn reset(&mut self) {
        self.device.write(DEVICE_STATUS, &[0]);
        for ring in &mut self.rings {
            *ring = Ring::new(ring.index, QUEUE_SIZE);
        }
    }

    /// Features on offer.
    fn offered(&self) -> u64 {
        let mut halves = [0, 0];
        for (select, half) in (0_u32..).zip(&mut halves) {
            let mut data = [0; 4];
            self.device
                .write(DEVICE_FEATURE_SELECT, &select.to_le_bytes());
            self.device.read(DEVICE_FEATURE, &mut data);
            *half = u64::from(u32::from_le_bytes(data));
        }
        halves[0] | halves[1] << 32
    }

    fn negotiate(&self, features: u64) {
        self.device.write(DEVICE_STATUS, &[3]);
        for (select, half) in [(0_u32, features), (1, features >> 32)] {
            self.device
                .write(DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            self.device
                .write(DRIVER_FEATURE, &(half as u32).to_le_bytes());
        }
        self.device.write(DEVICE_STATUS, &[0xb]);
    }

    fn enable(&self, ring: &Ring, rings: [u64; 3]) {
        self.device.write(QUEUE_SELECT, &ring.index.to_le_bytes());
        self.device
            .write(QUEUE_SIZE_REGISTER, &ring.size.to_le_bytes());
        for (address, at) in rings.into_iter().zip((QUEUE_RINGS..).step_by(8)) {
            self.device.write(at, &address.to_le_bytes());
        }
        self.device
            .write(QUEUE_MSIX_VECTOR, &ring.index.to_le_bytes());
        self.device.write(QUEUE_ENABLE, &1_u16.to_le_bytes());
    }

    /// Sets the device up, most of the time as one should.
    pub fn start(&mut self, input: &mut Input) {
        let mut features = self.offered();
        if input.chance(3) {
            features &= input.qword() | VERSION_1;
        }
        if input.chance(64) {
            features ^= 1_u64.wrapping_shl(input.byte().into());
        }
        self.negotiate(features);
        for index in 0..self.rings.len() {
            if input.chance(8) {
                continue;
            }
            let ring = &mut self.rings[index];
            if input.chance(4) {
                ring.size = 1 << input.below(8);
            }
            let ring = &self.rings[index];
            let mut rings = [ring.descriptors(), ring.available_ring(), ring.used_ring()];
            if input.chance(24) {
                let part = input.below(3);
                rings[part] = match input.below(3) {
                    0 => address(input),
                    1 => rings[(part + 1) % 3],
                    _ => RAM_BYTES as u64 - 16,
                };
            }
            self.enable(ring, rings);
        }
        self.device.write(DEVICE_STATUS, &[0xf]);
    }

    /// Makes a chain of these buffers available on queue `index`, and now and then something
    /// that is not quite one.
    pub fn push(&mut self, input: &mut Input, index: usize, buffers: &[Buffer]) {
        let Some(ring) = self.rings.get_mut(index) else {
            return;
        };
        let head = ring.next_descriptor;
        let slots = ring.size.max(1);
        if input.chance(4) {
            let table = INDIRECT + u64::from(head % 16) * INDIRECT_BYTES;
            for (buffer, at) in buffers.iter().zip(0_u16..) {
                let last = usize::from(at) + 1 == buffers.len();
                let next = (!last).then_some(at + 1);
                write_descriptor(self.device, input, table, at, *buffer, next);
            }
            let mut len = 16 * buffers.len() as u32;
            if input.chance(16) {
                // A table that is longer than it looks, whose chain never ends.
                len = input.pick(&[0x400, 0x4010, 0xf_fff0]);
                let first = buffers.first().copied().unwrap_or(FIRST_PAGE);
                write_descriptor(self.device, input, table, 0, first, Some(0));
            }
            let pointer = Buffer {
                address: table,
                len,
                writable: false,
            };
            let at = ring.descriptors() + 16 * u64::from(head);
            let flags = INDIRECT_FLAG | if input.chance(32) { NEXT } else { 0 };
            write_raw(self.device, input, at, pointer, flags, 0);
            ring.next_descriptor = (head + 1) % slots;
        } else {
            for (position, buffer) in buffers.iter().enumerate() {
                let at = ring.next_descriptor;
                ring.next_descriptor = (at + 1) % slots;
                let next = (position + 1 < buffers.len()).then_some(ring.next_descriptor);
                let table = ring.descriptors();
                write_descriptor(self.device, input, table, at, *buffer, next);
            }
        }
        let head = if input.chance(48) { input.word() } else { head };
        let slot = ring.available_ring() + 4 + 2 * u64::from(ring.available % slots);
        self.poke(slot, &head.to_le_bytes());
        self.publish(input, index);
    }

    fn publish(&mut self, input: &mut Input, index: usize) {
        let ring = &mut self.rings[index];
        ring.available = match input.below(64) {
            63 => ring.available.wrapping_add(input.word()),
            _ => ring.available.wrapping_add(1),
        };
        let (at, available) = (ring.available_ring() + 2, ring.available);
        self.poke(at, &available.to_le_bytes());
    }

    /// Notifies the device of queue `index`.
    pub fn kick(&self, index: u64) {
        let index_bytes = (index as u16).to_le_bytes();
        self.device
            .write(NOTIFY + index * NOTIFY_MULTIPLIER, &index_bytes);
    }

    /// Writes guest RAM, where there is any.
    pub fn poke(&self, address: u64, data: &[u8]) {
        // Partial writes beyond the end of RAM are what a guest cannot do either.
        let _ = self.device.memory.write_slice(data, GuestAddress(address));
    }

    /// Reads guest RAM.
    pub fn peek<const LEN: usize>(&self, address: u64) -> [u8; LEN] {
        let mut data = [0; LEN];
        let read = self
            .device
            .memory
            .read_slice(&mut data, GuestAddress(address));
        read.expect("this is RAM");
        data
    }

    /// Does one thing that a driver should not, or that nobody minds.
    pub fn disturb(&mut self, input: &mut Input) {
        let mut data = [0; 8];
        match input.below(12) {
            // Rings are moved and descriptors change while in use.
            0..=2 => {
                let value = input.edge().to_le_bytes();
                let at = input.below(usize::from(self.device.queues) * QUEUE_STRIDE as usize);
                self.poke(at as u64, &value[..width(input)]);
            }
            3 => {
                let value = input.edge().to_le_bytes();
                let at = QUEUE_SELECT + input.below(0x28) as u64;
                self.device.write(at, &value[..width(input)]);
            }
            4 => {
                let value = input.edge().to_le_bytes();
                let at = DEVICE_CONFIG + input.below(0x60) as u64;
                self.device.write(at, &value[..width(input)]);
            }
            5 => {
                let at = DEVICE_CONFIG + input.below(0x60) as u64;
                self.device.read(at, &mut data[..width(input)]);
            }
            6 => self.device.read(ISR, &mut data[..1]),
            7 => {
                let value = input.edge().to_le_bytes();
                let at = MSIX_TABLE + input.below(0x100) as u64;
                self.device.write(at, &value[..width(input)]);
            }
            8 => {
                self.device.transport.pause();
                let saved = self.device.transport.save();
                saved.expect("a paused device can be saved");
                self.device.transport.resume();
            }
            9 => self.device.write(DEVICE_STATUS, &[input.byte()]),
            10 => {
                self.reset();
                self.start(input);
            }
            _ => {
                let ring = input.below(self.rings.len());
                self.publish(input, ring);
            }
        }
    }

    /// After a reset the device must do a request as if nothing had been: the buffers, each with
    /// what is written to its start, on queue `index`. Returns the used length.
    pub fn assert_works(&mut self, index: u16, request: &[(Buffer, &[u8])]) -> u32 {
        let calm = &mut Input::new(&[]);
        self.reset();
        // Only now: until the reset the device may write to any of RAM, and give it back.
        for (buffer, content) in request {
            self.poke(buffer.address, content);
        }
        let ring = Ring::new(index, QUEUE_SIZE);
        let rings = [ring.descriptors(), ring.available_ring(), ring.used_ring()];
        self.poke(ring.available_ring(), &[0; 4]);
        self.poke(ring.used_ring(), &[0; 12]);
        self.negotiate(VERSION_1);
        self.enable(&ring, rings);
        let used = ring.used_ring();
        let buffers = request.iter().map(|(buffer, _)| *buffer);
        self.push(calm, index.into(), &buffers.collect::<Vec<_>>());
        self.device.write(DEVICE_STATUS, &[0xf]);
        // Nothing is in flight any more when this returns.
        self.device.transport.pause();
        let data: [u8; 12] = self.peek(used);
        self.device.transport.resume();
        assert!(!self.device.transport.needs_reset(), "after a reset");
        assert_eq!(data[2..4], [1, 0], "the request was done");
        self.reset();
        u32::from_le_bytes([data[8], data[9], data[10], data[11]])
    }
}

fn write_descriptor(
    device: &Virtio,
    input: &mut Input,
    table: u64,
    index: u16,
    buffer: Buffer,
    next: Option<u16>,
) {
    let mut flags = if buffer.writable { WRITE } else { 0 };
    if next.is_some() {
        flags |= NEXT;
    }
    let at = table + 16 * u64::from(index);
    write_raw(device, input, at, buffer, flags, next.unwrap_or(0));
}

/// Writes a descriptor, one field of which may be wrong.
fn write_raw(
    device: &Virtio,
    input: &mut Input,
    at: u64,
    mut buffer: Buffer,
    mut flags: u16,
    mut next: u16,
) {
    match input.below(128) {
        120 => buffer.address = address(input),
        121 => buffer.address = buffer.address.wrapping_add(input.edge()),
        122 => buffer.len = length(input),
        123 => buffer.len = buffer.len.wrapping_add(input.edge() as u32),
        124 => flags ^= 1 << input.below(16),
        125 => flags = input.word(),
        126 => next = input.word(),
        127 => {
            flags |= NEXT;
            next = input.byte().into();
        }
        _ => {}
    }
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&buffer.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&buffer.len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    let _ = device.memory.write_slice(&bytes, GuestAddress(at));
}

/// An address that is in RAM, or nearly so.
pub fn address(input: &mut Input) -> u64 {
    match input.below(8) {
        0..=3 => DATA + input.below(RAM_BYTES - DATA as usize) as u64,
        4 => RAM_BYTES as u64 - input.below(0x100) as u64,
        5 => input.below(RAM_BYTES) as u64,
        _ => input.edge(),
    }
}

/// A length, small most of the time.
pub fn length(input: &mut Input) -> u32 {
    match input.below(8) {
        0..=3 => input.below(0x400) as u32,
        4 => input.below(0x1_0000) as u32,
        5 => 0,
        _ => input.edge() as u32,
    }
}

/// Up to `most` buffers.
pub fn buffers(input: &mut Input, most: usize) -> Vec<Buffer> {
    let count = 1 + input.below(most);
    let buffer = |_| Buffer {
        address: DATA + input.below(RAM_BYTES - DATA as usize - 0x400) as u64,
        len: input.below(0x400) as u32,
        writable: input.chance(2),
    };
    (0..count).map(buffer).collect()
}
