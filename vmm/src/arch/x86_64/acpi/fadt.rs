//! Fixed ACPI description (ACPI 6.5, section 5.2.9): PIIX4's power management block at its usual
//! ports, with the power button, S5 and the reset register as fixed hardware.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::arch::x86_64::layout;
use crate::devices::acpi_pm;

/// Offsets and sizes of the pointers: FIRMWARE_CTRL, DSDT, X_DSDT. X_FIRMWARE_CTRL stays 0, as
/// only one of the two may be set.
pub(super) const POINTERS: [(usize, usize); 3] = [(36, 4), (40, 4), (140, 8)];

/// IA-PC boot architecture flags (table 5.11): the serial port is a legacy device; there is no
/// 8042 worth looking for, and no VGA.
const BOOT_LEGACY_DEVICES: u16 = 1 << 0;
const BOOT_VGA_NOT_PRESENT: u16 = 1 << 2;

/// Worst-case latencies that say that C2 and C3 are not supported (over 100 and 1000 µs).
const NO_C2_LATENCY_US: u16 = 101;
const NO_C3_LATENCY_US: u16 = 1001;

/// Builds the table; the arguments are offsets that become addresses.
pub(super) fn build(facs: usize, dsdt: usize) -> FADT {
    let port = |offset: u16| layout::PORT_ACPI_PM as u32 + u32::from(offset);
    let block = |offset: u16, len: u8| {
        GAS::new(
            AddressSpace::SystemIo,
            len * 8,
            0,
            AccessSize::Undefined,
            u64::from(port(offset)),
        )
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // These two mean: not as fixed hardware.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .gpe_info(port(acpi_pm::GPE0_STATUS), 0, acpi_pm::GPE0_LEN, 0, 0);
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = (dsdt as u64).into();
    fadt.sci_int = (layout::IRQ_SCI as u16).into();
    fadt.pm1a_evt_blk = port(acpi_pm::PM1_STATUS).into();
    fadt.pm1_evt_len = acpi_pm::PM1_EVENT_LEN;
    fadt.x_pm1a_evt_blk = block(acpi_pm::PM1_STATUS, acpi_pm::PM1_EVENT_LEN);
    fadt.pm1a_cnt_blk = port(acpi_pm::PM1_CONTROL).into();
    fadt.pm1_cnt_len = acpi_pm::PM1_CONTROL_LEN;
    fadt.x_pm1a_cnt_blk = block(acpi_pm::PM1_CONTROL, acpi_pm::PM1_CONTROL_LEN);
    fadt.pm_tmr_blk = port(acpi_pm::PM_TIMER).into();
    fadt.pm_tmr_len = acpi_pm::PM_TIMER_LEN;
    fadt.x_pm_tmr_blk = block(acpi_pm::PM_TIMER, acpi_pm::PM_TIMER_LEN);
    fadt.x_gpe0_blk = block(acpi_pm::GPE0_STATUS, acpi_pm::GPE0_LEN);
    fadt.p_lvl2_lat = NO_C2_LATENCY_US.into();
    fadt.p_lvl3_lat = NO_C3_LATENCY_US.into();
    fadt.century = layout::CMOS_CENTURY;
    fadt.iapc_boot_arch = (BOOT_LEGACY_DEVICES | BOOT_VGA_NOT_PRESENT).into();
    fadt.reset_reg = GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        layout::PORT_RESET,
    );
    fadt.reset_value = layout::RESET_VALUE;
    fadt.finalize()
}
