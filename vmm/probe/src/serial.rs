//! The 16550 at 0x3f8: lines out through a ring that is emptied a little at every step, since
//! every byte is an exit; commands in.

use core::fmt;

use crate::machine::{in8, out8};

const DATA: u16 = 0x3f8;
const INTERRUPTS: u16 = DATA + 1;
const FIFO: u16 = DATA + 2;
const LINE_CONTROL: u16 = DATA + 3;
const MODEM_CONTROL: u16 = DATA + 4;
const LINE_STATUS: u16 = DATA + 5;
const RECEIVED: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// Bytes that may wait.
pub const RING: usize = 1 << 15;

/// 115200 8N1, FIFOs on, no interrupts.
pub fn init() {
    out8(INTERRUPTS, 0);
    out8(LINE_CONTROL, 0x83);
    out8(DATA, 1);
    out8(INTERRUPTS, 0);
    out8(LINE_CONTROL, 3);
    out8(FIFO, 1);
    out8(MODEM_CONTROL, 3);
}

fn ready() -> bool {
    in8(LINE_STATUS) & TRANSMITTER_EMPTY != 0
}

/// A byte that has come in.
pub fn receive() -> Option<u8> {
    (in8(LINE_STATUS) & RECEIVED != 0).then(|| in8(DATA))
}

/// Lines on their way out.
pub struct Output {
    ring: &'static mut [u8; RING],
    head: usize,
    tail: usize,
}

impl Output {
    /// Nothing waits.
    pub fn new(ring: &'static mut [u8; RING]) -> Self {
        Self {
            ring,
            head: 0,
            tail: 0,
        }
    }

    /// Whether bytes wait.
    pub fn pending(&self) -> bool {
        self.head != self.tail
    }

    /// Sends at most `most` bytes; false if the line is busy.
    pub fn drain(&mut self, most: usize) -> bool {
        if !self.pending() {
            return true;
        }
        if !ready() {
            return false;
        }
        for _ in 0..most {
            if !self.pending() {
                break;
            }
            out8(DATA, self.ring[self.tail % RING]);
            self.tail += 1;
        }
        true
    }

    /// Sends all, however long it takes.
    pub fn flush(&mut self) {
        while self.pending() {
            self.drain(16);
        }
    }
}

impl fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while self.head - self.tail == RING {
                self.drain(16);
            }
            self.ring[self.head % RING] = byte;
            self.head += 1;
        }
        Ok(())
    }
}

/// Straight to the line, for last words.
pub struct Direct;

impl fmt::Write for Direct {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while !ready() {}
            out8(DATA, byte);
        }
        Ok(())
    }
}
