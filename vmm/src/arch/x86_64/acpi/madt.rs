//! Interrupt controllers (ACPI 6.5, section 5.2.12).

use acpi_tables::Aml;
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;

use super::table;
use crate::arch::x86_64::layout;

/// The revision of ACPI 6.3 and later.
const REVISION: u8 = 5;
/// There are two 8259s as well (`PCAT_COMPAT`).
const FLAG_PCAT_COMPAT: u32 = 1;
const TYPE_INTERRUPT_OVERRIDE: u8 = 2;
const TYPE_LOCAL_APIC_NMI: u8 = 4;
const TYPE_LOCAL_X2APIC: u8 = 9;
/// Bus 0: ISA.
const BUS_ISA: u8 = 0;
/// MPS INTI flags: what the bus's specification says, or active high and level-triggered.
const AS_BUS: u16 = 0;
const LEVEL_ACTIVE_HIGH: u16 = 0b1101;
/// Local APIC ids from here on need x2APIC.
const XAPIC_ID_END: u32 = 0xff;

/// Builds the table for vCPUs with these APIC ids.
pub(super) fn build(apic_ids: &[u32]) -> Sdt {
    let mut body = Vec::new();
    body.extend((layout::LAPIC as u32).to_le_bytes());
    body.extend(FLAG_PCAT_COMPAT.to_le_bytes());
    for (uid, &apic_id) in (0..).zip(apic_ids) {
        local_apic(&mut body, uid, apic_id);
    }
    IoApic::new(0, layout::IOAPIC as u32, 0).to_aml_bytes(&mut body);
    // The PIT is at pin 2, as on every PC whose I/O APIC has a PIC at pin 0.
    interrupt_override(&mut body, 0, 2, AS_BUS);
    interrupt_override(
        &mut body,
        layout::IRQ_SCI as u8,
        layout::IRQ_SCI,
        LEVEL_ACTIVE_HIGH,
    );
    // NMI at LINT1 of all processors.
    body.extend([TYPE_LOCAL_APIC_NMI, 6, 0xff, 0, 0, 1]);
    let mut madt = table(*b"APIC", REVISION);
    madt.append_slice(&body);
    madt
}

fn local_apic(body: &mut Vec<u8>, uid: u32, apic_id: u32) {
    if apic_id < XAPIC_ID_END {
        let entry = ProcessorLocalApic::new(uid as u8, apic_id as u8, EnabledStatus::Enabled);
        return entry.to_aml_bytes(body);
    }
    body.extend([TYPE_LOCAL_X2APIC, 16, 0, 0]);
    for word in [apic_id, EnabledStatus::Enabled as u32, uid] {
        body.extend(word.to_le_bytes());
    }
}

fn interrupt_override(body: &mut Vec<u8>, irq: u8, gsi: u32, flags: u16) {
    body.extend([TYPE_INTERRUPT_OVERRIDE, 10, BUS_ISA, irq]);
    body.extend(gsi.to_le_bytes());
    body.extend(flags.to_le_bytes());
}
