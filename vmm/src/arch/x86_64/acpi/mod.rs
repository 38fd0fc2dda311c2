//! ACPI tables (ACPI 6.5): the same for a kernel that is loaded directly and for the firmware.
//!
//! ```text
//! RSDP ─┬─► XSDT ─┬─► FADT ─┬─► DSDT   (PCI bus, serial port, RTC, processors, S5)
//!       └─► RSDT ─┤         └─► FACS
//!                 └─► MADT             (local APICs, I/O APIC, ISA interrupts)
//! ```
//!
//! They are built as one blob whose pointers count from its start, with a list of what depends
//! on where it ends up. [`AcpiTables::install`] places the blob itself; [`AcpiTables::script`]
//! tells firmware how to (QEMU's linker and loader commands).

mod dsdt;
mod fadt;
mod madt;
mod script;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::GuestMemory;

/// Who made the tables.
const OEM_ID: [u8; 6] = *b"PINDAH";
const OEM_TABLE_ID: [u8; 8] = *b"PINDAHVM";
const OEM_REVISION: u32 = 1;

/// The FACS must be aligned to 64 bytes, and so the whole blob is.
const ALIGN: usize = 64;
/// Where every table but RSDP and FACS has its checksum.
const CHECKSUM_OFFSET: usize = 9;

/// What the tables depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcpiConfig {
    /// APIC id of each vCPU, in the order of the vCPUs.
    pub apic_ids: Vec<u32>,
    /// 64-bit window for PCI BARs, if there is one.
    pub pci_mmio64: Option<Range<u64>>,
}

/// The blobs that the tables are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blob {
    /// The root pointer.
    Rsdp,
    /// All else.
    Tables,
}

/// A little-endian field that holds an offset in [`Blob::Tables`] and must become an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pointer {
    blob: Blob,
    offset: usize,
    /// 4 or 8.
    size: usize,
}

/// A byte that makes the bytes of `range` add up to 0.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Checksum {
    blob: Blob,
    offset: usize,
    range: Range<usize>,
}

/// All tables, not yet at their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTables {
    rsdp: Vec<u8>,
    tables: Vec<u8>,
    pointers: Vec<Pointer>,
    checksums: Vec<Checksum>,
}

impl AcpiTables {
    /// Builds the tables of a machine.
    pub fn new(config: &AcpiConfig) -> Self {
        let mut set = Self {
            rsdp: Vec::new(),
            tables: Vec::new(),
            pointers: Vec::new(),
            checksums: Vec::new(),
        };
        let facs = set.append(&bytes(&FACS::new()));
        let dsdt = set.append_table(dsdt::build(config).as_slice());
        let fadt = set.append_table(&bytes(&fadt::build(facs, dsdt)));
        for (offset, size) in fadt::POINTERS {
            set.pointer(Blob::Tables, fadt + offset, size);
        }
        let madt = set.append_table(madt::build(&config.apic_ids).as_slice());
        let rsdt = set.append_root(*b"RSDT", 1, &[fadt, madt], 4);
        let xsdt = set.append_root(*b"XSDT", 1, &[fadt, madt], 8);
        set.set_rsdp(rsdt, xsdt);
        set
    }

    /// Puts `data` at the next aligned offset, which it returns.
    fn append(&mut self, data: &[u8]) -> usize {
        let offset = self.tables.len().next_multiple_of(ALIGN);
        self.tables.resize(offset, 0);
        self.tables.extend_from_slice(data);
        offset
    }

    fn append_table(&mut self, data: &[u8]) -> usize {
        let offset = self.append(data);
        let checksum = offset + CHECKSUM_OFFSET;
        // Firmware may add up what is there.
        self.tables[checksum] = 0;
        self.checksums.push(Checksum {
            blob: Blob::Tables,
            offset: checksum,
            range: offset..offset + data.len(),
        });
        offset
    }

    /// RSDT or XSDT (section 5.2.7, 5.2.8): a header and pointers of `size` bytes.
    fn append_root(
        &mut self,
        signature: [u8; 4],
        revision: u8,
        tables: &[usize],
        size: usize,
    ) -> usize {
        let mut root = table(signature, revision);
        for offset in tables {
            root.append_slice(&(*offset as u64).to_le_bytes()[..size]);
        }
        let header = root.len() - tables.len() * size;
        let offset = self.append_table(root.as_slice());
        for index in 0..tables.len() {
            self.pointer(Blob::Tables, offset + header + index * size, size);
        }
        offset
    }

    /// Section 5.2.5.3. The crate leaves the RSDT out; systems of ACPI 1.0 know nothing else.
    fn set_rsdp(&mut self, rsdt: usize, xsdt: usize) {
        const RSDT_ADDRESS: usize = 16;
        const XSDT_ADDRESS: usize = 24;
        self.rsdp = bytes(&Rsdp::new(OEM_ID, xsdt as u64));
        self.rsdp[RSDT_ADDRESS..RSDT_ADDRESS + 4].copy_from_slice(&(rsdt as u32).to_le_bytes());
        self.pointer(Blob::Rsdp, RSDT_ADDRESS, 4);
        self.pointer(Blob::Rsdp, XSDT_ADDRESS, 8);
        for (offset, len) in [(8, 20), (32, self.rsdp.len())] {
            self.rsdp[offset] = 0;
            self.checksums.push(Checksum {
                blob: Blob::Rsdp,
                offset,
                range: 0..len,
            });
        }
    }

    fn pointer(&mut self, blob: Blob, offset: usize, size: usize) {
        self.pointers.push(Pointer { blob, offset, size });
    }

    /// Writes everything to guest memory for a kernel that is loaded directly, and returns the
    /// RSDP's address.
    ///
    /// # Errors
    /// The memory below 1 MiB is not RAM.
    pub fn install(&self, memory: &GuestMemory) -> Result<u64, GuestMemoryError> {
        let moved = self.relocated(layout::ACPI_TABLES);
        memory.write_slice(&moved.rsdp, GuestAddress(layout::RSDP))?;
        memory.write_slice(&moved.tables, GuestAddress(layout::ACPI_TABLES))?;
        Ok(layout::RSDP)
    }

    /// The tables as they are at `base`.
    fn relocated(&self, base: u64) -> Self {
        let mut moved = self.clone();
        for pointer in &self.pointers {
            let field = pointer.offset..pointer.offset + pointer.size;
            let field = &mut moved.blob(pointer.blob)[field];
            let mut value = [0; 8];
            value[..pointer.size].copy_from_slice(field);
            let value = (u64::from_le_bytes(value) + base).to_le_bytes();
            field.copy_from_slice(&value[..pointer.size]);
        }
        for checksum in &self.checksums {
            let data = moved.blob(checksum.blob);
            data[checksum.offset] = 0;
            let sum = data[checksum.range.clone()]
                .iter()
                .fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
            data[checksum.offset] = sum.wrapping_neg();
        }
        moved
    }

    fn blob(&mut self, blob: Blob) -> &mut Vec<u8> {
        match blob {
            Blob::Rsdp => &mut self.rsdp,
            Blob::Tables => &mut self.tables,
        }
    }
}

/// An empty table with our header.
fn table(signature: [u8; 4], revision: u8) -> Sdt {
    Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
