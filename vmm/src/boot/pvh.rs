//! What a kernel finds that is entered by PVH: `hvm_start_info` of version 1 with its memory map
//! and modules (Xen `xen/include/public/arch-x86/hvm/start_info.h`).

use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::{BootInfo, LoadError};
use crate::arch::x86_64::layout;
use crate::arch::x86_64::memory_map::memory_map;
use crate::memory::GuestMemory;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;
/// The module list's and the memory map's places behind the start info.
const MODULES: u64 = layout::PVH_START_INFO + 0x40;
const MEMORY_MAP: u64 = layout::PVH_START_INFO + 0x80;

/// Writes start info, module list and memory map.
pub(super) fn write(memory: &GuestMemory, info: &BootInfo) -> Result<(), LoadError> {
    let map = memory_map(info.ram_bytes);
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        flags: 0,
        nr_modules: u32::from(info.initrd.is_some()),
        modlist_paddr: info.initrd.as_ref().map_or(0, |_| MODULES),
        cmdline_paddr: layout::BOOT_CMDLINE,
        rsdp_paddr: info.rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        reserved: 0,
    };
    memory.write_obj(start_info, GuestAddress(layout::PVH_START_INFO))?;
    if let Some(initrd) = &info.initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.end - initrd.start,
            ..hvm_modlist_entry::default()
        };
        memory.write_obj(module, GuestAddress(MODULES))?;
    }
    let mut address = MEMORY_MAP;
    for range in &map {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.len,
            type_: range.kind as u32,
            reserved: 0,
        };
        memory.write_obj(entry, GuestAddress(address))?;
        address += size_of::<hvm_memmap_table_entry>() as u64;
    }
    Ok(())
}
