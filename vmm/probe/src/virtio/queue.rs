//! A split virtqueue, driver side, without interrupts.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use crate::memory::Memory;

const NEXT: u64 = 1;
const WRITE: u64 = 2;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u32 = 1;

/// One part of a descriptor chain.
#[derive(Clone, Copy)]
pub struct Part {
    pub address: u64,
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// The rings. Who uses it knows which descriptors are free.
pub struct Queue {
    pub index: u16,
    pub size: u16,
    /// Address; length, flags and next.
    descriptors: &'static [AtomicU64],
    /// Flags, index, ring.
    available: &'static [AtomicU16],
    /// Flags and index, then identity and length of each.
    used: &'static [AtomicU32],
    next_available: u16,
    next_used: u16,
}

impl Queue {
    /// Empty rings for `size` descriptors, a power of two.
    pub fn new(index: u16, size: u16, memory: &mut Memory) -> Option<Self> {
        let n = usize::from(size);
        let queue = Self {
            index,
            size,
            descriptors: memory.take_slice(2 * n)?,
            available: memory.take_slice(3 + n)?,
            used: memory.take_slice(2 + 2 * n)?,
            next_available: 0,
            next_used: 0,
        };
        queue.available[0].store(NO_INTERRUPT, Relaxed);
        Some(queue)
    }

    /// Addresses of descriptor table, available and used ring.
    pub fn addresses(&self) -> [u64; 3] {
        [
            self.descriptors.as_ptr() as u64,
            self.available.as_ptr() as u64,
            self.used.as_ptr() as u64,
        ]
    }

    /// Writes a chain that begins at descriptor `head` and takes those after it.
    pub fn write_chain(&self, head: u16, parts: &[Part]) {
        for (offset, part) in parts.iter().enumerate() {
            let at = head + offset as u16;
            let last = offset + 1 == parts.len();
            let flags = if last { 0 } else { NEXT } | if part.writable { WRITE } else { 0 };
            let next = if last { 0 } else { u64::from(at) + 1 };
            let entry = 2 * usize::from(at);
            self.descriptors[entry].store(part.address, Relaxed);
            self.descriptors[entry + 1]
                .store(u64::from(part.len) | flags << 32 | next << 48, Relaxed);
        }
    }

    /// Gives the chain at `head` to the device, which is not told yet.
    pub fn push(&mut self, head: u16) {
        let slot = usize::from(self.next_available % self.size);
        self.available[2 + slot].store(head, Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
        self.available[1].store(self.next_available, Release);
    }

    /// A chain that the device has done with, and how many bytes it wrote.
    pub fn pop(&mut self) -> Option<(u16, u32)> {
        let index = (self.used[0].load(Acquire) >> 16) as u16;
        if index == self.next_used {
            return None;
        }
        let slot = 1 + 2 * usize::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        let head = self.used[slot].load(Relaxed) as u16;
        Some((head, self.used[slot + 1].load(Relaxed)))
    }

    /// Whether the device asks for notifications now.
    pub fn wants_notification(&self) -> bool {
        self.used[0].load(Relaxed) & NO_NOTIFY == 0
    }
}
