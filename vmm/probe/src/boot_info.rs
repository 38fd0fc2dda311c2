//! What the boot loader says: memory map and command line, by PVH or by the Linux zero page.

use crate::boot::PROTOCOL_PVH;

/// Most ranges of RAM that are taken into account.
pub const RAM_RANGES_MAX: usize = 16;
const COMMAND_LINE_MAX: usize = 4096;
const E820_RAM: u32 = 1;
const PVH_MAGIC: u32 = 0x336e_c578;

/// One range of RAM.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ram {
    pub start: u64,
    pub end: u64,
}

/// A copy of what the boot loader says: its own may be overwritten afterwards.
pub struct BootInfo {
    pub protocol: &'static str,
    pub ram: [Ram; RAM_RANGES_MAX],
    line: [u8; COMMAND_LINE_MAX],
    line_len: usize,
}

impl BootInfo {
    /// Reads the structure at `address` that `protocol` says it is.
    pub fn read(protocol: u32, address: u64) -> Result<Self, &'static str> {
        let mut info = Self {
            protocol: "linux64",
            ram: [Ram::default(); RAM_RANGES_MAX],
            line: [0; COMMAND_LINE_MAX],
            line_len: 0,
        };
        if protocol == PROTOCOL_PVH {
            info.protocol = "pvh";
            info.read_pvh(address)?;
        } else {
            info.read_zero_page(address);
        }
        Ok(info)
    }

    /// The command line; what is not UTF-8 ends it.
    pub fn command_line(&self) -> &str {
        let line = &self.line[..self.line_len];
        match core::str::from_utf8(line) {
            Ok(text) => text,
            Err(error) => core::str::from_utf8(&line[..error.valid_up_to()]).unwrap_or(""),
        }
    }

    fn read_pvh(&mut self, address: u64) -> Result<(), &'static str> {
        if read::<u32>(address) != PVH_MAGIC {
            return Err("no hvm_start_info");
        }
        self.copy_line(read::<u64>(address + 24));
        if read::<u32>(address + 4) == 0 {
            return Err("hvm_start_info without a memory map");
        }
        let map = read::<u64>(address + 40);
        for entry in 0..u64::from(read::<u32>(address + 48)) {
            self.add_range(map + 24 * entry);
        }
        Ok(())
    }

    fn read_zero_page(&mut self, address: u64) {
        let line = u64::from(read::<u32>(address + 0x228));
        self.copy_line(line | u64::from(read::<u32>(address + 0xc8)) << 32);
        for entry in 0..u64::from(read::<u8>(address + 0x1e8)) {
            self.add_range(address + 0x2d0 + 20 * entry);
        }
    }

    /// Both maps have entries that begin with start, length, type.
    fn add_range(&mut self, entry: u64) {
        let (start, len) = (read::<u64>(entry), read::<u64>(entry + 8));
        if read::<u32>(entry + 16) != E820_RAM || len == 0 {
            return;
        }
        if let Some(free) = self.ram.iter_mut().find(|ram| ram.end == 0) {
            *free = Ram {
                start,
                end: start.saturating_add(len),
            };
        }
    }

    fn copy_line(&mut self, address: u64) {
        if address == 0 {
            return;
        }
        while self.line_len < COMMAND_LINE_MAX {
            let byte = read::<u8>(address + self.line_len as u64);
            if byte == 0 {
                break;
            }
            self.line[self.line_len] = byte;
            self.line_len += 1;
        }
    }
}

fn read<T: Copy>(address: u64) -> T {
    // SAFETY: the baked tables map the first 4 GiB, where both protocols put what they pass; a
    // foreign address is an exception, which is reported. T is an integer: every value is valid.
    unsafe { (address as *const T).read_unaligned() }
}
