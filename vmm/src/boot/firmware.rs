//! Firmware at the top of the first 4 GiB, with its last part mirrored below 1 MiB, where a PC
//! runs it in real mode.

use super::file::ImageFile;
use super::{EntryPoint, LoadError, OpenBootError, copy, sniff};
use crate::arch::x86_64::layout;
use crate::memory::GuestMemory;

/// Where Debian's package `seabios` puts the image that this machine is made for.
pub const DEFAULT_FIRMWARE: &str = "/usr/share/seabios/bios-256k.bin";

/// The region must be a whole number of pages.
const PAGE: u64 = 4096;
/// The reset vector: the last 16 bytes below 4 GiB.
const RESET_VECTOR_LEN: u64 = 16;
/// What appears below 1 MiB: 0xE0000 to 0xFFFFF.
const MIRROR_MAX: u64 = 128 << 10;

/// A firmware image.
#[derive(Debug)]
pub struct Firmware {
    file: ImageFile,
}

impl Firmware {
    /// Checks that `file` can be firmware.
    ///
    /// # Errors
    /// [`OpenBootError::FirmwareSize`], [`OpenBootError::NotFirmware`] or
    /// [`OpenBootError::Read`].
    pub fn new(file: ImageFile) -> Result<Self, OpenBootError> {
        let max = layout::FIRMWARE_END - layout::FIRMWARE_START_MIN;
        if !file.len().is_multiple_of(PAGE) || file.len() > max {
            return Err(OpenBootError::FirmwareSize {
                path: file.path().to_owned(),
                len: file.len(),
                max,
            });
        }
        let vector = file.read_at(file.len() - RESET_VECTOR_LEN, RESET_VECTOR_LEN as usize)?;
        if vector.iter().all(|&byte| byte == 0) || vector.iter().all(|&byte| byte == 0xff) {
            return Err(OpenBootError::NotFirmware {
                looks_like: sniff::describe(&file.read_at(0, 512)?),
                path: file.path().to_owned(),
            });
        }
        Ok(Self { file })
    }

    /// Length in bytes: a multiple of 4096.
    pub fn len(&self) -> u64 {
        self.file.len()
    }

    /// Whether it has no bytes. Never so.
    pub fn is_empty(&self) -> bool {
        self.file.is_empty()
    }

    /// Copies the image to its region and its last part below 1 MiB. On each reset anew: the
    /// copy below 1 MiB is RAM that the firmware unlocks and writes, and the one above keeps
    /// what it learned.
    pub(super) fn load(&self, memory: &GuestMemory) -> Result<EntryPoint, LoadError> {
        let len = self.len();
        copy(&self.file, 0, len, memory, layout::FIRMWARE_END - len)?;
        let mirror = len.min(MIRROR_MAX);
        let address = layout::HIGH_RAM_START - mirror;
        copy(&self.file, len - mirror, mirror, memory, address)?;
        Ok(EntryPoint::Firmware)
    }
}
