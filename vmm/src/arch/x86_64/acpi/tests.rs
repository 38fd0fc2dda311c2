//! The tables are followed from their root as a system does it, and the firmware's commands are
//! carried out as firmware does it.

use std::collections::BTreeMap;

use super::*;

fn config(vcpus: u32) -> AcpiConfig {
    AcpiConfig {
        apic_ids: (0..vcpus).collect(),
        pci_mmio64: Some(1 << 36..1 << 40),
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn quad(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// Guest RAM with the tables of `config` in it.
struct Installed(GuestMemory);

impl Installed {
    fn new(config: &AcpiConfig) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        assert_eq!(
            AcpiTables::new(config).install(&memory).unwrap(),
            layout::RSDP
        );
        Self(memory)
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// The table at `address`, which must have this signature and a right checksum.
    fn table(&self, address: u64, signature: [u8; 4]) -> Vec<u8> {
        let len = word(&self.bytes(address, 8), 4) as usize;
        let table = self.bytes(address, len);
        assert_eq!(table[..4], signature);
        assert_eq!(sum(&table), 0, "checksum of {signature:?}");
        table
    }

    fn rsdp(&self) -> Vec<u8> {
        self.bytes(layout::RSDP, 36)
    }

    fn xsdt_entry(&self, index: usize) -> u64 {
        let xsdt = self.table(quad(&self.rsdp(), 24), *b"XSDT");
        quad(&xsdt, 36 + 8 * index)
    }

    fn fadt(&self) -> Vec<u8> {
        self.table(self.xsdt_entry(0), *b"FACP")
    }

    fn madt(&self) -> Vec<u8> {
        self.table(self.xsdt_entry(1), *b"APIC")
    }
}

#[test]
fn rsdp_leads_to_all_tables() {
    let installed = Installed::new(&config(2));
    let rsdp = installed.rsdp();
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let root = installed.table(u64::from(word(&rsdp, 16)), *b"RSDT");
    for index in 0..2 {
        let entry = u64::from(word(&root, 36 + 4 * index));
        assert_eq!(entry, installed.xsdt_entry(index));
    }
    let fadt = installed.fadt();
    let dsdt = quad(&fadt, 140);
    assert_eq!(dsdt, u64::from(word(&fadt, 40)));
    installed.table(dsdt, *b"DSDT");
    let facs = u64::from(word(&fadt, 36));
    assert_eq!(installed.bytes(facs, 4), b"FACS");
    assert_eq!(facs % 64, 0);
    installed.madt();
}

#[test]
fn fadt_has_the_blocks_of_the_machine() {
    let fadt = Installed::new(&config(1)).fadt();
    let pm = layout::PORT_ACPI_PM as u32;
    assert_eq!((word(&fadt, 56), fadt[88]), (pm, 4));
    assert_eq!((word(&fadt, 64), fadt[89]), (pm + 4, 2));
    assert_eq!((word(&fadt, 76), fadt[91]), (pm + 8, 4));
    assert_eq!((word(&fadt, 80), fadt[92]), (pm + 12, 4));
    // Without an SMI command a system takes ACPI for enabled.
    assert_eq!(word(&fadt, 48), 0);
    assert_eq!((quad(&fadt, 120), fadt[128]), (0xcf9, 6));
    assert_eq!(fadt[46], 9);
}

#[test]
fn madt_lists_every_vcpu_by_its_apic_id() {
    let ids = vec![0, 1, 4, 5, 300];
    let madt = Installed::new(&AcpiConfig {
        apic_ids: ids.clone(),
        pci_mmio64: None,
    })
    .madt();
    let (mut found, mut at) = (vec![], 44);
    while at < madt.len() {
        match madt[at] {
            0 => found.push((u32::from(madt[at + 2]), u32::from(madt[at + 3]))),
            9 => found.push((word(&madt, at + 12), word(&madt, at + 4))),
            _ => {}
        }
        at += usize::from(madt[at + 1]);
    }
    assert_eq!(at, madt.len());
    let expected: Vec<(u32, u32)> = (0..).zip(ids).collect();
    assert_eq!(found, expected);
}

#[test]
fn tables_of_64_vcpus_fit_below_1_mib() {
    let tables = AcpiTables::new(&config(64));
    let end = layout::ACPI_TABLES + tables.tables.len() as u64;
    assert!(end < layout::SMBIOS, "{end:#x}");
}

/// Carries out the commands as firmware does, with the files at the addresses of `zones`.
fn carry_out(files: &[(&str, Vec<u8>)], high: u64, fseg: u64) -> BTreeMap<String, Vec<u8>> {
    let content = |name: &str| {
        let file = files.iter().find(|(file, _)| *file == name).unwrap();
        file.1.clone()
    };
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    };
    let mut loaded: BTreeMap<String, (u64, Vec<u8>)> = BTreeMap::new();
    for command in content("etc/table-loader").chunks_exact(128) {
        let (first, fields) = (text(&command[4..60]), &command[60..]);
        match word(command, 0) {
            1 => {
                let address = if fields[4] == 2 { fseg } else { high };
                assert_eq!(address % u64::from(word(fields, 0)), 0);
                loaded.insert(first.clone(), (address, content(&first)));
            }
            2 => {
                let base = loaded[&text(&command[60..116])].0;
                let (offset, size) = (word(command, 116) as usize, usize::from(command[120]));
                let field = &mut loaded.get_mut(&first).unwrap().1[offset..offset + size];
                let mut value = [0; 8];
                value[..size].copy_from_slice(field);
                let value = (u64::from_le_bytes(value) + base).to_le_bytes();
                field.copy_from_slice(&value[..size]);
            }
            3 => {
                let (offset, start) = (word(fields, 0) as usize, word(fields, 4) as usize);
                let data = &mut loaded.get_mut(&first).unwrap().1;
                let sum = sum(&data[start..start + word(fields, 8) as usize]);
                data[offset] = data[offset].wrapping_sub(sum);
            }
            other => panic!("command {other}"),
        }
    }
    loaded
        .into_iter()
        .map(|(name, (_, data))| (name, data))
        .collect()
}

#[test]
fn script_gives_the_tables_that_direct_boot_has() {
    let tables = AcpiTables::new(&config(3));
    let loaded = carry_out(&tables.fw_cfg_files(), 0xbffe_0000, 0xf_5a40);
    let expected = tables.relocated(0xbffe_0000);
    assert_eq!(loaded["etc/acpi/rsdp"], expected.rsdp);
    assert_eq!(loaded["etc/acpi/tables"], expected.tables);
}
