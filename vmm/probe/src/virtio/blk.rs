//! The virtio-blk exercise: so many requests in flight, each timed.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use pindah_probe::content::{Noise, PAGE_BYTES, PAGE_WORDS, Pages};
use pindah_probe::histogram::Histogram;
use pindah_probe::options::{BlkOp, Options};
use pindah_probe::pace::Pacer;

use super::queue::{Part, Queue};
use super::{Device, TYPE_BLK};
use crate::machine;
use crate::memory::Memory;
use crate::report::Report;
use crate::window::Window;

const SECTOR: u64 = 512;
const READ: u64 = 0;
const WRITE: u64 = 1;
const STATUS_OK: u64 = 0;
const SLOTS: usize = 64;
const QUEUE_SIZE: u16 = 256;
const PARTS: u16 = 3;
/// Words of a slot's header: type, sector, status, one spare.
const HEADER_WORDS: usize = 4;
/// Generations that the verification remembers.
const BLOCKS_MAX: u64 = 1 << 20;
const COMPLETIONS_A_STEP: usize = 64;

/// One request that is in flight.
#[derive(Clone, Copy, Default)]
struct Slot {
    started: u64,
    block: u64,
    write: bool,
    busy: bool,
}

/// The exercise and all that it has counted.
pub struct Blk {
    device: Device,
    queue: Queue,
    op: BlkOp,
    block_bytes: u64,
    blocks: u64,
    slots: [Slot; SLOTS],
    depth: usize,
    headers: &'static [AtomicU64],
    buffers: u64,
    pages: Pages,
    generations: &'static mut [u32],
    noise: Noise,
    next_block: u64,
    window: Window,
    pacer: Pacer,
    seconds: u64,
    in_flight: usize,
    ios: u64,
    errors: u64,
    bad: u64,
    latency: Histogram,
    done: bool,
}

impl Blk {
    /// Finds the disk and sets it up.
    ///
    /// # Errors
    /// What is missing.
    pub fn open(o: &Options, memory: &mut Memory, report: &Report) -> Result<Self, &'static str> {
        let device = super::find(o, o.blk_dev, |kind| kind == TYPE_BLK)
            .ok_or("blk: no such virtio 1.x disk on PCI or on the named MMIO slots")?;
        device.begin(0)?;
        let queue = device.queue(0, QUEUE_SIZE, memory)?;
        device.ready();
        let depth = (o.blk_qd as usize).min(usize::from(queue.size / PARTS));
        let bytes = u64::from(device.config32(0)) | u64::from(device.config32(4)) << 32;
        let bytes = bytes.saturating_mul(SECTOR);
        let span = match o.blk_span_mib {
            0 => bytes,
            mib => bytes.min(mib << 20),
        };
        let mut blocks = span / o.blk_bs;
        let verify = o.blk_op == BlkOp::Verify;
        if verify {
            blocks = blocks.min(BLOCKS_MAX);
            if !o.blk_bs.is_multiple_of(PAGE_BYTES) {
                return Err("blk: blk_op=verify wants a blk_bs of 4k or more");
            }
        }
        if blocks < depth as u64 {
            return Err("blk: the disk has fewer blocks than blk_qd");
        }
        let remembered = if verify { blocks as usize } else { 0 };
        let now = machine::tsc();
        let rate = if o.blk_iops == 0 {
            u64::MAX
        } else {
            o.blk_iops
        };
        let blk = Self {
            op: o.blk_op,
            block_bytes: o.blk_bs,
            blocks,
            slots: [Slot::default(); SLOTS],
            depth,
            headers: memory
                .take_slice(HEADER_WORDS * SLOTS)
                .ok_or("blk: no RAM for headers")?,
            buffers: memory
                .take(o.blk_bs * depth as u64)
                .ok_or("blk: no RAM for buffers")? as u64,
            pages: Pages {
                content: o.content,
                rewrite: true,
            },
            generations: memory
                .take_slice(remembered)
                .ok_or("blk: no RAM for generations")?,
            noise: Noise::new(now),
            next_block: 0,
            window: Window::new(report.clock, now, o.blk_s),
            pacer: Pacer::new(rate, report.clock.hz, now),
            seconds: o.blk_s,
            in_flight: 0,
            ios: 0,
            errors: 0,
            bad: 0,
            latency: Histogram::new(),
            done: false,
            device,
            queue,
        };
        Ok(blk)
    }

    /// Starts the clock: what was before was setting up.
    pub fn start(&mut self, report: &Report) {
        self.window = Window::new(report.clock, machine::tsc(), self.seconds);
    }

    /// Takes what is done, asks for more. True if there is more to do at once.
    pub fn step(&mut self, report: &mut Report) -> bool {
        if self.done {
            return false;
        }
        for _ in 0..COMPLETIONS_A_STEP {
            let Some((head, _)) = self.queue.pop() else {
                break;
            };
            self.complete(usize::from(head / PARTS), report);
        }
        let now = machine::tsc();
        let over = self.window.over(now);
        if !over {
            self.submit(now);
        }
        if over && self.in_flight == 0 {
            self.done = true;
            self.report(report, now);
        } else if self.window.line_due(now) {
            self.report(report, now);
        }
        !self.done && (self.in_flight > 0 || self.pacer.behind())
    }

    fn submit(&mut self, now: u64) {
        let free = (self.depth - self.in_flight) as u64;
        let due = self.pacer.take(now, free);
        if due == 0 {
            return;
        }
        for _ in 0..due {
            let Some(slot) = self.slots[..self.depth].iter().position(|slot| !slot.busy) else {
                break;
            };
            self.request(slot);
        }
        self.device.kick(&self.queue);
    }

    fn request(&mut self, index: usize) {
        let (block, write) = self.choose(index);
        if write && self.op == BlkOp::Verify {
            let generation = self.generations[block as usize].wrapping_add(1).max(1);
            self.generations[block as usize] = generation;
            for (page, words) in self.block_pages(index, block) {
                self.pages.fill(words, page, generation);
            }
        }
        let header = &self.headers[HEADER_WORDS * index..];
        header[0].store(if write { WRITE } else { READ }, Relaxed);
        header[1].store(block * (self.block_bytes / SECTOR), Relaxed);
        header[2].store(0xff, Relaxed);
        let header = header.as_ptr() as u64;
        let part = |address, len, writable| Part {
            address,
            len,
            writable,
        };
        let head = PARTS * index as u16;
        self.queue.write_chain(
            head,
            &[
                part(header, 16, false),
                part(self.buffer(index), self.block_bytes as u32, !write),
                part(header + 16, 1, true),
            ],
        );
        self.slots[index] = Slot {
            started: machine::tsc(),
            block,
            write,
            busy: true,
        };
        self.in_flight += 1;
        self.queue.push(head);
    }

    fn choose(&mut self, index: usize) -> (u64, bool) {
        match self.op {
            BlkOp::RandRead => (self.noise.next_word() % self.blocks, false),
            BlkOp::RandWrite => (self.noise.next_word() % self.blocks, true),
            BlkOp::SeqRead | BlkOp::SeqWrite => {
                let block = self.next_block;
                self.next_block = (block + 1) % self.blocks;
                (block, self.op == BlkOp::SeqWrite)
            }
            BlkOp::Verify => {
                // Each slot has blocks of its own, so that no two requests meet.
                let depth = self.depth as u64;
                let own = (self.blocks - index as u64).div_ceil(depth);
                let noise = self.noise.next_word();
                let block = (noise >> 1) % own * depth + index as u64;
                let known = self.generations[block as usize] != 0;
                (block, !known || noise & 1 == 0)
            }
        }
    }

    fn complete(&mut self, index: usize, report: &mut Report) {
        let slot = core::mem::take(&mut self.slots[index]);
        if !slot.busy {
            self.errors += 1;
            return;
        }
        self.in_flight -= 1;
        self.ios += 1;
        self.latency
            .record(machine::tsc().saturating_sub(slot.started));
        let status = self.headers[HEADER_WORDS * index + 2].load(Acquire) & 0xff;
        if status != STATUS_OK {
            self.errors += 1;
            if slot.write && self.op == BlkOp::Verify {
                self.generations[slot.block as usize] = 0;
            }
        } else if !slot.write && self.op == BlkOp::Verify {
            self.check(index, slot.block, report);
        }
    }

    fn check(&mut self, index: usize, block: u64, report: &mut Report) {
        let generation = self.generations[block as usize];
        for (page, words) in self.block_pages(index, block) {
            if let Err(mismatch) = self.pages.check(words, page, generation) {
                self.bad += 1;
                report
                    .line("bad_block")
                    .num("offset", page * PAGE_BYTES + mismatch.offset)
                    .num("generation", generation)
                    .hex("expected", mismatch.expected)
                    .hex("found", mismatch.found)
                    .finish();
                return;
            }
        }
    }

    fn buffer(&self, index: usize) -> u64 {
        self.buffers + index as u64 * self.block_bytes
    }

    /// The 4 KiB parts of a slot's buffer, with their numbers on the disk.
    fn block_pages(
        &self,
        index: usize,
        block: u64,
    ) -> impl Iterator<Item = (u64, &'static mut [u64; PAGE_WORDS])> + use<> {
        let (buffer, count) = (self.buffer(index), self.block_bytes / PAGE_BYTES);
        (0..count).map(move |part| {
            let address = (buffer + part * PAGE_BYTES) as *mut [u64; PAGE_WORDS];
            // SAFETY: the slot's own RAM; the device is done with it, and there is one iterator.
            (block * count + part, unsafe { &mut *address })
        })
    }

    fn report(&self, report: &mut Report, now: u64) {
        let line = report
            .line("blk")
            .text("op", self.op.name())
            .num("bs", self.block_bytes)
            .num("qd", self.depth)
            .num("done", self.done)
            .num("ios", self.ios)
            .num("iops", self.window.per_second(now, self.ios))
            .num(
                "mib_s",
                self.window.mib_per_second(now, self.ios * self.block_bytes),
            );
        self.window
            .latencies(line, &self.latency)
            .num("errors", self.errors)
            .num("bad", self.bad)
            .finish();
    }
}
