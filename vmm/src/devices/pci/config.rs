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
}

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
        };
        space.set(0x00, &vendor.to_le_bytes());
        space.set(0x02, &device.to_le_bytes());
        space.set(0x08, &((class << 8) | u32::from(revision)).to_le_bytes());
        space.allow(0x04, &0x0547_u16.to_le_bytes());
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
