//! Guest physical addresses, ports and interrupt lines. One table; everything else refers to it.

/// GDT of a kernel that is entered in long mode.
pub const BOOT_GDT: u64 = 0x500;
/// PVH's start info, module list and memory map: one page.
pub const PVH_START_INFO: u64 = 0x6000;
/// Linux's zero page (`struct boot_params`).
pub const BOOT_PARAMS: u64 = 0x7000;
/// Top of the stack of a kernel that is entered in long mode.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Identity map of the first 4 GiB for a kernel that is entered in long mode: six pages.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const BOOT_CMDLINE: u64 = 0x2_0000;
/// Room for the command line and its terminating zero, in bytes.
pub const BOOT_CMDLINE_LEN: u64 = 0x1_0000;
/// Extended BIOS data area: the last KiB of low RAM.
pub const EBDA: u64 = 0x9_FC00;
/// End of low RAM: the VGA window starts here.
pub const LOW_RAM_END: u64 = 0xA_0000;
/// The RSDP's page (ACPI 6.5, section 5.2.5.1), and the other tables on direct boot.
pub const RSDP: u64 = 0xE_0000;
/// All other ACPI tables on direct boot.
pub const ACPI_TABLES: u64 = 0xE_0040;
/// SMBIOS's entry point and structures on direct boot; systems look for them from here.
pub const SMBIOS: u64 = 0xF_0000;
/// High RAM starts here.
pub const HIGH_RAM_START: u64 = 0x10_0000;
/// RAM below 4 GiB ends here: the 32-bit PCI window follows.
pub const RAM_BELOW_4G_END: u64 = 0xC000_0000;
/// 32-bit PCI MMIO window.
pub const PCI_MMIO32: std::ops::Range<u64> = 0xC000_0000..0xFEC0_0000;
/// I/O APIC's registers (in the kernel).
pub const IOAPIC: u64 = 0xFEC0_0000;
/// Local APIC's registers (in the kernel).
pub const LAPIC: u64 = 0xFEE0_0000;
/// The identity-map page that Intel's real mode needs (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xFEFF_C000;
/// Three pages for Intel's task state (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xFEFF_D000;
/// The largest firmware starts here, above all that KVM needs for itself.
pub const FIRMWARE_START_MIN: u64 = 0xFF00_0000;
/// Firmware ends at 4 GiB.
pub const FIRMWARE_END: u64 = 0x1_0000_0000;
/// RAM that did not fit below 4 GiB starts here.
pub const RAM_ABOVE_4G_START: u64 = 0x1_0000_0000;

/// CMOS RTC index port; data is the next.
pub const PORT_RTC: u64 = 0x70;
/// CMOS register of the century, in BCD.
pub const CMOS_CENTURY: u8 = 0x32;
/// i8042's data port.
pub const PORT_I8042_DATA: u64 = 0x60;
/// i8042's command and status port.
pub const PORT_I8042_COMMAND: u64 = 0x64;
/// System control port A: fast reset and A20.
pub const PORT_SYSTEM_CONTROL_A: u64 = 0x92;
/// APM control; status is the next.
pub const PORT_APM: u64 = 0xB2;
/// First 16550.
pub const PORT_SERIAL: u64 = 0x3F8;
/// Firmware's debug console.
pub const PORT_DEBUG_CONSOLE: u64 = 0x402;
/// fw_cfg's selector; data is the next (QEMU `docs/specs/fw_cfg.rst`).
pub const PORT_FW_CFG: u64 = 0x510;
/// ACPI power management block, where PIIX4's PMBASE points at first.
pub const PORT_ACPI_PM: u64 = 0x600;
/// PCI configuration mechanism 1: address, and data four ports on.
pub const PORT_PCI_CONFIG: u64 = 0xCF8;
/// ACPI reset register and PIIX3's reset control.
pub const PORT_RESET: u64 = 0xCF9;
/// What written to [`PORT_RESET`] resets the machine: full reset, CPU reset.
pub const RESET_VALUE: u8 = 6;
/// Reads as the VMM's process id: lets a measuring guest say who runs it.
pub const PORT_RUNNER_ID: u64 = 0x500;

/// The serial port's interrupt.
pub const IRQ_SERIAL: u32 = 4;
/// The RTC's interrupt.
pub const IRQ_RTC: u32 = 8;
/// ACPI's system control interrupt.
pub const IRQ_SCI: u32 = 9;
/// First GSI for MSI-X vectors: the I/O APIC has 24 pins.
pub const GSI_MSI_FIRST: u32 = 24;

/// Slot of the host bridge (i440FX).
pub const SLOT_HOST_BRIDGE: u8 = 0;
/// Slot of the PIIX3 ISA bridge (function 0) and PIIX4 power management (function 3).
pub const SLOT_ISA: u8 = 1;
/// Slot of virtio-rng.
pub const SLOT_RNG: u8 = 2;
/// Slot of virtio-balloon.
pub const SLOT_BALLOON: u8 = 3;
/// Slot of virtio-console.
pub const SLOT_CONSOLE: u8 = 4;
/// First slot of virtio-net devices.
pub const SLOT_NET_FIRST: u8 = 5;
/// Most virtio-net devices.
pub const MAX_NETS: usize = 8;
/// First slot of virtio-blk devices.
pub const SLOT_DISK_FIRST: u8 = 13;
/// Most virtio-blk devices: the bus has 32 slots.
pub const MAX_DISKS: usize = 19;
