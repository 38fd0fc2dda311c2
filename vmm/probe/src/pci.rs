//! PCI configuration space through ports 0xcf8 and 0xcfc.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::machine::{in32, out32};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const COMMAND: u8 = 0x04;
const HEADER_TYPE: u8 = 0x0c;
const BAR0: u8 = 0x10;
const SECONDARY_BUS: u8 = 0x18;
const SUBSYSTEM: u8 = 0x2c;
const CAPABILITIES: u8 = 0x34;
const MEMORY_AND_BUS_MASTER: u32 = 0b110;
const NO_DEVICE: u32 = 0xffff_ffff;

/// Where BARs go that nobody has placed, as no firmware ran.
static NEXT_BAR: AtomicU64 = AtomicU64::new(0xd000_0000);

/// One function of a device.
#[derive(Clone, Copy)]
pub struct Function {
    address: u32,
}

impl Function {
    /// Looks at every function on bus 0 and right behind its bridges until `look` finds something.
    pub fn find<T>(mut look: impl FnMut(Self) -> Option<T>) -> Option<T> {
        if !address_sticks() {
            return None;
        }
        functions(0).find_map(|function| {
            look(function).or_else(|| {
                let bus = function.secondary_bus()?;
                functions(bus).find_map(&mut look)
            })
        })
    }

    fn at(bus: u32, device: u32, function: u32) -> Option<Self> {
        let address = 1 << 31 | bus << 16 | device << 11 | function << 8;
        let function = Self { address };
        (function.read32(0) != NO_DEVICE).then_some(function)
    }

    fn secondary_bus(self) -> Option<u32> {
        let bridge = self.read32(HEADER_TYPE) >> 16 & 0x7f == 1;
        let bus = self.read32(SECONDARY_BUS) >> 8 & 0xff;
        (bridge && bus != 0).then_some(bus)
    }

    /// Vendor and device.
    pub fn id(self) -> (u16, u16) {
        let id = self.read32(0);
        (id as u16, (id >> 16) as u16)
    }

    /// The subsystem's device number.
    pub fn subsystem(self) -> u16 {
        (self.read32(SUBSYSTEM) >> 16) as u16
    }

    /// Lets the device answer at its BARs and reach memory.
    pub fn enable(self) {
        let command = self.read32(COMMAND) & 0xffff;
        self.write32(COMMAND, command | MEMORY_AND_BUS_MASTER);
    }

    /// Address of a memory BAR, which is placed if it has no place.
    pub fn bar(self, index: u8) -> Option<u64> {
        if index > 5 {
            return None;
        }
        let register = BAR0 + 4 * index;
        let low = self.read32(register);
        if low & 1 != 0 {
            return None;
        }
        let wide = low & 0b110 == 0b100;
        let high = if wide { self.read32(register + 4) } else { 0 };
        let address = u64::from(low & !0xf) | u64::from(high) << 32;
        if address != 0 {
            return Some(address);
        }
        self.write32(register, u32::MAX);
        let size = u64::from(!(self.read32(register) & !0xf)) + 1;
        let address = NEXT_BAR.load(Relaxed).next_multiple_of(size);
        NEXT_BAR.store(address + size, Relaxed);
        self.write32(register, address as u32);
        if wide {
            self.write32(register + 4, 0);
        }
        Some(address)
    }

    /// The first capability for which `wanted` says yes.
    pub fn capability(self, wanted: impl Fn(&Capability) -> bool) -> Option<Capability> {
        let mut at = self.read32(CAPABILITIES) as u8 & !3;
        // No list is longer than the space that it is in.
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            let capability = Capability { function: self, at };
            if wanted(&capability) {
                return Some(capability);
            }
            at = capability.read8(1) & !3;
        }
        None
    }

    fn read32(self, register: u8) -> u32 {
        out32(ADDRESS, self.address | u32::from(register & !3));
        in32(DATA)
    }

    fn write32(self, register: u8, value: u32) {
        out32(ADDRESS, self.address | u32::from(register & !3));
        out32(DATA, value);
    }
}

/// All functions on a bus; only devices that say so are asked for more than one.
fn functions(bus: u32) -> impl Iterator<Item = Function> {
    (0..32).flat_map(move |device| {
        let count = match Function::at(bus, device, 0) {
            None => 0,
            Some(first) if first.read32(HEADER_TYPE) & 1 << 23 != 0 => 8,
            Some(_) => 1,
        };
        (0..count).filter_map(move |function| Function::at(bus, device, function))
    })
}

/// Whether there is anything that keeps what is written to the address port.
fn address_sticks() -> bool {
    out32(ADDRESS, 1 << 31);
    in32(ADDRESS) == 1 << 31
}

/// One entry of a function's list.
pub struct Capability {
    function: Function,
    at: u8,
}

impl Capability {
    /// Its kind.
    pub fn id(&self) -> u8 {
        self.read8(0)
    }

    /// A byte of it.
    pub fn read8(&self, offset: u8) -> u8 {
        let at = self.at.wrapping_add(offset);
        (self.function.read32(at) >> (8 * (at & 3))) as u8
    }

    /// 32 bits of it.
    pub fn read32(&self, offset: u8) -> u32 {
        self.function.read32(self.at.wrapping_add(offset))
    }
}
