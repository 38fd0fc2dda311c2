//! The entry in ring 0, the tables that it bakes into the image, and the names of its parts.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicU64};

global_asm!(include_str!("boot.S"), options(att_syntax, raw));

/// Most vCPUs that the tables have room for.
pub const CPUS_MAX: usize = 64;
/// Where the entry of further vCPUs is copied: a page below 1 MiB that SIPI can name.
pub const TRAMPOLINE: usize = 0x8000;
/// Entered by PVH.
pub const PROTOCOL_PVH: u32 = 1;

/// One CPUID leaf, asked for in ring 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CpuidAnswer {
    pub leaf: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// A page table, a descriptor table.
pub type Table = [AtomicU64; 512];

unsafe extern "C" {
    static cpuid_answers: [CpuidAnswer; 5];
    pub safe static gdt: [AtomicU64; 6 + 2 * CPUS_MAX];
    pub safe static idt: Table;
    pub safe static pml4: Table;
    pub safe static tss: AtomicU64;
    pub safe static further_cpus_max: AtomicU32;
    pub safe static further_stacks: [AtomicU64; CPUS_MAX];
    pub safe static trampoline: u8;
    pub safe static trampoline_end: u8;
    safe static __image_end: u8;
    safe fn vector_general_protection();
    safe fn vector_timer();
    safe fn vector_other();
    safe fn vector_exceptions();
    /// Sleeps in ring 0 until an interrupt comes.
    pub safe fn sleep_until_interrupt();
}

/// First address after the image.
pub fn image_end() -> u64 {
    &raw const __image_end as u64
}

/// What CPUID said in ring 0, if that leaf was asked for.
pub fn cpuid(leaf: u32) -> Option<CpuidAnswer> {
    // SAFETY: boot.S filled the table before the first Rust code ran, and nobody writes it after.
    let answers = unsafe { &cpuid_answers };
    answers.iter().find(|answer| answer.leaf == leaf).copied()
}

/// The vector that the LAPIC timer raises.
pub const TIMER_VECTOR: u8 = 0x40;

/// Fills the interrupt descriptor table: until then an exception is a triple fault.
pub fn fill_idt() {
    use core::sync::atomic::Ordering::Relaxed;
    for vector in 0..256usize {
        let handler = match vector {
            13 => vector_general_protection as *const () as u64,
            0..32 => vector_exceptions as *const () as u64 + 16 * vector as u64,
            v if v == TIMER_VECTOR as usize => vector_timer as *const () as u64,
            _ => vector_other as *const () as u64,
        };
        // Interrupt gate of ring 0, selector 0x08.
        let low =
            (handler & 0xffff) | (0x08 << 16) | (0x8e00 << 32) | ((handler >> 16 & 0xffff) << 48);
        idt[2 * vector].store(low, Relaxed);
        idt[2 * vector + 1].store(handler >> 32, Relaxed);
    }
}

/// Empties the interrupt descriptor table, so that the next exception ends in a triple fault.
pub fn clear_idt() {
    for entry in &idt {
        entry.store(0, core::sync::atomic::Ordering::Relaxed);
    }
}
