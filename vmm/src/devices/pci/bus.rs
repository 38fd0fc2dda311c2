//! The way into configuration space: mechanism 1 (PCI Local Bus Specification 3.0, section
//! 3.2.2.3.2) and the functions of bus 0.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::PciFunction;
use crate::bus::BusDevice;
use crate::state::{Section, StateError};

/// Ports that the bus answers at, from [`crate::arch::x86_64::layout::PORT_PCI_CONFIG`].
pub const PORTS: u64 = 8;

const CONFIG_DATA: u64 = 4;
/// The PC's reset control is a byte inside CONFIG_ADDRESS; it is told apart by its width.
const RESET_CONTROL: u64 = 1;
const ENABLE: u32 = 1 << 31;
/// Enable, bus, device, function, register; the rest is hardwired to zero.
const ADDRESS_BITS: u32 = 0x80ff_fffc;
const HEADER_TYPE: u8 = 0x0e;
const MULTI_FUNCTION: u8 = 0x80;

const KIND: &str = "pci-bus";
const VERSION: u16 = 1;

/// Why a function cannot be put on the bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PciBusError {
    /// There is no such slot or function.
    #[error("PCI slot {slot} function {function} does not exist")]
    Number {
        /// The slot, at most 31.
        slot: u8,
        /// The function, at most 7.
        function: u8,
    },
    /// Another function is there.
    #[error("PCI slot {slot} function {function} is taken")]
    Taken {
        /// The slot.
        slot: u8,
        /// The function.
        function: u8,
    },
}

/// Bus 0 behind ports 0xCF8 to 0xCFF.
pub struct PciBus {
    address: AtomicU32,
    functions: RwLock<BTreeMap<(u8, u8), Arc<dyn PciFunction>>>,
    reset_control: Option<Arc<dyn BusDevice>>,
}

#[derive(Serialize, Deserialize)]
struct PciBusState {
    #[serde(default)]
    address: u32,
}

impl PciBus {
    /// An empty bus. Byte accesses to port 0xCF9, which lies between, go to `reset_control` at
    /// offset 0.
    pub fn new(reset_control: Option<Arc<dyn BusDevice>>) -> Self {
        Self {
            address: AtomicU32::new(0),
            functions: RwLock::default(),
            reset_control,
        }
    }

    /// Puts a function on the bus. Function 0 of a slot that holds others says so in its header.
    ///
    /// # Errors
    /// [`PciBusError`] when the place does not exist or is taken.
    pub fn insert(
        &self,
        slot: u8,
        function: u8,
        device: Arc<dyn PciFunction>,
    ) -> Result<(), PciBusError> {
        if slot > 31 || function > 7 {
            return Err(PciBusError::Number { slot, function });
        }
        let mut functions = self.functions.write().expect("no function runs under it");
        if functions.contains_key(&(slot, function)) {
            return Err(PciBusError::Taken { slot, function });
        }
        functions.insert((slot, function), device);
        Ok(())
    }

    /// Power-on state of CONFIG_ADDRESS. Functions are reset by who owns them.
    pub fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
    }

    /// CONFIG_ADDRESS.
    ///
    /// # Errors
    /// [`StateError::Body`] if it cannot be encoded.
    pub fn save(&self) -> Result<Section, StateError> {
        let address = self.address.load(Ordering::Relaxed);
        Section::new(KIND, "", VERSION, &PciBusState { address })
    }

    /// Takes what [`Self::save`] gave.
    ///
    /// # Errors
    /// [`StateError`] if the section is not one of ours.
    pub fn restore(&self, section: &Section) -> Result<(), StateError> {
        if section.kind != KIND {
            return Err(section.invalid("not the PCI bus's"));
        }
        let state: PciBusState = section.parse(VERSION)?;
        self.address
            .store(state.address & ADDRESS_BITS, Ordering::Relaxed);
        Ok(())
    }

    /// The function that CONFIG_ADDRESS selects, its register, and whether its header must say
    /// that the slot holds more.
    fn selected(&self) -> Option<(Arc<dyn PciFunction>, u8, bool)> {
        let address = self.address.load(Ordering::Relaxed);
        let [register, device_function, bus, _] = address.to_le_bytes();
        if address & ENABLE == 0 || bus != 0 {
            return None;
        }
        let (slot, number) = (device_function >> 3, device_function & 7);
        let functions = self.functions.read().expect("no function runs under it");
        let function = Arc::clone(functions.get(&(slot, number))?);
        let multi = number == 0 && functions.range((slot, 1)..=(slot, 7)).next().is_some();
        Some((function, register, multi))
    }

    fn read_data(&self, byte: u8, data: &mut [u8]) {
        let Some((function, register, multi)) = self.selected() else {
            data.fill(0xff);
            return;
        };
        let offset = register + byte;
        function.config_read(offset, data);
        if multi
            && let Some(at) = HEADER_TYPE.checked_sub(offset)
            && let Some(header_type) = data.get_mut(usize::from(at))
        {
            *header_type |= MULTI_FUNCTION;
        }
    }
}

/// Whether an access of `len` bytes at `offset` of the ports lies within CONFIG_DATA.
fn is_data(offset: u64, len: usize) -> bool {
    offset >= CONFIG_DATA && matches!(len, 1 | 2 | 4) && offset + len as u64 <= PORTS
}

impl BusDevice for PciBus {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => {
                let address = self.address.load(Ordering::Relaxed);
                data.copy_from_slice(&address.to_le_bytes());
            }
            (RESET_CONTROL, 1) => match &self.reset_control {
                Some(control) => control.read(0, data),
                None => data.fill(0xff),
            },
            (_, len) if is_data(offset, len) => self.read_data((offset - CONFIG_DATA) as u8, data),
            _ => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data.len()) {
            (0, 4) => {
                let address = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
                self.address
                    .store(address & ADDRESS_BITS, Ordering::Relaxed);
            }
            (RESET_CONTROL, 1) => {
                if let Some(control) = &self.reset_control {
                    control.write(0, data);
                }
            }
            (_, len) if is_data(offset, len) => {
                if let Some((function, register, _)) = self.selected() {
                    function.config_write(register + (offset - CONFIG_DATA) as u8, data);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::devices::pci::config::ConfigSpace;

    struct Function(Mutex<ConfigSpace>);

    impl Function {
        fn new(device: u16) -> Arc<Self> {
            let space = ConfigSpace::new(0x8086, device, 0x06_0000, 2);
            Arc::new(Self(Mutex::new(space)))
        }
    }

    impl PciFunction for Function {
        fn config_read(&self, offset: u8, data: &mut [u8]) {
            assert!(usize::from(offset % 4) + data.len() <= 4);
            self.0.lock().unwrap().read(offset, data);
        }

        fn config_write(&self, offset: u8, data: &[u8]) {
            assert!(usize::from(offset % 4) + data.len() <= 4);
            self.0.lock().unwrap().write(offset, data);
        }
    }

    fn select(bus: &PciBus, slot: u8, function: u8, register: u8) {
        let address = 0x8000_0000
            | u32::from(slot) << 11
            | u32::from(function) << 8
            | u32::from(register & !3);
        bus.write(0, &address.to_le_bytes());
    }

    fn read_u32(bus: &PciBus, offset: u64) -> u32 {
        let mut data = [0; 4];
        bus.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn absent_function_reads_all_ones() {
        let bus = PciBus::new(None);
        bus.insert(0, 0, Function::new(0x1237)).unwrap();
        select(&bus, 1, 0, 0);
        assert_eq!(read_u32(&bus, 4), u32::MAX);
        bus.write(0, &0x8001_0000_u32.to_le_bytes());
        assert_eq!(read_u32(&bus, 4), u32::MAX, "there is no bus 1");
        bus.write(0, &0_u32.to_le_bytes());
        assert_eq!(read_u32(&bus, 4), u32::MAX, "the enable bit is off");
        select(&bus, 0, 0, 0);
        assert_eq!(read_u32(&bus, 4), 0x1237_8086);
    }

    #[test]
    fn config_data_takes_any_width_at_any_byte() {
        let bus = PciBus::new(None);
        bus.insert(3, 0, Function::new(0x1237)).unwrap();
        select(&bus, 3, 0, 0);
        let (mut word, mut byte) = ([0; 2], [0]);
        bus.read(6, &mut word);
        assert_eq!(word, [0x37, 0x12]);
        bus.read(5, &mut byte);
        assert_eq!(byte, [0x80]);
        select(&bus, 3, 0, 0x3c);
        bus.write(4, &[11]);
        assert_eq!(read_u32(&bus, 4), 11);
    }

    #[test]
    fn config_address_takes_only_dwords() {
        let bus = PciBus::new(None);
        bus.write(0, &0xffff_ffff_u32.to_le_bytes());
        assert_eq!(read_u32(&bus, 0), ADDRESS_BITS);
        bus.write(0, &[0]);
        bus.write(2, &[0, 0]);
        assert_eq!(read_u32(&bus, 0), ADDRESS_BITS);
        let mut byte = [0];
        bus.read(0, &mut byte);
        assert_eq!(byte, [0xff]);
    }

    #[test]
    fn second_function_sets_the_multi_function_bit_of_the_first() {
        let bus = PciBus::new(None);
        bus.insert(1, 0, Function::new(0x7000)).unwrap();
        select(&bus, 1, 0, 0x0c);
        assert_eq!(read_u32(&bus, 4), 0);
        bus.insert(1, 3, Function::new(0x7113)).unwrap();
        assert_eq!(read_u32(&bus, 4), 0x0080_0000);
        let mut byte = [0];
        bus.read(6, &mut byte);
        assert_eq!(byte, [0x80]);
        bus.read(7, &mut byte);
        assert_eq!(byte, [0]);
        select(&bus, 1, 3, 0x0c);
        assert_eq!(read_u32(&bus, 4), 0);
    }

    #[test]
    fn place_that_is_taken_or_absent_is_refused() {
        let bus = PciBus::new(None);
        bus.insert(1, 0, Function::new(1)).unwrap();
        let taken = bus.insert(1, 0, Function::new(2));
        assert!(matches!(taken, Err(PciBusError::Taken { .. })));
        for (slot, function) in [(32, 0), (0, 8)] {
            let refused = bus.insert(slot, function, Function::new(2));
            assert_eq!(refused, Err(PciBusError::Number { slot, function }));
        }
    }

    #[test]
    fn reset_control_gets_byte_accesses_only() {
        #[derive(Default)]
        struct Control(Mutex<Vec<u8>>);
        impl BusDevice for Control {
            fn read(&self, _: u64, data: &mut [u8]) {
                data.fill(2);
            }
            fn write(&self, _: u64, data: &[u8]) {
                self.0.lock().unwrap().extend(data);
            }
        }
        let control = Arc::new(Control::default());
        let bus = PciBus::new(Some(control.clone()));
        bus.write(1, &[6]);
        bus.write(0, &[1, 2, 3, 4]);
        assert_eq!(*control.0.lock().unwrap(), [6]);
        let mut byte = [0];
        bus.read(1, &mut byte);
        assert_eq!(byte, [2]);
    }

    #[test]
    fn save_restore_save_gives_the_same() {
        let bus = PciBus::new(None);
        select(&bus, 5, 1, 0x10);
        let saved = bus.save().unwrap();
        let other = PciBus::new(None);
        other.restore(&saved).unwrap();
        assert_eq!(other.save().unwrap(), saved);
        assert_eq!(read_u32(&other, 0), read_u32(&bus, 0));
    }

    proptest! {
        #[test]
        fn random_accesses_never_panic(
            accesses in prop::collection::vec(
                (0_u64..12, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 1..100),
        ) {
            let bus = PciBus::new(None);
            bus.insert(0, 0, Function::new(1)).unwrap();
            bus.insert(31, 7, Function::new(2)).unwrap();
            for (offset, mut data, is_write) in accesses {
                if is_write {
                    bus.write(offset, &data);
                } else {
                    bus.read(offset, &mut data);
                }
            }
        }
    }
}
