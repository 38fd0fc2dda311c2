//! The local APIC: the tick that ends a sleep, and the interrupts that start further vCPUs.

use crate::boot::TIMER_VECTOR;
use crate::machine::{self, Registers};
use crate::tsc::Clock;

// SAFETY: the architecture puts the LAPIC's page there, the baked tables map it.
const LAPIC: Registers = unsafe { Registers::new(0xfee0_0000, 4096) };

const EOI: usize = 0xb0;
const SPURIOUS: usize = 0xf0;
const ICR_LOW: usize = 0x300;
const LVT_TIMER: usize = 0x320;
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;

const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DIVIDE_BY_1: u32 = 0b1011;
const ALL_BUT_SELF: u32 = 0b11 << 18;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;

/// Counts of the timer a second: KVM and QEMU both run the APIC bus at 1 GHz.
pub const TIMER_HZ: u64 = 1_000_000_000;

/// Masks the two PICs, whose vector 0 would come as soon as interrupts are on.
pub fn mask_pics() {
    for (command, data, base, cascade) in [(0x20, 0x21, 0x20, 4), (0xa0, 0xa1, 0x28, 2)] {
        machine::out8(command, 0x11);
        machine::out8(data, base);
        machine::out8(data, cascade);
        machine::out8(data, 1);
        machine::out8(data, 0xff);
    }
}

/// Takes this vCPU's LAPIC into use, with nothing unmasked.
pub fn enable() {
    LAPIC.write32(SPURIOUS, 0x1ff);
    LAPIC.write32(LVT_LINT0, MASKED);
    LAPIC.write32(LVT_LINT1, MASKED);
    LAPIC.write32(LVT_TIMER, MASKED | u32::from(TIMER_VECTOR));
    LAPIC.write32(TIMER_DIVIDE, DIVIDE_BY_1);
}

/// Starts this vCPU's tick.
pub fn start_tick(tick_us: u64) {
    LAPIC.write32(LVT_TIMER, PERIODIC | u32::from(TIMER_VECTOR));
    LAPIC.write32(TIMER_INITIAL, (tick_us * (TIMER_HZ / 1_000_000)) as u32);
}

/// Stops it: a vCPU that spins is not to be disturbed.
pub fn stop_tick() {
    LAPIC.write32(TIMER_INITIAL, 0);
}

/// Acknowledges the tick.
pub fn end_of_interrupt() {
    LAPIC.write32(EOI, 0);
}

/// Sends INIT and twice STARTUP to all other vCPUs.
pub fn start_others(clock: &Clock, trampoline: usize) {
    LAPIC.write32(ICR_LOW, ALL_BUT_SELF | INIT);
    clock.spin_us(10_000);
    for _ in 0..2 {
        LAPIC.write32(ICR_LOW, ALL_BUT_SELF | STARTUP | (trampoline >> 12) as u32);
        clock.spin_us(200);
    }
}

/// TSC cycles a second, measured over 10 ms of the timer.
pub fn measure_tsc_hz() -> u64 {
    LAPIC.write32(TIMER_INITIAL, u32::MAX);
    let (start_tsc, start_count) = read_pair();
    loop {
        let (tsc, count) = read_pair();
        let counts = u64::from(start_count.wrapping_sub(count));
        if counts >= TIMER_HZ / 100 {
            stop_tick();
            return (u128::from(tsc - start_tsc) * u128::from(TIMER_HZ) / u128::from(counts))
                as u64;
        }
    }
}

/// TSC and timer at one moment: of several tries the one that was disturbed least.
fn read_pair() -> (u64, u32) {
    (0..5)
        .map(|_| {
            let before = machine::tsc();
            let count = LAPIC.read32(TIMER_CURRENT);
            let after = machine::tsc();
            (after - before, (before.midpoint(after), count))
        })
        .min_by_key(|&(width, _)| width)
        .map_or((0, 0), |(_, pair)| pair)
}
