//! Configuration space: identity, the BAR's layout, and the capabilities that describe it
//! (virtio 1.2, section 4.1.4).

use std::ops::Range;
use std::sync::Arc;

use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_NET};

use super::Bar;
use super::common::COMMON_LEN;
use super::mapping::{Mapping, NOTIFY_MULTIPLIER};
use crate::arch::x86_64::layout::PCI_MMIO32;
use crate::bus::BusError;
use crate::devices::pci::config::{COMMAND_MEMORY, ConfigSpace, ConfigState};
use crate::devices::pci::msix::{self, Msix};

/// Size of the BAR in bytes; a region a page of 4096.
pub const BAR_SIZE: u32 = 0x8000;
/// Where the queues' notification addresses start in the BAR.
pub const NOTIFY_OFFSET: u32 = Region::Notify as u32 * REGION_SIZE;
/// The most queues: their vectors and one more fill the page of the MSI-X table.
pub const MAX_QUEUES: usize = REGION_SIZE as usize / msix::ENTRY_SIZE as usize - 1;

const BAR: u8 = 4;
const BAR_REGISTER: u8 = 0x20;
const COMMAND_REGISTER: u8 = 0x04;
const REGION_SIZE: u32 = 0x1000;

const VENDOR: u16 = 0x1af4;
/// A device that is virtio 1.x only is at this plus its type (section 4.1.2).
const DEVICE_BASE: u16 = 0x1040;
/// A revision of 1 or more says the same.
const REVISION: u8 = 1;

const CAPABILITY_VENDOR: u8 = 0x09;
// `VIRTIO_PCI_CAP_*` (section 4.1.4).
const CFG_TYPE_COMMON: u8 = 1;
const CFG_TYPE_NOTIFY: u8 = 2;
const CFG_TYPE_ISR: u8 = 3;
const CFG_TYPE_DEVICE: u8 = 4;
const CFG_TYPE_PCI: u8 = 5;

// Offsets in `struct virtio_pci_cfg_cap`.
const WINDOW_BAR: u8 = 4;
const WINDOW_OFFSET: u8 = 8;
const WINDOW_LENGTH: u8 = 12;
const WINDOW_DATA: u8 = 16;
const WINDOW_DATA_LEN: usize = 4;

/// The pages of the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    Common = 0,
    Isr = 1,
    Device = 2,
    Notify = 3,
    MsixTable = 4,
    MsixPending = 5,
}

impl Region {
    /// The region at this offset of the BAR, and the offset in it.
    pub fn find(offset: u64) -> Option<(Self, u64)> {
        let region = match offset / u64::from(REGION_SIZE) {
            0 => Self::Common,
            1 => Self::Isr,
            2 => Self::Device,
            3 => Self::Notify,
            4 => Self::MsixTable,
            5 => Self::MsixPending,
            _ => return None,
        };
        Some((region, offset % u64::from(REGION_SIZE)))
    }

    fn offset(self) -> u32 {
        self as u32 * REGION_SIZE
    }
}

/// Where the BAR of the function in `slot` is at power-on, so that a guest without firmware
/// finds its devices in place.
pub fn initial_address(slot: u8) -> u32 {
    PCI_MMIO32.start as u32 + u32::from(slot) * BAR_SIZE
}

/// Configuration space, and the mapping that follows it.
pub struct Function {
    pub space: ConfigSpace,
    initial: ConfigSpace,
    mapping: Mapping,
    bar: Option<Arc<Bar>>,
    /// Offset of the MSI-X capability.
    msix: u8,
    /// Offset of the window into the BAR (`VIRTIO_PCI_CAP_PCI_CFG`).
    window: u8,
}

impl Function {
    pub fn new(device_type: u16, address: u32, msix: &Msix, mapping: Mapping) -> Self {
        let device = DEVICE_BASE + device_type;
        let mut space = ConfigSpace::new(VENDOR, device, class(device_type), REVISION);
        space.set_subsystem(VENDOR, device);
        space.add_memory_bar(BAR.into(), BAR_SIZE, address);
        space.set_command(COMMAND_MEMORY);

        let (table, pending) = (Region::MsixTable.offset(), Region::MsixPending.offset());
        let body = msix.capability(BAR, table, pending);
        let msix = space.add_capability(msix::CAPABILITY_ID, &body);
        space.allow((msix + 2).into(), &msix::CONTROL_WRITABLE.to_le_bytes());

        let regions = [
            (CFG_TYPE_COMMON, Region::Common, COMMON_LEN as u32),
            (CFG_TYPE_ISR, Region::Isr, 1),
            (CFG_TYPE_DEVICE, Region::Device, REGION_SIZE),
        ];
        for (cfg_type, region, len) in regions {
            let body = capability(cfg_type, region.offset(), len, &[]);
            space.add_capability(CAPABILITY_VENDOR, &body);
        }
        let body = capability(
            CFG_TYPE_NOTIFY,
            NOTIFY_OFFSET,
            REGION_SIZE,
            &NOTIFY_MULTIPLIER.to_le_bytes(),
        );
        space.add_capability(CAPABILITY_VENDOR, &body);
        let body = capability(CFG_TYPE_PCI, 0, 0, &[0; WINDOW_DATA_LEN]);
        let window = space.add_capability(CAPABILITY_VENDOR, &body);
        space.allow((window + WINDOW_BAR).into(), &[0xff]);
        space.allow((window + WINDOW_OFFSET).into(), &[0xff; 12]);
        Self {
            initial: space.clone(),
            space,
            mapping,
            bar: None,
            msix,
            window,
        }
    }

    /// Sets what answers on the bus.
    pub fn with_bar(mut self, bar: Arc<Bar>) -> Self {
        self.bar = Some(bar);
        self
    }

    /// Power-on state. The mapping leaves, but follows only with [`Self::map`].
    pub fn reset(&mut self) {
        self.space = self.initial.clone();
        self.mapping.leave_unless_at(self.target());
    }

    /// Takes saved registers; the mapping does as in [`Self::reset`], as another function may
    /// still be where this one goes.
    pub fn restore(&mut self, state: &ConfigState) {
        self.space.restore(state);
        self.mapping.leave_unless_at(self.target());
    }

    /// Makes the mapping follow the command register and the BAR.
    pub fn map(&mut self) -> Result<(), BusError> {
        let target = self.target();
        match &self.bar {
            Some(bar) => self.mapping.follow(target, bar),
            None => Ok(()),
        }
    }

    /// Where command register and BAR want the mapping.
    fn target(&self) -> Option<u64> {
        let address = self.space.memory_bar(BAR.into());
        let decodes = self.space.command() & COMMAND_MEMORY != 0
            // Nobody wants address 0, and the top is where sizing puts a BAR.
            && address != 0
            && address.checked_add(BAR_SIZE).is_some();
        decodes.then_some(address.into())
    }

    pub fn touches_mapping(offset: u8, len: usize) -> bool {
        overlaps(offset, len, COMMAND_REGISTER, 2) || overlaps(offset, len, BAR_REGISTER, 4)
    }

    pub fn touches_msix(&self, offset: u8, len: usize) -> bool {
        overlaps(offset, len, self.msix + 2, 2)
    }

    pub fn msix_control(&self) -> u16 {
        self.space.word((self.msix + 2).into())
    }

    /// The access to the BAR that an access to configuration space means, if it is one to the
    /// window's data and the window is set up as section 4.1.4.9 wants: offset and length.
    pub fn window_access(&self, offset: u8, len: usize) -> Option<(u64, usize)> {
        if !overlaps(offset, len, self.window + WINDOW_DATA, WINDOW_DATA_LEN) {
            return None;
        }
        let mut bar = [0];
        self.space.read(self.window + WINDOW_BAR, &mut bar);
        let address = self.space.dword((self.window + WINDOW_OFFSET).into());
        let length = self.space.dword((self.window + WINDOW_LENGTH).into());
        let valid = bar == [BAR]
            && matches!(length, 1 | 2 | 4)
            && address.is_multiple_of(length)
            && address <= BAR_SIZE - length;
        valid.then_some((address.into(), length as usize))
    }

    pub fn window_data(&self) -> [u8; WINDOW_DATA_LEN] {
        let data = self.space.dword((self.window + WINDOW_DATA).into());
        data.to_le_bytes()
    }

    pub fn set_window_data(&mut self, data: [u8; WINDOW_DATA_LEN]) {
        self.space.set((self.window + WINDOW_DATA).into(), &data);
    }
}

/// Class, subclass and programming interface of a device of this type (PCI code and ID
/// assignment specification, section 1).
fn class(device_type: u16) -> u32 {
    match device_type.into() {
        VIRTIO_ID_NET => 0x02_0000,
        VIRTIO_ID_BLOCK => 0x01_0000,
        VIRTIO_ID_CONSOLE => 0x07_8000,
        _ => 0xff_0000,
    }
}

/// `struct virtio_pci_cap` after its first two bytes, and what its kind adds.
fn capability(cfg_type: u8, offset: u32, len: u32, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + rest.len() as u8, cfg_type, BAR, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(rest);
    body
}

fn overlaps(offset: u8, len: usize, register: u8, register_len: usize) -> bool {
    let access = range(offset, len);
    let register = range(register, register_len);
    access.start < register.end && register.start < access.end
}

fn range(offset: u8, len: usize) -> Range<usize> {
    let start = usize::from(offset);
    start..start + len
}
