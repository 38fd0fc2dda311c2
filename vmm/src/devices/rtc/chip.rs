//! The chip's registers as a function of time; no locks, no host.

use std::time::Duration;

use super::calendar::DateTime;
use crate::arch::x86_64::layout;

/// Registers of the chip, its memory included.
pub(super) const REGISTERS: usize = 128;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: usize = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const A: usize = 0x0a;
const B: usize = 0x0b;
const C: usize = 0x0c;
const D: usize = 0x0d;
const CENTURY: u8 = layout::CMOS_CENTURY;
/// Registers that show the time.
const CLOCK: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];

const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// The upper two bits of the divider: both set hold the clock.
const A_DIVIDER_RESET: u8 = 0x60;
const A_RATE: u8 = 0x0f;
/// A crystal of 32,768 Hz, periodic interrupt of 1,024 Hz.
const A_DEFAULT: u8 = 0x26;
const B_SET: u8 = 1 << 7;
const B_PERIODIC: u8 = 1 << 6;
const B_ALARM: u8 = 1 << 5;
const B_UPDATE: u8 = 1 << 4;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
/// Enable bits of B, which are the flags of C.
const INTERRUPTS: u8 = B_PERIODIC | B_ALARM | B_UPDATE;
const C_IRQ: u8 = 1 << 7;
/// The battery is good.
const D_VALID: u8 = 1 << 7;

const HOUR_PM: u8 = 1 << 7;
/// Alarm registers from here on match everything.
const ALARM_ANY: u8 = 0xc0;

/// When in a second the chip says that an update is coming: 244 µs before its end.
const UPDATE_STARTS_NS: u32 = 999_756_000;
/// Frequency of the crystal.
const CRYSTAL_HZ: u128 = 32_768;
const NANOS: u128 = 1_000_000_000;
/// Further from the host's clock than any four-digit year; keeps the arithmetic in range.
const OFFSET_MAX_S: u64 = 1 << 40;

/// The chip. All times are the host's, since 1970; the guest's is `offset_s` ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chip {
    registers: [u8; REGISTERS],
    offset_s: i64,
    /// Up to when the flags of C are right.
    advanced: Duration,
}

impl Chip {
    /// A chip that shows the host's time, with `memory` behind the clock's registers.
    pub fn new(memory: [u8; REGISTERS], now: Duration) -> Self {
        let mut registers = memory;
        registers[A] = A_DEFAULT;
        registers[B] = B_24_HOURS;
        registers[C] = 0;
        registers[D] = D_VALID;
        Self {
            registers,
            offset_s: 0,
            advanced: now,
        }
    }

    /// A chip with this state, if it can be.
    pub fn restore(registers: &[u8], offset_s: i64, now: Duration) -> Option<Self> {
        let mut registers: [u8; REGISTERS] = registers.try_into().ok()?;
        registers[A] &= !A_UPDATE_IN_PROGRESS;
        registers[C] &= INTERRUPTS;
        registers[D] = D_VALID;
        (offset_s.unsigned_abs() <= OFFSET_MAX_S).then_some(Self {
            registers,
            offset_s,
            advanced: now,
        })
    }

    pub fn registers(&self) -> &[u8; REGISTERS] {
        &self.registers
    }

    pub fn offset_s(&self) -> i64 {
        self.offset_s
    }

    /// What the RESET pin does.
    pub fn reset(&mut self) {
        self.registers[B] &= !INTERRUPTS;
        self.registers[C] = 0;
    }

    /// Whether the interrupt pin is active.
    pub fn interrupts(&self) -> bool {
        self.registers[B] & self.registers[C] & INTERRUPTS != 0
    }

    /// Reads register `index`, below 128.
    pub fn read(&mut self, index: u8, now: Duration) -> u8 {
        self.advance(now);
        if CLOCK.contains(&index) && !self.stands() {
            self.show(now);
        }
        let index = usize::from(index);
        match index {
            A if self.is_updating(now) => self.registers[A] | A_UPDATE_IN_PROGRESS,
            C => {
                let irq = if self.interrupts() { C_IRQ } else { 0 };
                std::mem::take(&mut self.registers[C]) | irq
            }
            _ => self.registers[index],
        }
    }

    /// Writes register `index`, below 128.
    pub fn write(&mut self, index: u8, value: u8, now: Duration) {
        self.advance(now);
        let stood = self.stands();
        let is_clock = CLOCK.contains(&index);
        if !stood && (is_clock || usize::from(index) == A || usize::from(index) == B) {
            self.show(now);
        }
        let index = usize::from(index);
        match index {
            A => self.registers[A] = value & !A_UPDATE_IN_PROGRESS,
            // A clock that is being set does not say that it was updated.
            B if value & B_SET != 0 => self.registers[B] = value & !B_UPDATE,
            B => self.registers[B] = value,
            C | D => {}
            _ => self.registers[index] = value,
        }
        if !self.stands() && (stood || is_clock) {
            self.offset_s = self.shown().to_unix() - now.as_secs() as i64;
        }
    }

    /// Whether the guest holds the clock to set it.
    fn stands(&self) -> bool {
        self.registers[B] & B_SET != 0 || self.registers[A] & A_DIVIDER_RESET == A_DIVIDER_RESET
    }

    fn is_updating(&self, now: Duration) -> bool {
        !self.stands() && now.subsec_nanos() >= UPDATE_STARTS_NS
    }

    fn guest_seconds(&self, now: Duration) -> i64 {
        now.as_secs() as i64 + self.offset_s
    }

    /// Puts the time into the registers, in the guest's format.
    fn show(&mut self, now: Duration) {
        let time = DateTime::from_unix(self.guest_seconds(now));
        for (register, value) in [
            (SECONDS, time.second),
            (MINUTES, time.minute),
            (WEEKDAY, time.weekday),
            (DAY, time.day),
            (MONTH, time.month),
            (YEAR, time.year.rem_euclid(100) as u8),
            (CENTURY, (time.year.div_euclid(100) % 100) as u8),
        ] {
            self.registers[usize::from(register)] = self.encode(value);
        }
        self.registers[usize::from(HOURS)] = self.encode_hour(time.hour);
    }

    /// The time that is in the registers.
    fn shown(&self) -> DateTime {
        let field = |index: u8| self.decode(self.registers[usize::from(index)]);
        DateTime {
            year: i64::from(field(CENTURY)) * 100 + i64::from(field(YEAR)),
            month: field(MONTH),
            day: field(DAY),
            weekday: field(WEEKDAY),
            hour: self.decode_hour(self.registers[usize::from(HOURS)]),
            minute: field(MINUTES),
            second: field(SECONDS),
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.registers[B] & B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.registers[B] & B_BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 0x0f)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.registers[B] & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let half = if hour >= 12 { HOUR_PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | half
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.registers[B] & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let half = if value & HOUR_PM != 0 { 12 } else { 0 };
        self.decode(value & !HOUR_PM) % 12 + half
    }

    /// Sets the flags of all that has happened up to `now`.
    pub fn advance(&mut self, now: Duration) {
        let before = std::mem::replace(&mut self.advanced, now);
        if now <= before {
            return;
        }
        if let Some(period) = self.period()
            && ticks(now) / period != ticks(before) / period
        {
            self.registers[C] |= B_PERIODIC;
        }
        let (from, to) = (self.guest_seconds(before), self.guest_seconds(now));
        if !self.stands() && from != to {
            self.registers[C] |= B_UPDATE;
            if self.next_alarm(from).is_some_and(|alarm| alarm <= to) {
                self.registers[C] |= B_ALARM;
            }
        }
    }

    /// Period of the periodic interrupt in ticks of the crystal, if there is one.
    fn period(&self) -> Option<u128> {
        if self.registers[A] & A_DIVIDER_RESET == A_DIVIDER_RESET {
            return None;
        }
        match self.registers[A] & A_RATE {
            0 => None,
            // The two lowest do what 8 and 9 do.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// The first second of the guest's time after `after` that the alarm matches.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let matches = |register: usize, value: u8| {
            let alarm = self.registers[register];
            alarm >= ALARM_ANY || alarm == value
        };
        let mut second = after + 1;
        // Hours, then minutes, then seconds until each matches, at most twice over midnight.
        for _ in 0..2 * (24 + 60 + 60) {
            let time = DateTime::from_unix(second);
            second = if !matches(HOURS_ALARM, self.encode_hour(time.hour)) {
                (second.div_euclid(3600) + 1) * 3600
            } else if !matches(MINUTES_ALARM, self.encode(time.minute)) {
                (second.div_euclid(60) + 1) * 60
            } else if !matches(SECONDS_ALARM, self.encode(time.second)) {
                second + 1
            } else {
                return Some(second);
            };
        }
        None
    }

    /// When the next interrupt is due that the guest has enabled. None while one is pending:
    /// the pin cannot become more active than it is.
    pub fn next_interrupt(&self, now: Duration) -> Option<Duration> {
        if self.interrupts() {
            return None;
        }
        let enabled = |bit: u8| self.registers[B] & bit != 0;
        let periodic = self
            .period()
            .filter(|_| enabled(B_PERIODIC))
            .map(|period| time_of((ticks(now) / period + 1) * period));
        let runs = !self.stands();
        let update = (runs && enabled(B_UPDATE)).then(|| Duration::from_secs(now.as_secs() + 1));
        let alarm = (runs && enabled(B_ALARM))
            .then(|| self.next_alarm(self.guest_seconds(now)))
            .flatten()
            .and_then(|second| u64::try_from(second - self.offset_s).ok())
            .map(Duration::from_secs);
        [periodic, update, alarm].into_iter().flatten().min()
    }
}

/// Ticks of the crystal since 1970.
fn ticks(time: Duration) -> u128 {
    time.as_nanos() * CRYSTAL_HZ / NANOS
}

/// The first time at which [`ticks`] is `ticks`.
fn time_of(ticks: u128) -> Duration {
    Duration::from_nanos((ticks * NANOS).div_ceil(CRYSTAL_HZ) as u64)
}
