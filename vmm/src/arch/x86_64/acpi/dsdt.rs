//! The machine's own definition block (ACPI 6.5, section 5.2.11.1): what a system cannot find by
//! itself.
//!
//! PCI devices have MSI-X only, so there is no `_PRT`. What is not listed is not there: SeaBIOS
//! looks here before it waits for a keyboard or a floppy drive.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{AcpiConfig, table};
use crate::arch::x86_64::layout;
use crate::devices::acpi_pm;

/// 64-bit integers.
const REVISION: u8 = 2;

/// Builds the table.
pub(super) fn build(config: &AcpiConfig) -> Sdt {
    let mut aml = Vec::new();
    pci_bus(&mut aml, config);
    for uid in (0..).take(config.apic_ids.len()) {
        processor(&mut aml, uid);
    }
    soft_off(&mut aml);
    let mut dsdt = table(*b"DSDT", REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// `\_SB.PCI0` with its windows, and the ISA bridge below it.
fn pci_bus(aml: &mut Vec<u8>, config: &AcpiConfig) {
    let config_ports = IO::new(
        layout::PORT_PCI_CONFIG as u16,
        layout::PORT_PCI_CONFIG as u16,
        1,
        8,
    );
    let bus = AddressSpace::new_bus_number(0_u16, 0);
    let io_below = AddressSpace::new_io(0_u16, layout::PORT_PCI_CONFIG as u16 - 1, None);
    let io_above = AddressSpace::new_io(layout::PORT_PCI_CONFIG as u16 + 8, 0xffff_u16, None);
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let mmio32 = AddressSpace::new_memory(
        cacheable,
        true,
        layout::PCI_MMIO32.start as u32,
        (layout::PCI_MMIO32.end - 1) as u32,
        None,
    );
    let mmio64 = config
        .pci_mmio64
        .as_ref()
        .filter(|window| !window.is_empty())
        .map(|window| {
            AddressSpace::new_memory(cacheable, true, window.start, window.end - 1, None)
        });
    let mut windows: Vec<&dyn Aml> = vec![&bus, &config_ports, &io_below, &io_above, &mmio32];
    windows.extend(mmio64.as_ref().map(|window| window as &dyn Aml));

    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A03"));
    let uid = Name::new("_UID".into(), &ZERO);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(windows));
    let isa = raw(isa_bridge);
    let pci = Device::new("PCI0".into(), vec![&hid, &uid, &crs, &isa]);
    Scope::new("_SB_".into(), vec![&pci]).to_aml_bytes(aml);
}

/// The devices that are found by their ports.
fn isa_bridge(aml: &mut Vec<u8>) {
    let address = Name::new("_ADR".into(), &(u32::from(layout::SLOT_ISA) << 16));
    let serial = raw(|aml| {
        let interrupt = Interrupt::new(true, true, false, false, layout::IRQ_SERIAL);
        isa_device(
            aml,
            "COM1",
            "PNP0501",
            layout::PORT_SERIAL,
            8,
            Some(&interrupt),
        );
    });
    let rtc = raw(|aml| {
        let interrupt = Interrupt::new(true, true, false, false, layout::IRQ_RTC);
        isa_device(
            aml,
            "RTC_",
            "PNP0B00",
            layout::PORT_RTC,
            2,
            Some(&interrupt),
        );
    });
    // Nobody else may be given the power management block's ports.
    let reserved = raw(|aml| {
        isa_device(
            aml,
            "MBRD",
            "PNP0C02",
            layout::PORT_ACPI_PM,
            acpi_pm::PORTS as u8,
            None,
        );
    });
    Device::new("ISA_".into(), vec![&address, &serial, &rtc, &reserved]).to_aml_bytes(aml);
}

fn isa_device(
    aml: &mut Vec<u8>,
    name: &str,
    id: &str,
    port: u64,
    ports: u8,
    interrupt: Option<&dyn Aml>,
) {
    let hid = Name::new("_HID".into(), &EISAName::new(id));
    let io = IO::new(port as u16, port as u16, 1, ports);
    let mut resources: Vec<&dyn Aml> = vec![&io];
    resources.extend(interrupt);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    Device::new(name.into(), vec![&hid, &crs]).to_aml_bytes(aml);
}

/// A processor object; its `_UID` is that of its entry in the MADT.
fn processor(aml: &mut Vec<u8>, uid: u16) {
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let number = Name::new("_UID".into(), &uid);
    let device = Device::new(format!("C{uid:03X}").as_str().into(), vec![&hid, &number]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

/// `\_S5`: the sleep type that switches off (section 7.4.2).
fn soft_off(aml: &mut Vec<u8>) {
    let sleep_type = acpi_pm::SLEEP_TYPE_S5;
    let package = Package::new(vec![&sleep_type, &sleep_type, &ZERO, &ZERO]);
    Name::new(Path::new("_S5_"), &package).to_aml_bytes(aml);
}

/// AML that is encoded already, as a child of something else.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn raw(build: impl FnOnce(&mut Vec<u8>)) -> Raw {
    let mut aml = Vec::new();
    build(&mut aml);
    Raw(aml)
}
