//! Further vCPUs: INIT and STARTUP to all, each takes the next number, those too many go to sleep.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use crate::boot::{self, TRAMPOLINE};
use crate::memory::Memory;
use crate::shared::STATS;
use crate::worker::{Plan, Worker};
use crate::{apic, machine};

const STACK_BYTES: u64 = 32 << 10;
/// How long the others may take to come.
const PATIENCE_US: u64 = 10_000_000;

struct PlanCell(UnsafeCell<Option<Plan>>, AtomicBool);

// SAFETY: written once by the first vCPU before the flag, read by others after it.
unsafe impl Sync for PlanCell {}

static PLAN: PlanCell = PlanCell(UnsafeCell::new(None), AtomicBool::new(false));

/// Starts `plan.cpus - 1` vCPUs; says how many run then, this one included.
pub fn start(plan: &Plan, memory: &mut Memory) -> Option<u64> {
    if plan.cpus == 1 {
        return Some(1);
    }
    // SAFETY: no other vCPU runs yet.
    unsafe { *PLAN.0.get() = Some(*plan) };
    PLAN.1.store(true, Release);
    for cpu in 1..plan.cpus as usize {
        let top = memory.take(STACK_BYTES)? as u64 + STACK_BYTES;
        boot::further_stacks[cpu].store(top - 8, Relaxed);
        fill_tss_descriptor(cpu);
    }
    copy_trampoline();
    boot::further_cpus_max.store(plan.cpus as u32 - 1, Release);
    apic::start_others(&plan.clock, TRAMPOLINE);
    let end = machine::tsc() + plan.clock.cycles(PATIENCE_US);
    loop {
        let online = 1 + STATS[1..]
            .iter()
            .filter(|stats| stats.online.load(Acquire))
            .count();
        if online as u64 == plan.cpus || machine::tsc() > end {
            return Some(online as u64);
        }
        core::hint::spin_loop();
    }
}

/// Ring 3 of a further vCPU.
#[unsafe(no_mangle)]
extern "C" fn further_main(cpu: u64) -> ! {
    while !PLAN.1.load(Acquire) {
        core::hint::spin_loop();
    }
    // SAFETY: the flag says that the plan is there, and nobody writes it any more.
    let plan = unsafe { *PLAN.0.get() }.expect("the flag says so");
    apic::enable();
    let mut worker = Worker::new(&plan, cpu);
    loop {
        if !worker.step() {
            worker.rest();
        }
    }
}

/// An available TSS of 64 bits, whose limit covers the shared I/O bitmap and its end byte.
fn fill_tss_descriptor(cpu: usize) {
    const STRIDE: u64 = 128;
    const BITMAP: u64 = 8192;
    let base = &raw const boot::tss as u64 + STRIDE * cpu as u64;
    let limit = STRIDE * (boot::CPUS_MAX - cpu) as u64 + BITMAP;
    let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    boot::gdt[6 + 2 * cpu].store(low, Relaxed);
    boot::gdt[7 + 2 * cpu].store(base >> 32, Relaxed);
}

fn copy_trampoline() {
    let from = &raw const boot::trampoline;
    let len = &raw const boot::trampoline_end as usize - from as usize;
    // SAFETY: both ranges are mapped RAM; the page below 1 MiB is nobody's once the boot
    // information is copied.
    unsafe { core::ptr::copy_nonoverlapping(from, TRAMPOLINE as *mut u8, len) };
}
