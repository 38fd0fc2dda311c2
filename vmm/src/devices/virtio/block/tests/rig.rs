//! A block device with a driver, for tests: RAM, one queue or several, requests in one call.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pindah_vmm_api::{DiskLimits, ErrorPolicy};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::devices::MachineControl;
use crate::devices::virtio::block::{Block, BlockHandle, BlockOptions, DiskResources};
use crate::devices::virtio::testing::{
    Buffer, DriverQueue, FakeInterrupt, memory, readable, writable,
};
use crate::devices::virtio::{Activation, ActiveQueue, VirtioDevice};
use crate::memory::GuestMemory;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;
pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

/// Where headers and status bytes are: 32 bytes for each descriptor of a queue.
const HEADERS: u64 = 0x20_0000;
/// Where data is, for who does not choose.
pub const DATA: u64 = 0x40_0000;
const RAM_MIB: usize = 32;

/// Remembers what was asked of it.
#[derive(Default)]
pub struct Machine {
    pub pauses: Mutex<Vec<String>>,
}

impl MachineControl for Machine {
    fn request_reset(&self) {}
    fn request_power_off(&self) {}
    fn request_pause(&self, device: &str, reason: &str, no_space: bool) {
        assert_eq!(no_space, reason.contains("No space left"), "{reason}");
        self.pauses
            .lock()
            .unwrap()
            .push(format!("{device}: {reason}"));
    }
}

pub fn options() -> BlockOptions {
    BlockOptions {
        queues: 1,
        queue_size: 256,
        serial: "serial number 1".to_owned(),
        on_error: ErrorPolicy::Report,
        limits: DiskLimits::default(),
    }
}

pub struct Rig {
    pub memory: Arc<GuestMemory>,
    pub block: Block,
    pub handle: BlockHandle,
    pub machine: Arc<Machine>,
    pub queues: Vec<DriverQueue>,
    pub interrupt: Arc<FakeInterrupt>,
    features: u64,
    next_header: u64,
    headers: u64,
    parked: Vec<(u16, Queue)>,
}

impl Rig {
    pub fn new(resources: DiskResources, options: &BlockOptions) -> Self {
        Self::with_features(resources, options, u64::MAX)
    }

    /// A rig whose driver takes only the features in `mask`.
    pub fn with_features(resources: DiskResources, options: &BlockOptions, mask: u64) -> Self {
        let mut rig = Self::parked(resources, options, mask);
        rig.activate();
        rig
    }

    /// A rig whose driver is not ready yet.
    pub fn parked(resources: DiskResources, options: &BlockOptions, mask: u64) -> Self {
        Self::build(resources, options, mask, true)
    }

    /// A rig on an image that may turn out to be none.
    pub fn try_new(resources: DiskResources, options: &BlockOptions) -> Option<Self> {
        let machine = Arc::new(Machine::default());
        let made = Block::new("disk0", options, resources, Arc::clone(&machine) as _);
        let mut rig = Self::around(made.ok()?, machine, options, u64::MAX);
        let activation = rig.activation();
        rig.block.activate(activation).ok()?;
        Some(rig)
    }

    /// A rig without io_uring.
    pub fn blocking(resources: DiskResources, options: &BlockOptions) -> Self {
        let mut rig = Self::build(resources, options, u64::MAX, false);
        rig.activate();
        rig
    }

    fn build(resources: DiskResources, options: &BlockOptions, mask: u64, ring: bool) -> Self {
        let machine = Arc::new(Machine::default());
        let made = Block::build("disk0", options, resources, Arc::clone(&machine) as _, ring);
        Self::around(made.unwrap(), machine, options, mask)
    }

    fn around(
        (block, handle): (Block, BlockHandle),
        machine: Arc<Machine>,
        options: &BlockOptions,
        mask: u64,
    ) -> Self {
        let memory = memory(RAM_MIB);
        let mut base = 0x1000;
        let mut queues = Vec::new();
        for _ in 0..options.queues {
            let queue = DriverQueue::new(&memory, base, options.queue_size);
            base = queue.end();
            queues.push(queue);
        }
        assert!(base < HEADERS);
        Self {
            features: block.features() & mask,
            memory,
            block,
            handle,
            machine,
            parked: (0..).zip(queues.iter().map(DriverQueue::queue)).collect(),
            queues,
            interrupt: FakeInterrupt::new(options.queues.into()),
            next_header: 0,
            headers: u64::from(options.queue_size) * u64::from(options.queues),
        }
    }

    /// Goes on with the queues as they are.
    pub fn activate(&mut self) {
        let activation = self.activation();
        self.block.activate(activation).unwrap();
    }

    fn activation(&mut self) -> Activation {
        let parked = std::mem::take(&mut self.parked);
        let queues = parked.into_iter().map(|(index, queue)| ActiveQueue {
            index,
            queue,
            kick: Arc::clone(&self.queues[usize::from(index)].kick),
        });
        Activation {
            memory: Arc::clone(&self.memory),
            features: self.features,
            queues: queues.collect(),
            interrupt: Arc::clone(&self.interrupt) as _,
        }
    }

    pub fn deactivate(&mut self) {
        self.parked = self.block.deactivate();
    }

    /// The queues of a device that is not active: next_avail, next_used.
    pub fn positions(&self) -> Vec<(u16, u16)> {
        let positions = self.parked.iter();
        positions
            .map(|(_, queue)| (queue.next_avail(), queue.next_used()))
            .collect()
    }

    /// What a driver does after a reset.
    pub fn reset(&mut self) {
        self.block.deactivate();
        let mut base = 0x1000;
        for queue in &mut self.queues {
            let size = (queue.available_ring() - queue.descriptor_table()) / 16;
            let zeroes = vec![0; (queue.end() - base) as usize];
            self.memory
                .write_slice(&zeroes, GuestAddress(base))
                .unwrap();
            *queue = DriverQueue::new(&self.memory, base, size as u16);
            base = queue.end();
        }
        self.parked = (0..)
            .zip(self.queues.iter().map(DriverQueue::queue))
            .collect();
    }

    /// Moves a parked device's queues, memory and saved state to another device.
    pub fn move_to(mut self, resources: DiskResources, options: &BlockOptions) -> Self {
        let section = self.block.save().unwrap();
        let machine = Arc::new(Machine::default());
        let (mut block, handle) =
            Block::new("disk0", options, resources, Arc::clone(&machine) as _).unwrap();
        block.restore(&section).unwrap();
        assert_eq!(block.save().unwrap(), section);
        self.block = block;
        self.handle = handle;
        self.machine = machine;
        self
    }

    /// Puts a request into a queue without a kick; returns its head and where its status will be.
    pub fn push(&mut self, queue: usize, kind: u32, sector: u64, data: &[Buffer]) -> (u16, u64) {
        let at = HEADERS + 32 * (self.next_header % self.headers);
        self.next_header += 1;
        let header = [u64::from(kind), sector];
        self.memory.write_obj(header, GuestAddress(at)).unwrap();
        self.memory
            .write_obj(0xff_u8, GuestAddress(at + 16))
            .unwrap();
        let mut chain = vec![readable(at, 16)];
        chain.extend_from_slice(data);
        chain.push(writable(at + 16, 1));
        (self.queues[queue].push(&chain), at + 16)
    }

    pub fn status(&self, address: u64) -> u8 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// Does one request on queue 0; returns its status and the used length.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let (head, status) = self.push(0, kind, sector, data);
        self.queues[0].kick();
        let (used, len) = self.queues[0].wait_used();
        assert_eq!(used, head);
        (self.status(status), len)
    }

    /// Writes `bytes` at `sector` through one buffer at `address`.
    pub fn write_from(&mut self, address: u64, sector: u64, bytes: &[u8]) -> u8 {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
        let (status, len) = self.request(OUT, sector, &[readable(address, bytes.len() as u32)]);
        assert_eq!(len, 1);
        status
    }

    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.write_from(DATA, sector, bytes)
    }

    /// Reads through one buffer at `address`.
    pub fn read_to(&mut self, address: u64, sector: u64, len: usize) -> (u8, Vec<u8>) {
        let mut bytes = vec![0xa5; len];
        self.memory
            .write_slice(&bytes, GuestAddress(address))
            .unwrap();
        let (status, used) = self.request(IN, sector, &[writable(address, len as u32)]);
        assert_eq!(used, if status == OK { len as u32 + 1 } else { 1 });
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        (status, bytes)
    }

    pub fn read(&mut self, sector: u64, len: usize) -> Vec<u8> {
        let (status, bytes) = self.read_to(DATA, sector, len);
        assert_eq!(status, OK);
        bytes
    }

    /// Reads without touching the buffer from this side.
    pub fn read_untouched(&mut self, address: u64, len: u32) -> u8 {
        self.request(IN, 0, &[writable(address, len)]).0
    }

    /// Discards or zeroes.
    pub fn zero(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let segment = [sector, u64::from(sectors) | u64::from(flags) << 32];
        self.memory.write_obj(segment, GuestAddress(DATA)).unwrap();
        self.request(kind, 0, &[readable(DATA, 16)]).0
    }
}

/// Bytes that say where they are, so that a sector in the wrong place shows.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A file of `len` bytes, sparse.
pub fn make_file(path: &Path, len: u64) {
    File::create(path).unwrap().set_len(len).unwrap();
}
