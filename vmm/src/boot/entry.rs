//! Where and in which mode the first vCPU starts.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::linux;
use crate::arch::x86_64::layout;

/// Where and in which mode the first vCPU starts. The others wait for INIT and SIPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryPoint {
    /// The 64-bit Linux boot protocol: long mode, identity map, `rsi` = zero page.
    Linux64 {
        /// Entry point.
        rip: u64,
    },
    /// PVH: flat 32-bit protected mode without paging, `ebx` = start info.
    Pvh {
        /// Entry point.
        rip: u32,
    },
    /// The reset vector, in real mode.
    Firmware,
}

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS_FIXED: u64 = 1 << 1;

/// Segment types (Intel SDM volume 3, sections 3.4.5.1 and 3.5).
const TYPE_LDT: u8 = 2;
const TYPE_DATA: u8 = 3;
const TYPE_CODE: u8 = 11;
const TYPE_BUSY_TSS: u8 = 11;

/// `__BOOT_CS` and `__BOOT_DS` of the Linux boot protocol.
const LINUX_CODE: u16 = 0x10;
const LINUX_DATA: u16 = 0x18;

/// Brings the registers of the first vCPU, in whatever state they are, to those of a CPU that
/// starts at `entry`: first what a CPU has after RESET (Intel SDM volume 3, table 10-1), then
/// what the boot protocol asks for. The APIC base and pending interrupts stay as they are.
pub fn apply(entry: &EntryPoint, sregs: &mut kvm_sregs, regs: &mut kvm_regs) {
    reset(sregs, regs);
    match *entry {
        EntryPoint::Firmware => {}
        EntryPoint::Pvh { rip } => {
            flat(sregs, 0x08, 0x10, false);
            sregs.cr0 = CR0_PE | CR0_ET;
            regs.rip = u64::from(rip);
            regs.rbx = layout::PVH_START_INFO;
        }
        EntryPoint::Linux64 { rip } => {
            flat(sregs, LINUX_CODE, LINUX_DATA, true);
            sregs.gdt.base = layout::BOOT_GDT;
            sregs.gdt.limit = linux::GDT_LIMIT;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::BOOT_PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            regs.rip = rip;
            regs.rsi = layout::BOOT_PARAMS;
            regs.rsp = layout::BOOT_STACK;
        }
    }
}

/// The state after RESET.
fn reset(sregs: &mut kvm_sregs, regs: &mut kvm_regs) {
    let real = |type_| kvm_segment {
        limit: 0xffff,
        type_,
        present: 1,
        s: 1,
        ..kvm_segment::default()
    };
    let system = |type_| kvm_segment {
        s: 0,
        ..real(type_)
    };
    let table = kvm_dtable {
        limit: 0xffff,
        ..kvm_dtable::default()
    };
    *sregs = kvm_sregs {
        cs: kvm_segment {
            base: 0xffff_0000,
            selector: 0xf000,
            ..real(TYPE_CODE)
        },
        ds: real(TYPE_DATA),
        es: real(TYPE_DATA),
        fs: real(TYPE_DATA),
        gs: real(TYPE_DATA),
        ss: real(TYPE_DATA),
        tr: system(TYPE_BUSY_TSS),
        ldt: system(TYPE_LDT),
        gdt: table,
        idt: table,
        cr0: CR0_CD | CR0_NW | CR0_ET,
        apic_base: sregs.apic_base,
        interrupt_bitmap: sregs.interrupt_bitmap,
        ..kvm_sregs::default()
    };
    *regs = kvm_regs {
        rip: 0xfff0,
        rflags: RFLAGS_FIXED,
        ..kvm_regs::default()
    };
}

/// Flat code and data segments of 4 GiB; `long` makes the code segment a 64-bit one.
fn flat(sregs: &mut kvm_sregs, code: u16, data: u16, long: bool) {
    let segment = |selector, type_| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = kvm_segment {
        db: u8::from(!long),
        l: u8::from(long),
        ..segment(code, TYPE_CODE)
    };
    for register in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *register = segment(data, TYPE_DATA);
    }
}
