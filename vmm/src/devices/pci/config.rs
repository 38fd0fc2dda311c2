//! Configuration space of one function: 256 bytes and which of their bits the guest may write
//! (PCI Local Bus Specification 3.0, section 6.1).

use serde::{Deserialize, Serialize};

/// Size of configuration space in bytes.
pub const CONFIG_SIZE: usize = 256;

/// Configuration space of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    registers: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
    /// Where the pointer to the next capability goes.
    capability_link: usize,
    /// Where the next capability goes.
    capability_end: usize,
}

/// Memory space decoding, in the command register.
pub const COMMAND_MEMORY: u16 = 1 << 1;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const BARS: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

/// Saved registers. Which bits are writable follows from the device, not from its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    /// All 256 registers.
    pub registers: Vec<u8>,
}

impl ConfigSpace {
    /// A type 0 header with these identifiers; `class` is class, subclass, programming interface
    /// in the low 24 bits. The command register is writable.
    pub fn new(vendor: u16, device: u16, class: u32, revision: u8) -> Self {
        let mut space = Self {
            registers: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            capability_link: CAPABILITIES,
            capability_end: FIRST_CAPABILITY,
        };
        space.set(0x00, &vendor.to_le_bytes());
        space.set(0x02, &device.to_le_bytes());
        space.set(0x08, &((class << 8) | u32::from(revision)).to_le_bytes());
        space.allow(COMMAND, &0x0547_u16.to_le_bytes());
        space.allow(0x3c, &[0xff]);
        space
    }

    /// Sets registers from the device's side.
    pub fn set(&mut self, offset: usize, data: &[u8]) {
        self.registers[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Lets the guest write the bits of `mask`.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Sets the subsystem's identifiers.
    pub fn set_subsystem(&mut self, vendor: u16, device: u16) {
        self.set(SUBSYSTEM, &vendor.to_le_bytes());
        self.set(SUBSYSTEM + 2, &device.to_le_bytes());
    }

    /// Makes base address register `index` (0 to 5) a 32-bit, non-prefetchable memory BAR of
    /// `size` bytes, a power of two of 16 or more, at `address` (section 6.2.5.1).
    pub fn add_memory_bar(&mut self, index: usize, size: u32, address: u32) {
        let register = BARS + 4 * index;
        self.set(register, &address.to_le_bytes());
        self.allow(register, &(!(size - 1)).to_le_bytes());
    }

    /// The address in memory BAR `index`.
    pub fn memory_bar(&self, index: usize) -> u32 {
        self.dword(BARS + 4 * index) & !0xf
    }

    /// Puts a capability at the end of the list (section 6.7): `body` is what follows the id and
    /// the pointer to the next. Returns the capability's offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> u8 {
        let offset = self.capability_end;
        self.set(self.capability_link, &[offset as u8]);
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.capability_link = offset + 1;
        self.capability_end = (offset + 2 + body.len()).next_multiple_of(4);
        let status = self.word(STATUS) | STATUS_CAPABILITIES;
        self.set(STATUS, &status.to_le_bytes());
        offset as u8
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.word(COMMAND)
    }

    /// Sets the command register from the device's side, as firmware would have left it.
    pub fn set_command(&mut self, command: u16) {
        self.set(COMMAND, &command.to_le_bytes());
    }

    /// Reads as the guest does; all bits are set beyond the end.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        let start = usize::from(offset);
        match self.registers.get(start..start + data.len()) {
            Some(registers) => data.copy_from_slice(registers),
            None => data.fill(0xff),
        }
    }

    /// Writes as the guest does: only writable bits change.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        for (at, &byte) in (usize::from(offset)..CONFIG_SIZE).zip(data) {
            let mask = self.writable[at];
            self.registers[at] = (self.registers[at] & !mask) | (byte & mask);
        }
    }

    /// The little-endian 16-bit register at `offset`.
    pub fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.registers[offset], self.registers[offset + 1]])
    }

    /// The little-endian 32-bit register at `offset`.
    pub fn dword(&self, offset: usize) -> u32 {
        u32::from(self.word(offset)) | u32::from(self.word(offset + 2)) << 16
    }

    /// What the guest could have changed, and all else.
    pub fn save(&self) -> ConfigState {
        ConfigState {
            registers: self.registers.to_vec(),
        }
    }

    /// Takes the writable bits of `state`; the rest stays what this device is.
    pub fn restore(&mut self, state: &ConfigState) {
        self.write(0, &state.registers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_bar_written_with_ones_reads_its_size() {
        let mut space = ConfigSpace::new(0x1af4, 0x1042, 0x01_0000, 1);
        space.add_memory_bar(4, 0x8000, 0xc000_0000);
        assert_eq!(space.dword(0x20), 0xc000_0000);
        space.write(0x20, &[0xff; 4]);
        assert_eq!(space.dword(0x20), 0xffff_8000);
        space.write(0x10, &[0xff; 4]);
        assert_eq!(space.dword(0x10), 0);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = ConfigSpace::new(0x1af4, 0x1042, 0x01_0000, 1);
        assert_eq!(space.word(0x06) & 0x10, 0);
        let first = space.add_capability(0x11, &[0; 10]);
        let second = space.add_capability(0x09, &[0x11; 14]);
        assert_eq!((first, second), (0x40, 0x4c));
        assert_eq!(space.word(0x06) & 0x10, 0x10);
        let mut byte = [0];
        space.read(0x34, &mut byte);
        assert_eq!(byte, [first]);
        space.read(first + 1, &mut byte);
        assert_eq!(byte, [second]);
        space.read(second + 1, &mut byte);
        assert_eq!(byte, [0]);
    }

    #[test]
    fn restore_leaves_read_only_registers() {
        let mut space = ConfigSpace::new(0x1af4, 0x1042, 0x01_0000, 1);
        space.add_memory_bar(0, 0x1000, 0xc000_0000);
        let before = space.clone();
        space.restore(&ConfigState {
            registers: vec![0xff; 1000],
        });
        assert_eq!(space.word(0), 0x1af4);
        assert_eq!(space.dword(0x10), 0xffff_f000);
        space.restore(&before.save());
        assert_eq!(space, before);
    }
}
