//! Stand-ins for the machine, for the tests of devices.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::{IrqLine, MachineControl};

/// A line that remembers its level.
#[derive(Default)]
pub struct FakeLine {
    level: AtomicBool,
}

impl FakeLine {
    /// The level now.
    pub fn level(&self) -> bool {
        self.level.load(Ordering::SeqCst)
    }
}

impl IrqLine for FakeLine {
    fn set(&self, asserted: bool) {
        self.level.store(asserted, Ordering::SeqCst);
    }
}

/// A machine that counts what it was asked for.
#[derive(Default)]
pub struct FakeControl {
    resets: AtomicU32,
    power_offs: AtomicU32,
}

impl FakeControl {
    /// Resets asked for so far.
    pub fn resets(&self) -> u32 {
        self.resets.load(Ordering::SeqCst)
    }

    /// Times that it was asked to switch off.
    pub fn power_offs(&self) -> u32 {
        self.power_offs.load(Ordering::SeqCst)
    }
}

impl MachineControl for FakeControl {
    fn request_reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }

    fn request_power_off(&self) {
        self.power_offs.fetch_add(1, Ordering::SeqCst);
    }

    fn request_pause(&self, _device: &str, _reason: &str, _no_space: bool) {}
}
