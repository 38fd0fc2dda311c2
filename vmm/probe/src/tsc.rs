//! Time: the TSC since the entry, and where its frequency is known from.

use crate::{apic, boot, machine};

/// Turns TSC cycles into microseconds since the first Rust code ran.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: u64,
    /// TSC cycles a second.
    pub hz: u64,
    /// Where `hz` is from.
    pub source: &'static str,
}

impl Clock {
    /// A clock that started at `start`. Measuring its frequency takes 10 ms, where no CPUID leaf
    /// names it.
    pub fn new(start: u64) -> Self {
        let (hz, source) = from_cpuid().unwrap_or_else(|| (apic::measure_tsc_hz(), "lapic"));
        Self { start, hz, source }
    }

    /// Microseconds from the start to `tsc`.
    pub fn us(&self, tsc: u64) -> u64 {
        self.span_us(tsc.saturating_sub(self.start))
    }

    /// Microseconds in so many cycles.
    pub fn span_us(&self, cycles: u64) -> u64 {
        (u128::from(cycles) * 1_000_000 / u128::from(self.hz)) as u64
    }

    /// Nanoseconds in so many cycles.
    pub fn span_ns(&self, cycles: u64) -> u64 {
        (u128::from(cycles) * 1_000_000_000 / u128::from(self.hz)) as u64
    }

    /// Cycles in so many microseconds.
    pub fn cycles(&self, us: u64) -> u64 {
        (u128::from(us) * u128::from(self.hz) / 1_000_000) as u64
    }

    /// Waits without sleeping.
    pub fn spin_us(&self, us: u64) {
        let end = machine::tsc() + self.cycles(us);
        while machine::tsc() < end {
            core::hint::spin_loop();
        }
    }
}

fn from_cpuid() -> Option<(u64, &'static str)> {
    let max = boot::cpuid(0).map_or(0, |answer| answer.eax);
    let hypervisor_max = boot::cpuid(0x4000_0000).map_or(0, |answer| answer.eax);
    if (0x4000_0010..0x4000_1000).contains(&hypervisor_max) {
        let khz = boot::cpuid(0x4000_0010)?.eax;
        if khz != 0 {
            return Some((u64::from(khz) * 1000, "cpuid_40000010"));
        }
    }
    if max >= 0x15 {
        let leaf = boot::cpuid(0x15)?;
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
            return Some((hz, "cpuid_15"));
        }
    }
    None
}
