//! fw_cfg: how firmware learns what the machine is and fetches what it must put into memory
//! (QEMU `docs/specs/fw_cfg.rst`): selector and data port, DMA, and the file directory.
//!
//! Items are fixed when the machine is built. The guest can read them and nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::bus::BusDevice;
use crate::memory::GuestMemory;
use crate::state::{Section, StateError};

/// Ports that the device takes, from the selector on.
pub const PORTS: u64 = 12;

/// Items that are no files.
pub mod key {
    /// The machine's UUID, 16 bytes.
    pub const UUID: u16 = 0x02;
    /// Guest RAM in bytes, 64 bits.
    pub const RAM_SIZE: u16 = 0x03;
    /// Number of vCPUs, 16 bits.
    pub const NB_CPUS: u16 = 0x05;
    /// Whether there is a boot menu, 16 bits.
    pub const BOOT_MENU: u16 = 0x0e;
    /// APIC ids are below this, 16 bits.
    pub const MAX_CPUS: u16 = 0x0f;
    /// Whether the timer is at pin 2 of the I/O APIC, 32 bits.
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

/// `QEMU`, by which the interface is found.
const KEY_SIGNATURE: u16 = 0x00;
/// What the interface can do.
const KEY_ID: u16 = 0x01;
const KEY_FILE_DIRECTORY: u16 = 0x19;
/// Files get their keys from here on.
const KEY_FILE_FIRST: u16 = 0x20;
const FILES_MAX: usize = 0x100;
const FILE_NAME_LEN: usize = 56;

/// Traditional interface and DMA.
const ID: u32 = 0b11;

const SELECTOR: u64 = 0;
const DATA: u64 = 1;
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;
/// What the DMA register reads as.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

const DMA_ERROR: u32 = 1 << 0;
const DMA_READ: u32 = 1 << 1;
const DMA_SKIP: u32 = 1 << 2;
const DMA_SELECT: u32 = 1 << 3;
const DMA_WRITE: u32 = 1 << 4;
/// Longer reads than any item are refused: a vCPU must not be away for long.
const DMA_LENGTH_MAX: u32 = 16 << 20;

const KIND: &str = "fw_cfg";
const VERSION: u16 = 1;

/// Why items cannot be offered.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FwCfgError {
    /// The name does not fit or is taken.
    #[error("fw_cfg file name {name:?} is too long or there twice")]
    Name {
        /// The name.
        name: String,
    },
    /// More files than there are keys.
    #[error("more than {FILES_MAX} fw_cfg files")]
    TooMany,
}

/// Collects the items of a machine.
#[derive(Debug, Default)]
pub struct FwCfgBuilder {
    items: BTreeMap<u16, Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
}

impl FwCfgBuilder {
    /// Sets one of the items of [`key`].
    #[must_use]
    pub fn item(mut self, key: u16, content: &[u8]) -> Self {
        self.items.insert(key, content.to_vec());
        self
    }

    /// Adds a file.
    ///
    /// # Errors
    /// [`FwCfgError`] when the name cannot be, or there are too many.
    pub fn file(mut self, name: &str, content: Vec<u8>) -> Result<Self, FwCfgError> {
        if name.len() >= FILE_NAME_LEN || self.files.contains_key(name) {
            let name = name.to_owned();
            return Err(FwCfgError::Name { name });
        }
        if self.files.len() == FILES_MAX {
            return Err(FwCfgError::TooMany);
        }
        self.files.insert(name.to_owned(), content);
        Ok(self)
    }

    /// The device with these items; `memory` is where DMA goes.
    pub fn build(mut self, memory: GuestMemory) -> FwCfg {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (key, (name, content)) in (KEY_FILE_FIRST..).zip(self.files) {
            directory.extend((content.len() as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let end = directory.len() + FILE_NAME_LEN;
            directory.extend(name.as_bytes());
            directory.resize(end, 0);
            self.items.insert(key, content);
        }
        self.items.insert(KEY_FILE_DIRECTORY, directory);
        self.items.insert(KEY_SIGNATURE, b"QEMU".to_vec());
        self.items.insert(KEY_ID, ID.to_le_bytes().to_vec());
        FwCfg {
            items: Arc::new(self.items),
            memory,
            state: Mutex::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    selector: u16,
    offset: u32,
    dma_high: u32,
}

/// The device.
pub struct FwCfg {
    items: Arc<BTreeMap<u16, Vec<u8>>>,
    memory: GuestMemory,
    state: Mutex<State>,
}

/// The command that the guest puts into memory; all big-endian.
struct DmaAccess {
    control: u32,
    length: u32,
    address: u64,
}

impl FwCfg {
    /// Power-on state.
    pub fn reset(&self) {
        *self.lock() = State::default();
    }

    /// Selector and offset; the items follow from the configuration.
    ///
    /// # Errors
    /// [`StateError::Body`] if it cannot be encoded.
    pub fn save(&self) -> Result<Section, StateError> {
        Section::new(KIND, "", VERSION, &*self.lock())
    }

    /// Takes what [`Self::save`] gave.
    ///
    /// # Errors
    /// [`StateError`] if the section is not one of ours.
    pub fn restore(&self, section: &Section) -> Result<(), StateError> {
        if section.kind != KIND {
            return Err(section.invalid("not fw_cfg's"));
        }
        *self.lock() = section.parse(VERSION)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left of the selected item.
    fn rest(&self, state: &State) -> &[u8] {
        self.items
            .get(&state.selector)
            .and_then(|item| item.get(state.offset as usize..))
            .unwrap_or(&[])
    }

    /// Carries out the command at `address` and leaves its result there.
    fn dma(&self, address: u64) {
        let result = match self.read_access(address) {
            Ok(access) => self.transfer(&access),
            Err(error) => Err(error),
        };
        let control = match result {
            Ok(()) => 0,
            Err(error) => {
                tracing::debug!(%error, "fw_cfg DMA failed");
                DMA_ERROR
            }
        };
        let address = GuestAddress(address);
        // Without memory at its address there is nowhere to say that there is none.
        let _ = self.memory.write_slice(&control.to_be_bytes(), address);
    }

    fn read_access(&self, address: u64) -> Result<DmaAccess, DmaError> {
        let address = GuestAddress(address);
        let control: [u8; 4] = self.memory.read_obj(address)?;
        let after = |offset| {
            let address = address.0.checked_add(offset);
            address.map(GuestAddress).ok_or(DmaError::Address)
        };
        let length: [u8; 4] = self.memory.read_obj(after(4)?)?;
        let target: [u8; 8] = self.memory.read_obj(after(8)?)?;
        Ok(DmaAccess {
            control: u32::from_be_bytes(control),
            length: u32::from_be_bytes(length),
            address: u64::from_be_bytes(target),
        })
    }

    fn transfer(&self, access: &DmaAccess) -> Result<(), DmaError> {
        let mut state = self.lock();
        if access.control & DMA_SELECT != 0 {
            state.selector = (access.control >> 16) as u16;
            state.offset = 0;
        }
        if access.control & DMA_READ != 0 {
            self.copy(&state, access)?;
        } else if access.control & DMA_WRITE != 0 {
            return Err(DmaError::ReadOnly);
        } else if access.control & DMA_SKIP == 0 {
            return Ok(());
        }
        state.offset = state.offset.saturating_add(access.length);
        Ok(())
    }

    /// Copies from the item to guest memory; what lies behind its end reads as zeroes.
    fn copy(&self, state: &State, access: &DmaAccess) -> Result<(), DmaError> {
        const ZEROES: [u8; 4096] = [0; 4096];
        if access.length > DMA_LENGTH_MAX {
            return Err(DmaError::Length(access.length));
        }
        let length = access.length as usize;
        let rest = self.rest(state);
        let mut done = rest.len().min(length);
        let at = |done: usize| {
            let address = access.address.checked_add(done as u64);
            address.map(GuestAddress).ok_or(DmaError::Address)
        };
        self.memory.write_slice(&rest[..done], at(0)?)?;
        while done < length {
            let count = (length - done).min(ZEROES.len());
            self.memory.write_slice(&ZEROES[..count], at(done)?)?;
            done += count;
        }
        Ok(())
    }
}

/// Why a DMA command failed. The guest learns only that it did.
#[derive(Debug, Error)]
enum DmaError {
    #[error("address beyond the end of the address space")]
    Address,
    #[error("length {0} is more than any item has")]
    Length(u32),
    #[error("items cannot be written")]
    ReadOnly,
    #[error(transparent)]
    Memory(#[from] GuestMemoryError),
}

impl BusDevice for FwCfg {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            DATA => {
                data.fill(0);
                let mut state = self.lock();
                data[0] = self.rest(&state).first().copied().unwrap_or(0);
                state.offset = state.offset.saturating_add(1);
            }
            DMA_HIGH.. => {
                let signature = &DMA_SIGNATURE[(offset - DMA_HIGH) as usize..];
                for (byte, &value) in data.iter_mut().zip(signature) {
                    *byte = value;
                }
            }
            _ => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SELECTOR, &[low, high]) => {
                let mut state = self.lock();
                state.selector = u16::from_le_bytes([low, high]);
                state.offset = 0;
            }
            (DMA_HIGH, &[a, b, c, d]) => self.lock().dma_high = u32::from_be_bytes([a, b, c, d]),
            (DMA_LOW, &[a, b, c, d]) => {
                let high = std::mem::take(&mut self.lock().dma_high);
                self.dma(u64::from(high) << 32 | u64::from(u32::from_be_bytes([a, b, c, d])));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RAM: usize = 1 << 20;

    fn device() -> FwCfg {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        FwCfgBuilder::default()
            .item(key::NB_CPUS, &3_u16.to_le_bytes())
            .file("etc/b", b"second".to_vec())
            .unwrap()
            .file("etc/a", b"first".to_vec())
            .unwrap()
            .build(memory)
    }

    fn select(device: &FwCfg, key: u16) {
        device.write(SELECTOR, &key.to_le_bytes());
    }

    fn read(device: &FwCfg, len: usize) -> Vec<u8> {
        let byte = |_| {
            let mut data = [0];
            device.read(DATA, &mut data);
            data[0]
        };
        (0..len).map(byte).collect()
    }

    /// Runs a DMA command at 0x1000 and returns its control word afterwards.
    fn dma(device: &FwCfg, control: u32, length: u32, address: u64) -> u32 {
        let command = [
            &control.to_be_bytes()[..],
            &length.to_be_bytes(),
            &address.to_be_bytes(),
        ]
        .concat();
        let at = GuestAddress(0x1000);
        device.memory.write_slice(&command, at).unwrap();
        device.write(DMA_LOW, &0x1000_u32.to_be_bytes());
        u32::from_be_bytes(device.memory.read_obj(at).unwrap())
    }

    fn bytes(device: &FwCfg, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let address = GuestAddress(address);
        device.memory.read_slice(&mut data, address).unwrap();
        data
    }

    #[test]
    fn signature_and_id_are_found() {
        let device = device();
        select(&device, KEY_SIGNATURE);
        assert_eq!(read(&device, 6), b"QEMU\0\0");
        select(&device, KEY_ID);
        assert_eq!(read(&device, 4), [3, 0, 0, 0]);
        let mut data = [0; 4];
        device.read(DMA_HIGH, &mut data);
        assert_eq!(&data, b"QEMU");
        device.read(DMA_LOW, &mut data);
        assert_eq!(&data, b" CFG");
    }

    #[test]
    fn directory_lists_files_sorted_by_name() {
        let device = device();
        select(&device, KEY_FILE_DIRECTORY);
        let directory = read(&device, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        let entry = &directory[4..68];
        assert_eq!(entry[..8], [0, 0, 0, 5, 0, 0x20, 0, 0]);
        assert_eq!(&entry[8..14], b"etc/a\0");
        select(&device, 0x21);
        assert_eq!(read(&device, 6), b"second");
    }

    #[test]
    fn dma_selects_skips_and_reads() {
        let device = device();
        let select_b = 0x21 << 16 | DMA_SELECT;
        assert_eq!(dma(&device, select_b | DMA_SKIP, 2, 0), 0);
        assert_eq!(dma(&device, DMA_READ, 6, 0x2000), 0);
        assert_eq!(bytes(&device, 0x2000, 6), b"cond\0\0");
        assert_eq!(dma(&device, select_b | DMA_READ, 3, 0x3000), 0);
        assert_eq!(bytes(&device, 0x3000, 3), b"sec");
        assert_eq!(read(&device, 3), b"ond");
    }

    #[test]
    fn dma_outside_ram_or_to_an_item_reports_an_error() {
        let device = device();
        let select_b = 0x21 << 16 | DMA_SELECT;
        let read = select_b | DMA_READ;
        assert_eq!(dma(&device, read, 6, RAM as u64 - 3), DMA_ERROR);
        assert_eq!(dma(&device, read, 6, u64::MAX - 3), DMA_ERROR);
        assert_eq!(dma(&device, read, u32::MAX, 0), DMA_ERROR);
        assert_eq!(dma(&device, select_b | DMA_WRITE, 6, 0), DMA_ERROR);
        // No memory for the command itself: nothing happens.
        device.write(DMA_LOW, &0xffff_fff8_u32.to_be_bytes());
    }

    #[test]
    fn file_with_a_bad_name_is_refused() {
        let builder = || FwCfgBuilder::default().file("etc/a", vec![]).unwrap();
        assert!(builder().file("etc/a", vec![]).is_err());
        assert!(builder().file(&"x".repeat(56), vec![]).is_err());
        builder().file(&"x".repeat(55), vec![]).unwrap();
    }

    #[test]
    fn reading_goes_on_after_restore() {
        let source = device();
        select(&source, 0x21);
        read(&source, 2);
        let section = source.save().unwrap();
        let target = device();
        target.restore(&section).unwrap();
        assert_eq!(target.save().unwrap(), section);
        assert_eq!(read(&target, 4), b"cond");
    }

    proptest! {
        #[test]
        fn random_accesses_never_panic(
            accesses in prop::collection::vec((0_u64..PORTS, any::<u32>(), 0_usize..3), 0..60),
            commands in prop::collection::vec((any::<u32>(), 0_u32..5000, any::<u32>()), 0..10),
        ) {
            let device = device();
            for (offset, value, width) in accesses {
                let len = (1 << width).min((PORTS - offset) as usize);
                device.write(offset, &value.to_le_bytes()[..len]);
                device.read(offset, &mut [0; 4][..len]);
            }
            for (control, length, address) in commands {
                dma(&device, control, length, u64::from(address) % (2 * RAM as u64));
            }
        }
    }
}
