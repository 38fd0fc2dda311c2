//! What firmware is told of the machine: the fw_cfg items that SeaBIOS and OVMF read (SeaBIOS
//! `docs/Runtime_config.md`).

use crate::arch::x86_64::acpi::AcpiTables;
use crate::arch::x86_64::layout;
use crate::arch::x86_64::memory_map::{RangeKind, ram_ranges};
use crate::arch::x86_64::smbios::Smbios;
use crate::devices::fw_cfg::{FwCfgBuilder, FwCfgError, key};

/// What firmware is told of the machine.
#[derive(Debug)]
pub struct FirmwareInfo<'a> {
    /// Guest RAM in bytes, without firmware.
    pub ram_bytes: u64,
    /// APIC id of each vCPU.
    pub apic_ids: &'a [u32],
    /// The machine's UUID (RFC 9562).
    pub uuid: &'a [u8; 16],
    /// PCI slot of the disk whose boot loader is tried first.
    pub boot_slot: Option<u8>,
    /// Firmware and boot loaders that write to a VGA screen write to the serial port.
    pub serial_console: bool,
    /// ACPI tables.
    pub acpi: &'a AcpiTables,
    /// SMBIOS structures.
    pub smbios: &'a Smbios,
}

/// The items of a machine, to which its owner may add.
///
/// # Errors
/// [`FwCfgError`] never occurs with these names, but is the builder's to say.
pub fn fw_cfg_items(info: &FirmwareInfo) -> Result<FwCfgBuilder, FwCfgError> {
    let apic_id_end = info.apic_ids.iter().max().map_or(0, |&id| id as u16 + 1);
    let mut items = FwCfgBuilder::default()
        .item(key::UUID, info.uuid)
        .item(key::RAM_SIZE, &info.ram_bytes.to_le_bytes())
        .item(key::NB_CPUS, &(info.apic_ids.len() as u16).to_le_bytes())
        .item(key::MAX_CPUS, &apic_id_end.to_le_bytes())
        .item(key::BOOT_MENU, &0_u16.to_le_bytes())
        .item(key::IRQ0_OVERRIDE, &1_u32.to_le_bytes())
        .file("etc/e820", e820(info.ram_bytes))?
        .file("etc/system-states", SYSTEM_STATES.to_vec())?;
    if let Some(slot) = info.boot_slot {
        // The name before the @ is free; the terminating zero ends the list.
        let path = format!("/pci@i0cf8/scsi@{slot:x}/disk@0,0\0");
        items = items.file("bootorder", path.into_bytes())?;
    }
    if info.serial_console {
        let port = layout::PORT_SERIAL.to_le_bytes().to_vec();
        items = items.file("etc/sercon-port", port)?;
    }
    for (name, content) in info.acpi.fw_cfg_files() {
        items = items.file(name, content)?;
    }
    for (name, content) in info.smbios.fw_cfg_files() {
        items = items.file(name, content)?;
    }
    Ok(items)
}

/// By sleep state, whether it is there (bit 7) and its `SLP_TYP`: S0 and S5.
const SYSTEM_STATES: [u8; 6] = [0x80, 0, 0, 1, 2, 0x80];

/// RAM, and what KVM keeps for itself, as entries of address, length and E820 type.
fn e820(ram_bytes: u64) -> Vec<u8> {
    let reserved = layout::KVM_IDENTITY_MAP..layout::FIRMWARE_START_MIN;
    let mut table = Vec::new();
    let mut add = |start: u64, len: u64, kind: RangeKind| {
        table.extend(start.to_le_bytes());
        table.extend(len.to_le_bytes());
        table.extend((kind as u32).to_le_bytes());
    };
    for range in ram_ranges(ram_bytes) {
        add(range.start, range.len, range.kind);
    }
    add(
        reserved.start,
        reserved.end - reserved.start,
        RangeKind::Reserved,
    );
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::acpi::AcpiConfig;
    use crate::bus::BusDevice;
    use crate::devices::fw_cfg::FwCfg;
    use crate::memory::GuestMemory;

    fn device(info: &FirmwareInfo) -> FwCfg {
        fw_cfg_items(info).unwrap().build(GuestMemory::new())
    }

    /// A file as firmware reads it: found by its name in the directory, then byte by byte.
    fn file(device: &FwCfg, name: &str) -> Option<Vec<u8>> {
        let read = |len: usize| {
            let mut data = vec![0; len];
            for byte in &mut data {
                device.read(1, std::slice::from_mut(byte));
            }
            data
        };
        device.write(0, &0x19_u16.to_le_bytes());
        let count = u32::from_be_bytes(read(4).try_into().unwrap());
        let entries: Vec<Vec<u8>> = (0..count).map(|_| read(64)).collect();
        let entry = entries.into_iter().find(|entry| {
            let found = entry[8..].split(|&byte| byte == 0).next();
            found == Some(name.as_bytes())
        })?;
        let len = u32::from_be_bytes(entry[..4].try_into().unwrap());
        device.write(0, &[entry[5], entry[4]]);
        Some(read(len as usize))
    }

    #[test]
    fn firmware_finds_all_that_it_needs() {
        let acpi = AcpiTables::new(&AcpiConfig::default());
        let smbios = Smbios::new("a", &[1; 16]);
        let info = FirmwareInfo {
            ram_bytes: 5 << 30,
            apic_ids: &[0, 1, 4],
            uuid: &[1; 16],
            boot_slot: Some(0x1f),
            serial_console: true,
            acpi: &acpi,
            smbios: &smbios,
        };
        let device = device(&info);
        let order = file(&device, "bootorder").unwrap();
        assert_eq!(order, b"/pci@i0cf8/scsi@1f/disk@0,0\0");
        assert_eq!(file(&device, "etc/sercon-port").unwrap()[..2], [0xf8, 0x03]);
        for (name, content) in acpi.fw_cfg_files().into_iter().chain(smbios.fw_cfg_files()) {
            assert_eq!(file(&device, name).unwrap(), content);
        }
        let e820 = file(&device, "etc/e820").unwrap();
        assert_eq!(e820.len(), 3 * 20);
        assert_eq!(e820[8..16], (3_u64 << 30).to_le_bytes());
        assert_eq!(e820[20..28], (4_u64 << 30).to_le_bytes());
        assert_eq!(e820[28..36], (2_u64 << 30).to_le_bytes());
        device.write(0, &key::MAX_CPUS.to_le_bytes());
        let mut data = [0];
        device.read(1, &mut data);
        assert_eq!(data, [5]);
    }

    #[test]
    fn machine_without_disk_or_serial_port_offers_neither() {
        let info = FirmwareInfo {
            ram_bytes: 64 << 20,
            apic_ids: &[0],
            uuid: &[0; 16],
            boot_slot: None,
            serial_console: false,
            acpi: &AcpiTables::new(&AcpiConfig::default()),
            smbios: &Smbios::new("", &[0; 16]),
        };
        let device = device(&info);
        assert_eq!(file(&device, "bootorder"), None);
        assert_eq!(file(&device, "etc/sercon-port"), None);
        assert_eq!(file(&device, "etc/e820").unwrap().len(), 2 * 20);
    }
}
