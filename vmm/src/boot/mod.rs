//! What runs first: a kernel that is loaded directly, or the firmware.
//!
//! ```text
//! BootConfig ─ open() ─► BootResources ─ load() ─► EntryPoint ─ apply() ─► the first vCPU
//!             (files, checked)        (guest RAM)            (registers)
//! ```
//!
//! [`BootResources`] keeps its files, so that each reset loads again. Only [`open`] knows paths.
//! Loading writes all that the kernel finds at its start (page tables, zero page or start info,
//! command line, initial RAM disk) except the ACPI tables, which are the machine's.
//!
//! `linux-loader` gives the structures of both protocols. Its loaders are not used: they leave
//! the zero-initialised data of a kernel as it was before the reset, and say nothing of what is
//! wrong with a file.

mod bzimage;
mod elf;
mod entry;
mod error;
mod file;
mod firmware;
mod fw_cfg_items;
mod linux;
mod open;
mod pvh;
mod sniff;

pub use bzimage::BzImage;
pub use elf::{ElfImage, Segment};
pub use entry::{EntryPoint, apply};
pub use error::{LoadError, OpenBootError};
pub use file::ImageFile;
pub use firmware::{DEFAULT_FIRMWARE, Firmware};
pub use fw_cfg_items::{FirmwareInfo, fw_cfg_items};
pub use open::open;

use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::layout;
use crate::memory::GuestMemory;

/// A kernel and the way it is entered.
#[derive(Debug)]
pub enum Kernel {
    /// A bzImage, by the 64-bit Linux boot protocol.
    BzImage(BzImage),
    /// An ELF image, by the 64-bit Linux boot protocol at this address.
    ElfLinux(ElfImage, u64),
    /// An ELF image, by PVH at this address.
    ElfPvh(ElfImage, u32),
}

/// A kernel with all that belongs to it.
#[derive(Debug)]
pub struct DirectBoot {
    /// The kernel's file.
    pub file: ImageFile,
    /// What it is.
    pub kernel: Kernel,
    /// The initial RAM disk.
    pub initrd: Option<ImageFile>,
    /// The command line, without the terminating zero.
    pub cmdline: String,
}

/// What the machine boots, checked and open.
#[derive(Debug)]
pub enum BootResources {
    /// A kernel that is loaded directly.
    Direct(Box<DirectBoot>),
    /// The firmware looks for a boot loader.
    Firmware(Firmware),
}

impl BootResources {
    /// Size in bytes of the RAM region that must end at [`layout::FIRMWARE_END`]; a multiple of
    /// 4096. `None` on direct boot.
    pub fn firmware_len(&self) -> Option<u64> {
        match self {
            Self::Direct(_) => None,
            Self::Firmware(firmware) => Some(firmware.len()),
        }
    }

    /// Writes everything to guest memory and says where the first vCPU starts. `ram_bytes` is
    /// the size of guest RAM without the firmware's region; `rsdp` is where the ACPI tables'
    /// root pointer is, if there is one.
    ///
    /// # Errors
    /// [`LoadError`]: RAM too small, or a file cannot be read.
    pub fn load(
        &self,
        memory: &GuestMemory,
        ram_bytes: u64,
        rsdp: Option<u64>,
    ) -> Result<EntryPoint, LoadError> {
        match self {
            Self::Direct(boot) => boot.load(memory, ram_bytes, rsdp),
            Self::Firmware(firmware) => firmware.load(memory),
        }
    }
}

impl DirectBoot {
    fn load(
        &self,
        memory: &GuestMemory,
        ram_bytes: u64,
        rsdp: Option<u64>,
    ) -> Result<EntryPoint, LoadError> {
        let initrd = self.place_initrd(ram_bytes)?;
        self.load_kernel(memory)?;
        if let (Some(file), Some(range)) = (&self.initrd, &initrd) {
            copy(file, 0, file.len(), memory, range.start)?;
        }
        let mut cmdline = self.cmdline.clone().into_bytes();
        cmdline.push(0);
        memory.write_slice(&cmdline, GuestAddress(layout::BOOT_CMDLINE))?;
        let info = BootInfo {
            ram_bytes,
            rsdp: rsdp.unwrap_or(0),
            initrd,
        };
        match &self.kernel {
            Kernel::BzImage(image) => linux::write(memory, Some(&image.header), &info)
                .map(|()| EntryPoint::Linux64 { rip: image.entry() }),
            Kernel::ElfLinux(_, rip) => {
                linux::write(memory, None, &info).map(|()| EntryPoint::Linux64 { rip: *rip })
            }
            Kernel::ElfPvh(_, rip) => {
                pvh::write(memory, &info).map(|()| EntryPoint::Pvh { rip: *rip })
            }
        }
    }

    fn load_kernel(&self, memory: &GuestMemory) -> Result<(), LoadError> {
        match &self.kernel {
            Kernel::BzImage(image) => copy(
                &self.file,
                image.payload_offset,
                image.payload_len,
                memory,
                image.load_address,
            ),
            Kernel::ElfLinux(image, _) | Kernel::ElfPvh(image, _) => {
                for segment in &image.segments {
                    let Segment {
                        offset,
                        file_len,
                        address,
                        len,
                    } = *segment;
                    copy(&self.file, offset, file_len, memory, address)?;
                    clear(memory, address + file_len, len - file_len)?;
                }
                Ok(())
            }
        }
    }

    /// First address behind the kernel.
    fn kernel_end(&self) -> u64 {
        match &self.kernel {
            Kernel::BzImage(image) => image.end,
            Kernel::ElfLinux(image, _) | Kernel::ElfPvh(image, _) => image.end(),
        }
    }

    /// Puts the initial RAM disk as high below 4 GiB as the kernel allows.
    fn place_initrd(&self, ram_bytes: u64) -> Result<Option<std::ops::Range<u64>>, LoadError> {
        let kernel_end = self.kernel_end();
        let ram_end = ram_bytes.min(layout::RAM_BELOW_4G_END);
        let Some(initrd) = &self.initrd else {
            if kernel_end > ram_end {
                return Err(self.ram_too_small(ram_bytes, kernel_end));
            }
            return Ok(None);
        };
        let max = match &self.kernel {
            Kernel::BzImage(image) => image.initrd_max(),
            Kernel::ElfLinux(..) | Kernel::ElfPvh(..) => u64::from(u32::MAX),
        };
        let lowest = kernel_end.next_multiple_of(PAGE);
        let end_max = ram_end.min(max.saturating_add(1));
        let start = end_max
            .checked_sub(initrd.len())
            .map(|start| start & !(PAGE - 1));
        match start {
            Some(start) if start >= lowest => Ok(Some(start..start + initrd.len())),
            _ if end_max < ram_end => Err(LoadError::InitrdTooLarge {
                path: initrd.path().to_owned(),
                len: initrd.len(),
                max: end_max.saturating_sub(lowest),
            }),
            _ => Err(self.ram_too_small(
                ram_bytes,
                lowest.saturating_add(initrd.len()).saturating_add(PAGE),
            )),
        }
    }

    fn ram_too_small(&self, ram_bytes: u64, needed: u64) -> LoadError {
        LoadError::RamTooSmall {
            path: self.file.path().to_owned(),
            ram_mib: ram_bytes >> 20,
            needed_mib: needed.div_ceil(1 << 20),
        }
    }
}

/// Size of a page in bytes.
const PAGE: u64 = 4096;

/// What both boot protocols tell the kernel.
struct BootInfo {
    ram_bytes: u64,
    /// 0: none.
    rsdp: u64,
    initrd: Option<std::ops::Range<u64>>,
}

fn copy(
    file: &ImageFile,
    offset: u64,
    len: u64,
    memory: &GuestMemory,
    address: u64,
) -> Result<(), LoadError> {
    file.copy_to(offset, len, memory, address)
        .map_err(|source| LoadError::Copy {
            path: file.path().to_owned(),
            address,
            source,
        })
}

/// Zeroes `len` bytes: RAM keeps what the guest wrote before a reset.
fn clear(memory: &GuestMemory, address: u64, len: u64) -> Result<(), LoadError> {
    const ZEROES: [u8; PAGE as usize] = [0; PAGE as usize];
    let mut done = 0;
    while done < len {
        let count = (len - done).min(PAGE);
        memory.write_slice(&ZEROES[..count as usize], GuestAddress(address + done))?;
        done += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
