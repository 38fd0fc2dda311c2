//! SMBIOS (DMTF DSP0134, version 2.8): who made the machine and which one it is, for
//! `dmidecode`, cloud-init and licence managers.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;
use crate::memory::GuestMemory;

const MANUFACTURER: &str = "Pindah";
const PRODUCT: &str = "Virtual Machine";

/// Characteristics of a BIOS (section 7.1): "not supported" as a set of its own, and in the
/// second extension byte that this is a virtual machine.
const BIOS_CHARACTERISTICS: u64 = 1 << 3;
const BIOS_VIRTUAL_MACHINE: u8 = 1 << 4;
/// Section 7.2.2.
const WAKE_UP_POWER_SWITCH: u8 = 6;
/// Section 7.4.1.
const CHASSIS_OTHER: u8 = 1;
/// Section 7.4.2.
const STATE_SAFE: u8 = 3;
const SECURITY_NONE: u8 = 3;

const ENTRY_POINT_LEN: u8 = 31;

/// The entry point and the structures that it points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smbios {
    anchor: Vec<u8>,
    tables: Vec<u8>,
}

impl Smbios {
    /// Describes the machine called `name` with this UUID (RFC 9562, in its byte order).
    pub fn new(name: &str, uuid: &[u8; 16]) -> Self {
        let mut tables = Tables::default();
        tables.bios();
        tables.system(name, uuid);
        tables.chassis();
        tables.add(127, &[], &[]);
        let anchor = anchor(&tables, 0);
        Self {
            anchor,
            tables: tables.data,
        }
    }

    /// The fw_cfg files from which firmware places the tables: name and content.
    pub fn fw_cfg_files(&self) -> [(&'static str, Vec<u8>); 2] {
        [
            ("etc/smbios/smbios-anchor", self.anchor.clone()),
            ("etc/smbios/smbios-tables", self.tables.clone()),
        ]
    }

    /// Writes everything to guest memory for a kernel that is loaded directly.
    ///
    /// # Errors
    /// The memory below 1 MiB is not RAM.
    pub fn install(&self, memory: &GuestMemory) -> Result<(), GuestMemoryError> {
        let address = layout::SMBIOS + u64::from(ENTRY_POINT_LEN.next_multiple_of(16));
        let mut anchor = self.anchor.clone();
        set_address(&mut anchor, address as u32);
        memory.write_slice(&anchor, GuestAddress(layout::SMBIOS))?;
        memory.write_slice(&self.tables, GuestAddress(address))
    }
}

/// Structures one after the other.
#[derive(Default)]
struct Tables {
    data: Vec<u8>,
    count: u16,
    largest: u16,
}

impl Tables {
    /// Adds a structure (section 6.1): its formatted area, then its strings.
    fn add(&mut self, kind: u8, body: &[u8], strings: &[&str]) {
        let start = self.data.len();
        self.data.extend([kind, body.len() as u8 + 4]);
        self.data.extend((self.count + 1).to_le_bytes());
        self.data.extend_from_slice(body);
        for string in strings {
            // A zero would end the string, and an empty one the structure.
            let text = string.bytes().filter(|&byte| byte != 0).take(64);
            self.data.extend(text);
            self.data.push(0);
        }
        if strings.is_empty() {
            self.data.push(0);
        }
        self.data.push(0);
        self.count += 1;
        self.largest = self.largest.max((self.data.len() - start) as u16);
    }

    /// Type 0 (section 7.1).
    fn bios(&mut self) {
        let mut body = vec![1, 2, 0, 0, 3, 0];
        body.extend(BIOS_CHARACTERISTICS.to_le_bytes());
        body.extend([0, BIOS_VIRTUAL_MACHINE, 0, 0, 0xff, 0xff]);
        let version = env!("CARGO_PKG_VERSION");
        self.add(0, &body, &[MANUFACTURER, version, "01/01/2025"]);
    }

    /// Type 1 (section 7.2). The first three fields of a UUID are little-endian here.
    fn system(&mut self, name: &str, uuid: &[u8; 16]) {
        let mut body = vec![1, 2, 3, 4];
        for index in [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15] {
            body.push(uuid[index]);
        }
        body.extend([WAKE_UP_POWER_SWITCH, 0, 0]);
        let version = env!("CARGO_PKG_VERSION");
        let serial = if name.is_empty() { "-" } else { name };
        self.add(1, &body, &[MANUFACTURER, PRODUCT, version, serial]);
    }

    /// Type 3 (section 7.4).
    fn chassis(&mut self) {
        let mut body = vec![1, CHASSIS_OTHER, 0, 0, 0];
        body.extend([STATE_SAFE, STATE_SAFE, STATE_SAFE, SECURITY_NONE]);
        body.extend([0; 8]);
        self.add(3, &body, &[MANUFACTURER]);
    }
}

/// The 32-bit entry point (section 5.2.1).
fn anchor(tables: &Tables, address: u32) -> Vec<u8> {
    let mut anchor = b"_SM_\0".to_vec();
    anchor.extend([ENTRY_POINT_LEN, 2, 8]);
    anchor.extend(tables.largest.to_le_bytes());
    anchor.extend([0; 6]);
    anchor.extend(b"_DMI_\0");
    anchor.extend((tables.data.len() as u16).to_le_bytes());
    anchor.extend([0; 4]);
    anchor.extend(tables.count.to_le_bytes());
    anchor.push(0x28);
    set_address(&mut anchor, address);
    anchor
}

/// Sets where the structures are, and both checksums.
fn set_address(anchor: &mut [u8], address: u32) {
    const CHECKSUM: usize = 4;
    const INTERMEDIATE: usize = 0x10;
    const INTERMEDIATE_CHECKSUM: usize = 0x15;
    const ADDRESS: usize = 0x18;
    anchor[ADDRESS..ADDRESS + 4].copy_from_slice(&address.to_le_bytes());
    for (checksum, start) in [(INTERMEDIATE_CHECKSUM, INTERMEDIATE), (CHECKSUM, 0)] {
        anchor[checksum] = 0;
        let sum = anchor[start..]
            .iter()
            .fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
        anchor[checksum] = sum.wrapping_neg();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
    }

    /// Types of all structures, walked as a system does it.
    fn kinds(mut tables: &[u8]) -> Vec<u8> {
        let mut kinds = vec![];
        while !tables.is_empty() {
            kinds.push(tables[0]);
            let strings = &tables[usize::from(tables[1])..];
            let end = strings.windows(2).position(|pair| pair == [0, 0]).unwrap();
            tables = &strings[end + 2..];
        }
        kinds
    }

    #[test]
    fn structures_are_found_from_the_entry_point() {
        let uuid = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
        let smbios = Smbios::new("web 1", &uuid);
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        smbios.install(&memory).unwrap();
        let read = |address, len| {
            let mut bytes = vec![0; len];
            memory
                .read_slice(&mut bytes, GuestAddress(address))
                .unwrap();
            bytes
        };
        let anchor = read(layout::SMBIOS, usize::from(ENTRY_POINT_LEN));
        assert_eq!(
            (&anchor[..4], &anchor[16..21]),
            (&b"_SM_"[..], &b"_DMI_"[..])
        );
        assert_eq!((sum(&anchor), sum(&anchor[16..])), (0, 0));
        let len = u16::from_le_bytes([anchor[22], anchor[23]]);
        let address = u32::from_le_bytes(anchor[24..28].try_into().unwrap());
        let tables = read(u64::from(address), usize::from(len));
        assert_eq!(kinds(&tables), [0, 1, 3, 127]);
        assert_eq!(u16::from_le_bytes([anchor[28], anchor[29]]), 4);
        let text = String::from_utf8_lossy(&tables).into_owned();
        assert!(text.contains("web 1"));
        assert!(
            tables
                .windows(4)
                .any(|bytes| bytes == [0x33, 0x22, 0x11, 0x00])
        );
    }

    #[test]
    fn name_with_zeroes_or_none_leaves_the_structures_whole() {
        for name in ["", "a\0\0b", &"x".repeat(1000)] {
            assert_eq!(kinds(&Smbios::new(name, &[0; 16]).tables), [0, 1, 3, 127]);
        }
    }
}
