//! Real-time clock and CMOS memory (MC146818A datasheet; the memory's layout as SeaBIOS reads
//! it, `src/hw/rtc.h`).
//!
//! The clock is the host's, in UTC, plus what the guest has set it off by in whole seconds.
//! Interrupts (periodic, alarm, update-ended) come from one host timer: its owner waits for
//! [`Rtc::timer`] to become readable and calls [`Rtc::on_timer`]. Without an owner the flags in
//! register C are still right whenever they are read.

mod calendar;
mod chip;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use vmm_sys_util::timerfd::TimerFd;

use super::IrqLine;
use crate::arch::x86_64::layout;
use crate::bus::BusDevice;
use crate::state::{Section, StateError};
use chip::Chip;

/// Ports that the device takes: index and data.
pub const PORTS: u64 = 2;

/// Offset of the data port.
const DATA: u64 = 1;
/// The index port's top bit masks NMIs, which we have none of.
const INDEX_BITS: u8 = 0x7f;

const KIND: &str = "rtc";
const VERSION: u16 = 1;

/// What firmware finds about the machine in CMOS memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CmosConfig {
    /// Guest RAM in bytes, without firmware.
    pub ram_bytes: u64,
    /// Number of vCPUs, at least 1.
    pub vcpus: u8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    index: u8,
    /// All 128 registers; those of the clock only count while it stands.
    registers: Vec<u8>,
    /// What the guest's clock is ahead of the host's, in seconds.
    offset_s: i64,
}

/// The clock and its memory.
pub struct Rtc {
    inner: Mutex<Inner>,
    timer: RawFd,
    irq: Arc<dyn IrqLine>,
}

struct Inner {
    index: u8,
    chip: Chip,
    /// Level of the interrupt.
    asserted: bool,
    timer: TimerFd,
    /// When the timer goes off, in time since 1970.
    armed: Option<Duration>,
}

impl Rtc {
    /// A clock that shows the host's time.
    ///
    /// # Errors
    /// The host gives no timer.
    pub fn new(config: &CmosConfig, irq: Arc<dyn IrqLine>) -> io::Result<Self> {
        let inner = Inner {
            index: 0,
            chip: Chip::new(memory(config), now()),
            asserted: false,
            timer: TimerFd::new()?,
            armed: None,
        };
        Ok(Self {
            timer: inner.timer.as_raw_fd(),
            inner: Mutex::new(inner),
            irq,
        })
    }

    /// A timerfd that becomes readable when [`Self::on_timer`] must be called. Nobody reads it.
    /// It lives as long as this device, and is armed only while the guest has enabled an
    /// interrupt.
    pub fn timer(&self) -> RawFd {
        self.timer
    }

    /// Raises the interrupts that are due, and arms the timer for the next.
    pub fn on_timer(&self) {
        let mut inner = self.lock();
        // Setting it again is what makes it unreadable.
        inner.disarm();
        inner.chip.advance(now());
        inner.settle(&*self.irq);
    }

    /// Power-on state of what a reset clears: interrupts are off. Clock and memory run on a
    /// battery.
    pub fn reset(&self) {
        let mut inner = self.lock();
        inner.index = 0;
        inner.chip.reset();
        inner.settle(&*self.irq);
    }

    /// All registers and the clock's offset.
    ///
    /// # Errors
    /// [`StateError::Body`] if it cannot be encoded.
    pub fn save(&self) -> Result<Section, StateError> {
        let inner = self.lock();
        let state = State {
            index: inner.index,
            registers: inner.chip.registers().to_vec(),
            offset_s: inner.chip.offset_s(),
        };
        Section::new(KIND, "", VERSION, &state)
    }

    /// Takes what [`Self::save`] gave; the clock keeps its distance to the host's. The interrupt
    /// controllers must have their state already.
    ///
    /// # Errors
    /// [`StateError`] if the section is not one of ours.
    pub fn restore(&self, section: &Section) -> Result<(), StateError> {
        if section.kind != KIND {
            return Err(section.invalid("not the RTC's"));
        }
        let state: State = section.parse(VERSION)?;
        let chip = Chip::restore(&state.registers, state.offset_s, now())
            .ok_or_else(|| section.invalid("not 128 registers, or a time that cannot be"))?;
        let mut inner = self.lock();
        inner.index = state.index & INDEX_BITS;
        inner.chip = chip;
        inner.settle(&*self.irq);
        // Whatever the line was before, it follows the state now.
        self.irq.set(inner.asserted);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Brings interrupt and timer in line with the chip.
    fn settle(&mut self, irq: &dyn IrqLine) {
        let level = self.chip.interrupts();
        if level != self.asserted {
            self.asserted = level;
            irq.set(level);
        }
        let now = now();
        match self.chip.next_interrupt(now) {
            Some(at) if self.armed == Some(at) => {}
            Some(at) => {
                // A duration of zero would disarm it.
                let after = at.saturating_sub(now).max(Duration::from_nanos(1));
                self.armed = Some(at);
                if let Err(error) = self.timer.reset(after, None) {
                    tracing::error!(%error, "the RTC's timer cannot be set");
                }
            }
            None => self.disarm(),
        }
    }

    fn disarm(&mut self) {
        if self.armed.take().is_some()
            && let Err(error) = self.timer.clear()
        {
            tracing::error!(%error, "the RTC's timer cannot be cleared");
        }
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset != DATA || data.len() != 1 {
            return;
        }
        let mut inner = self.lock();
        let index = inner.index;
        data[0] = inner.chip.read(index, now());
        inner.settle(&*self.irq);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        for (port, &value) in (offset..).zip(data) {
            if port == DATA {
                let index = inner.index;
                inner.chip.write(index, value, now());
            } else {
                inner.index = value & INDEX_BITS;
            }
        }
        inner.settle(&*self.irq);
    }
}

/// The host's time since 1970.
fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// CMOS memory as firmware expects it; the first 14 bytes are the clock's.
fn memory(config: &CmosConfig) -> [u8; chip::REGISTERS] {
    const KIB: u64 = 1 << 10;
    const UNIT: u64 = 64 << 10;
    let word = |value: u64| (value.min(0xffff) as u16).to_le_bytes();
    let below_4g = config.ram_bytes.min(layout::RAM_BELOW_4G_END);
    let extended = word(below_4g.saturating_sub(1 << 20) / KIB);
    let units_from_16m = word(below_4g.saturating_sub(16 << 20) / UNIT);
    let high_ram = ((config.ram_bytes - below_4g) / UNIT).min(0xff_ffff);

    let mut memory = [0; chip::REGISTERS];
    memory[0x14] = EQUIPMENT_FPU;
    memory[0x15..0x17].copy_from_slice(&word(640));
    memory[0x17..0x19].copy_from_slice(&extended);
    memory[0x30..0x32].copy_from_slice(&extended);
    memory[0x34..0x36].copy_from_slice(&units_from_16m);
    memory[0x38] = BOOT_WITHOUT_FLOPPY_CHECK;
    memory[0x3d] = BOOT_DISK_THEN_CD;
    memory[0x5b..0x5e].copy_from_slice(&high_ram.to_le_bytes()[..3]);
    memory[0x5f] = config.vcpus.saturating_sub(1);
    memory
}

/// Equipment: a floating-point unit.
const EQUIPMENT_FPU: u8 = 1 << 1;
/// Boot flags 1: the boot sector of a floppy is not checked.
const BOOT_WITHOUT_FLOPPY_CHECK: u8 = 1;
/// Boot flags 2: first a disk (2), then a CD (3).
const BOOT_DISK_THEN_CD: u8 = 0x32;

#[cfg(test)]
mod tests;
