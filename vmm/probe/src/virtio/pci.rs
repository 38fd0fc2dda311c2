//! Virtio over PCI, the modern interface.

use super::queue::Queue;
use super::{Device, Transport};
use crate::machine::Registers;
use crate::paging;
use crate::pci::{Capability, Function};

const VENDOR: u16 = 0x1af4;
const MODERN: u16 = 0x1040;
const VENDOR_CAPABILITY: u8 = 9;
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;

const DEVICE_FEATURES_SELECT: usize = 0;
const DEVICE_FEATURES: usize = 4;
const DRIVER_FEATURES_SELECT: usize = 8;
const DRIVER_FEATURES: usize = 12;
const STATUS: usize = 20;
const QUEUE_SELECT: usize = 22;
const QUEUE_SIZE: usize = 24;
const QUEUE_ENABLE: usize = 28;
const QUEUE_NOTIFY_OFFSET: usize = 30;
/// Descriptor table, available and used ring, each low and high half.
const QUEUE_ADDRESSES: [usize; 3] = [32, 40, 48];
const COMMON_BYTES: u64 = 56;
const QUEUES: usize = 4;

/// One function.
pub struct Pci {
    common: Registers,
    notify: Registers,
    notify_multiplier: u64,
    /// Where each queue is notified, kept so that a notification is one write.
    doorbells: [core::cell::Cell<Option<Registers>>; QUEUES],
    /// The device's own configuration.
    pub config: Registers,
}

/// The `skip`-th function for whose type `wanted` says yes.
pub fn find(skip: u64, wanted: &dyn Fn(u32) -> bool) -> Option<Device> {
    let mut skip = skip;
    Function::find(|function| {
        let kind = kind(function).filter(|&kind| wanted(kind))?;
        if skip > 0 {
            skip -= 1;
            return None;
        }
        let transport = Transport::Pci(open(function)?);
        Some(Device { transport, kind })
    })
}

fn kind(function: Function) -> Option<u32> {
    let (vendor, device) = function.id();
    match device {
        _ if vendor != VENDOR => None,
        0x1040..0x1080 => Some(u32::from(device - MODERN)),
        0x1000..0x1040 => Some(u32::from(function.subsystem())),
        _ => None,
    }
}

fn open(function: Function) -> Option<Pci> {
    function.enable();
    let part = |kind: u8| {
        let capability =
            function.capability(|c| c.id() == VENDOR_CAPABILITY && c.read8(3) == kind)?;
        registers(function, &capability).map(|registers| (registers, capability))
    };
    let (common, _) = part(COMMON)?;
    let (notify, notify_capability) = part(NOTIFY)?;
    // A device without configuration of its own has no such capability.
    let config = part(DEVICE).map_or(common, |(registers, _)| registers);
    Some(Pci {
        common: common.part(0, COMMON_BYTES)?,
        notify,
        notify_multiplier: u64::from(notify_capability.read32(16)),
        doorbells: Default::default(),
        config,
    })
}

fn registers(function: Function, capability: &Capability) -> Option<Registers> {
    let (bar, offset, len) = (
        capability.read8(4),
        capability.read32(8),
        capability.read32(12),
    );
    let start = function.bar(bar)?.checked_add(u64::from(offset))?;
    let base = paging::map_device(start, u64::from(len))?;
    // SAFETY: the device says that these are its registers, and they are mapped now.
    Some(unsafe { Registers::new(base, u64::from(len)) })
}

impl Pci {
    pub fn status(&self) -> u8 {
        self.common.read8(STATUS)
    }

    pub fn set_status(&self, status: u8) {
        self.common.write8(STATUS, status);
    }

    pub fn device_features(&self) -> u64 {
        let half = |select| {
            self.common.write32(DEVICE_FEATURES_SELECT, select);
            u64::from(self.common.read32(DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    pub fn set_driver_features(&self, features: u64) {
        for select in 0..2 {
            self.common.write32(DRIVER_FEATURES_SELECT, select);
            let half = (features >> (32 * select)) as u32;
            self.common.write32(DRIVER_FEATURES, half);
        }
    }

    pub fn queue_max(&self, index: u16) -> u16 {
        self.common.write16(QUEUE_SELECT, index);
        self.common.read16(QUEUE_SIZE)
    }

    pub fn set_queue(&self, queue: &Queue) -> Result<(), &'static str> {
        self.common.write16(QUEUE_SELECT, queue.index);
        self.common.write16(QUEUE_SIZE, queue.size);
        for (offset, address) in QUEUE_ADDRESSES.into_iter().zip(queue.addresses()) {
            self.common.write32(offset, address as u32);
            self.common.write32(offset + 4, (address >> 32) as u32);
        }
        let doorbell = u64::from(self.common.read16(QUEUE_NOTIFY_OFFSET)) * self.notify_multiplier;
        let doorbell = self.notify.part(doorbell, 2);
        let slot = self.doorbells.get(usize::from(queue.index));
        let slot = slot.ok_or("a queue's number is too large")?;
        slot.set(Some(doorbell.ok_or("a doorbell lies outside its BAR")?));
        self.common.write16(QUEUE_ENABLE, 1);
        Ok(())
    }

    pub fn notify(&self, queue: u16) {
        if let Some(doorbell) = self.doorbells[usize::from(queue)].get() {
            doorbell.write16(0, queue);
        }
    }

    pub fn idle_register(&self) -> Registers {
        self.common
    }
}
