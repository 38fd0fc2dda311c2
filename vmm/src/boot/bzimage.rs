//! The facts of a bzImage that loading it needs (Linux `Documentation/arch/x86/boot.rst`).

use linux_loader::bootparam::{XLF_KERNEL_64, boot_params, setup_header};
use vm_memory::ByteValued;

use super::file::ImageFile;
use super::{OpenBootError, sniff};
use crate::arch::x86_64::layout;

/// Where the setup header lies in the file, and in the zero page.
const HEADER_OFFSET: usize = 0x1f1;
/// The jump instruction's second byte: the header ends that far behind it.
const JUMP_LENGTH: usize = 0x201;
/// `HdrS`.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Protocol 2.12: the first with a 64-bit entry point.
const PROTOCOL_2_12: u16 = 0x020c;
/// Size of a sector in bytes: the unit of `setup_sects`.
const SECTOR: u64 = 512;
/// `syssize` counts paragraphs of 16 bytes.
const PARAGRAPH: u64 = 16;
/// The protected-mode part of a kernel that cannot be moved goes here.
const FIXED_LOAD_ADDRESS: u64 = 0x10_0000;
/// The 64-bit entry point's distance from the load address.
const ENTRY_64_OFFSET: u64 = 0x200;

/// A bzImage with a 64-bit entry point.
#[derive(Clone, Copy, Debug)]
pub struct BzImage {
    /// The setup header as the file has it; everything behind its end is zero.
    pub header: setup_header,
    /// Where the protected-mode part starts in the file, in bytes.
    pub payload_offset: u64,
    /// Its length in bytes, to the end of the file: a signature may follow it.
    pub payload_len: u64,
    /// Guest physical address that it is loaded to.
    pub load_address: u64,
    /// First byte behind what the kernel uses before it knows the memory map.
    pub end: u64,
}

impl BzImage {
    /// Whether `head`, the first bytes of a file, has a Linux boot header.
    pub fn is_one(head: &[u8]) -> bool {
        head.get(0x202..0x206) == Some(&HEADER_MAGIC.to_le_bytes())
    }

    /// Reads the header of `file`.
    ///
    /// # Errors
    /// [`OpenBootError`]: truncated, without a 64-bit entry point, or with addresses that
    /// cannot be.
    pub fn parse(file: &ImageFile) -> Result<Self, OpenBootError> {
        let head = file.read_at(0, size_of::<boot_params>())?;
        if !Self::is_one(&head) {
            return Err(OpenBootError::NotAKernel {
                path: file.path().to_owned(),
                looks_like: sniff::describe(&head),
            });
        }
        let header = read_header(&head);
        let bad = |reason: &'static str| OpenBootError::Malformed {
            path: file.path().to_owned(),
            reason,
        };
        if header.version < PROTOCOL_2_12 || header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(OpenBootError::No64BitEntry {
                path: file.path().to_owned(),
            });
        }
        let payload_offset = (setup_sectors(&header) + 1) * SECTOR;
        let payload_needed = u64::from(header.syssize) * PARAGRAPH;
        if file.len() < payload_offset + payload_needed || file.len() <= payload_offset {
            return Err(OpenBootError::Truncated {
                path: file.path().to_owned(),
                len: file.len(),
                needed: payload_offset + payload_needed.max(1),
            });
        }
        let payload_len = file.len() - payload_offset;
        let load_address = load_address(&header).ok_or_else(|| bad("load address"))?;
        let end = load_address
            .checked_add(u64::from(header.init_size).max(payload_len))
            .filter(|&end| end <= layout::RAM_BELOW_4G_END)
            .ok_or_else(|| bad("size of the unpacked kernel"))?;
        Ok(Self {
            header,
            payload_offset,
            payload_len,
            load_address,
            end,
        })
    }

    /// The 64-bit entry point.
    pub fn entry(&self) -> u64 {
        self.load_address + ENTRY_64_OFFSET
    }

    /// The longest command line that the kernel takes, in bytes without the terminating zero.
    pub fn cmdline_max(&self) -> u64 {
        u64::from(self.header.cmdline_size)
    }

    /// The highest address that the initial RAM disk may occupy.
    pub fn initrd_max(&self) -> u64 {
        u64::from(self.header.initrd_addr_max)
    }
}

/// Reads the setup header, as far as the file's kernel defines it.
fn read_header(head: &[u8]) -> setup_header {
    let end = 0x202 + usize::from(head[JUMP_LENGTH]);
    let end = end
        .min(head.len())
        .min(HEADER_OFFSET + size_of::<setup_header>());
    let mut params = boot_params::default();
    params.as_mut_slice()[HEADER_OFFSET..end].copy_from_slice(&head[HEADER_OFFSET..end]);
    params.hdr
}

/// Sectors of the real-mode part behind the first; 0 means 4 for old kernels' sake.
fn setup_sectors(header: &setup_header) -> u64 {
    match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    }
}

/// A relocatable kernel goes where it prefers to run, so that it need not move itself.
fn load_address(header: &setup_header) -> Option<u64> {
    let address = if header.relocatable_kernel == 0 {
        FIXED_LOAD_ADDRESS
    } else {
        let alignment = u64::from(header.kernel_alignment).max(1);
        header.pref_address.checked_next_multiple_of(alignment)?
    };
    (layout::HIGH_RAM_START..layout::RAM_BELOW_4G_END)
        .contains(&address)
        .then_some(address)
}
