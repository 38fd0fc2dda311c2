//! Virtio over MMIO, version 2.

use super::queue::Queue;
use super::{Device, Transport};
use crate::machine::Registers;
use crate::paging;

const MAGIC: u32 = 0x7472_6976;
const VERSION: usize = 0x04;
const DEVICE_ID: usize = 0x08;
const DEVICE_FEATURES: usize = 0x10;
const DEVICE_FEATURES_SELECT: usize = 0x14;
const DRIVER_FEATURES: usize = 0x20;
const DRIVER_FEATURES_SELECT: usize = 0x24;
const QUEUE_SELECT: usize = 0x30;
const QUEUE_MAX: usize = 0x34;
const QUEUE_SIZE: usize = 0x38;
const QUEUE_READY: usize = 0x44;
const QUEUE_NOTIFY: usize = 0x50;
const STATUS: usize = 0x70;
/// Descriptor table, available and used ring, each low and high half.
const QUEUE_ADDRESSES: [usize; 3] = [0x80, 0x90, 0xa0];
const CONFIG: u64 = 0x100;

/// One slot.
pub struct Mmio {
    registers: Registers,
    /// The device's own configuration.
    pub config: Registers,
}

/// The device at `address`, if there is one that speaks version 2.
pub fn probe(address: u64) -> Option<Device> {
    let base = paging::map_device(address, 0x200)?;
    // SAFETY: the command line names a virtio-mmio slot there, and it is mapped now.
    let registers = unsafe { Registers::new(base, 0x200) };
    let kind = registers.read32(DEVICE_ID);
    if registers.read32(0) != MAGIC || registers.read32(VERSION) != 2 || kind == 0 {
        return None;
    }
    let config = registers.part(CONFIG, 0x100)?;
    Some(Device {
        transport: Transport::Mmio(Mmio { registers, config }),
        kind,
    })
}

impl Mmio {
    pub fn status(&self) -> u8 {
        self.registers.read32(STATUS) as u8
    }

    pub fn set_status(&self, status: u8) {
        self.registers.write32(STATUS, u32::from(status));
    }

    pub fn device_features(&self) -> u64 {
        let half = |select| {
            self.registers.write32(DEVICE_FEATURES_SELECT, select);
            u64::from(self.registers.read32(DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    pub fn set_driver_features(&self, features: u64) {
        for select in 0..2 {
            self.registers.write32(DRIVER_FEATURES_SELECT, select);
            let half = (features >> (32 * select)) as u32;
            self.registers.write32(DRIVER_FEATURES, half);
        }
    }

    pub fn queue_max(&self, index: u16) -> u16 {
        self.registers.write32(QUEUE_SELECT, u32::from(index));
        self.registers.read32(QUEUE_MAX) as u16
    }

    pub fn set_queue(&self, queue: &Queue) {
        self.registers.write32(QUEUE_SELECT, u32::from(queue.index));
        self.registers.write32(QUEUE_SIZE, u32::from(queue.size));
        for (offset, address) in QUEUE_ADDRESSES.into_iter().zip(queue.addresses()) {
            self.registers.write32(offset, address as u32);
            self.registers.write32(offset + 4, (address >> 32) as u32);
        }
        self.registers.write32(QUEUE_READY, 1);
    }

    pub fn notify(&self, queue: u16) {
        self.registers.write32(QUEUE_NOTIFY, u32::from(queue));
    }

    pub fn idle_register(&self) -> Registers {
        self.registers
    }
}
