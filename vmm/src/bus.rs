//! Address → device: the port and MMIO spaces of the machine.
//!
//! The map is read far more often than it is written (only a BAR that moves writes it), and no
//! handler ever runs under its lock: a device may therefore move its own range from within a
//! write.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use thiserror::Error;

/// A device that answers at a range of ports or physical addresses.
///
/// Both calls come from vCPU threads, several at a time. `offset` counts from the start of the
/// range; `data` is 1, 2, 4 or 8 bytes and lies within the range. A read that means nothing
/// leaves all bits set, as an empty bus does.
pub trait BusDevice: Send + Sync {
    /// Fills `data` from the register at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` to the register at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a range cannot be put on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or passes the end of the address space.
    #[error("bus range {base:#x}+{len:#x} is empty or too long")]
    Range {
        /// First address.
        base: u64,
        /// Length in addresses.
        len: u64,
    },
    /// Another device answers there.
    #[error("bus range {base:#x}+{len:#x} overlaps one that is there")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in addresses.
        len: u64,
    },
}

struct Entry {
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// One address space.
#[derive(Default)]
pub struct Bus {
    entries: RwLock<BTreeMap<u64, Entry>>,
}

impl Bus {
    /// Puts `device` at `base..base + len`.
    ///
    /// # Errors
    /// [`BusError`] when the range is bad or taken.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let end = match base.checked_add(len) {
            Some(end) if len > 0 => end,
            _ => return Err(BusError::Range { base, len }),
        };
        let mut entries = self
            .entries
            .write()
            .expect("no handler runs under this lock");
        let below = entries.range(..end).next_back();
        if below.is_some_and(|(&at, entry)| at + entry.len > base) {
            return Err(BusError::Overlap { base, len });
        }
        entries.insert(base, Entry { len, device });
        Ok(())
    }

    /// Takes away the range that starts at `base`; nothing happens if there is none.
    pub fn remove(&self, base: u64) {
        let mut entries = self
            .entries
            .write()
            .expect("no handler runs under this lock");
        entries.remove(&base);
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let entries = self
            .entries
            .read()
            .expect("no handler runs under this lock");
        let (&base, entry) = entries.range(..=address).next_back()?;
        let offset = address - base;
        (offset + len as u64 <= entry.len).then(|| (offset, Arc::clone(&entry.device)))
    }

    /// Reads; all bits are set where no device answers. Returns whether one did.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.read(offset, data);
            true
        } else {
            data.fill(0xff);
            false
        }
    }

    /// Writes; lost where no device answers. Returns whether one did.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        self.find(address, data.len())
            .is_some_and(|(offset, device)| {
                device.write(offset, data);
                true
            })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Register(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Register {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn insert_overlapping_range_is_refused() {
        let bus = Bus::default();
        bus.insert(0x100, 0x10, Arc::new(Register::default()))
            .unwrap();
        for (base, len) in [(0x100, 1), (0xff, 2), (0x10f, 1), (0xf0, 0x100)] {
            let refused = bus.insert(base, len, Arc::new(Register::default()));
            assert_eq!(refused, Err(BusError::Overlap { base, len }));
        }
        bus.insert(0x110, 1, Arc::new(Register::default())).unwrap();
        bus.insert(0xff, 1, Arc::new(Register::default())).unwrap();
    }

    #[test]
    fn access_beyond_the_range_reads_all_ones() {
        let bus = Bus::default();
        let device = Arc::new(Register::default());
        bus.insert(0x100, 4, device.clone()).unwrap();
        let mut data = [0; 4];
        assert!(bus.read(0x102, &mut data[..2]));
        assert_eq!(data, [2, 2, 0, 0]);
        assert!(!bus.read(0x102, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(bus.write(0x103, &[7]));
        assert!(!bus.write(0x104, &[7]));
        assert_eq!(*device.0.lock().unwrap(), [(3, vec![7])]);
    }

    #[test]
    fn range_at_the_end_of_the_address_space_is_refused_when_it_wraps() {
        let bus = Bus::default();
        let device = Arc::new(Register::default());
        let refused = bus.insert(u64::MAX, 2, device.clone());
        assert!(matches!(refused, Err(BusError::Range { .. })));
        assert!(matches!(
            bus.insert(1, 0, device),
            Err(BusError::Range { .. })
        ));
    }
}
