//! What a kernel finds that is entered by the 64-bit Linux boot protocol: the zero page (Linux
//! `Documentation/arch/x86/boot.rst`, `zero-page.rst`), a GDT and an identity map of 4 GiB.

use linux_loader::bootparam::{
    E820_MAX_ENTRIES_ZEROPAGE, boot_e820_entry, boot_params, setup_header,
};
use vm_memory::{Bytes, GuestAddress};

use super::{BootInfo, LoadError};
use crate::arch::x86_64::layout;
use crate::arch::x86_64::memory_map::memory_map;
use crate::memory::GuestMemory;

/// The longest command line that fits where we put it, without the terminating zero.
pub(super) const CMDLINE_MAX: u64 = layout::BOOT_CMDLINE_LEN - 1;
/// An ELF image does not say what it takes: `COMMAND_LINE_SIZE` of x86, less the zero.
pub(super) const CMDLINE_MAX_ELF: u64 = 2047;

/// `type_of_loader` of a loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `0xAA55`.
const BOOT_FLAG: u16 = 0xaa55;
/// `HdrS`.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// `loadflags`: the protected-mode code is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// Boot protocol that we tell an ELF kernel, which has no header of its own.
const PROTOCOL_2_15: u16 = 0x020f;

/// Present, writable.
const TABLE_ENTRY: u64 = 0x3;
/// Present, writable, a page of 2 MiB.
const LARGE_PAGE: u64 = 0x83;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
const TABLE_SIZE: u64 = 4096;
/// One page directory maps 1 GiB.
const PAGE_DIRECTORIES: u64 = 4;

/// Null, unused, flat 64-bit code at 0x10, flat data at 0x18.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// Its limit.
pub(super) const GDT_LIMIT: u16 = (size_of_val(&GDT) - 1) as u16;

/// Writes zero page, GDT and page tables. `header` is the bzImage's; an ELF kernel has none.
pub(super) fn write(
    memory: &GuestMemory,
    header: Option<&setup_header>,
    info: &BootInfo,
) -> Result<(), LoadError> {
    let params = zero_page(header, info);
    memory.write_obj(params, GuestAddress(layout::BOOT_PARAMS))?;
    for (index, descriptor) in (0..).zip(GDT) {
        memory.write_obj(descriptor, GuestAddress(layout::BOOT_GDT + 8 * index))?;
    }
    memory.write_slice(&page_tables(), GuestAddress(layout::BOOT_PAGE_TABLES))?;
    Ok(())
}

fn zero_page(header: Option<&setup_header>, info: &BootInfo) -> boot_params {
    let mut params = boot_params {
        hdr: header.copied().unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: PROTOCOL_2_15,
            loadflags: LOADED_HIGH,
            cmdline_size: CMDLINE_MAX_ELF as u32,
            ..setup_header::default()
        }),
        acpi_rsdp_addr: info.rsdp,
        ..boot_params::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::BOOT_CMDLINE as u32;
    if let Some(initrd) = &info.initrd {
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = (initrd.end - initrd.start) as u32;
    }
    let map = memory_map(info.ram_bytes);
    debug_assert!(map.len() <= E820_MAX_ENTRIES_ZEROPAGE);
    let mut table = params.e820_table;
    for (entry, range) in table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.len,
            r#type: range.kind as u32,
        };
    }
    params.e820_table = table;
    params.e820_entries = map.len() as u8;
    params
}

/// Identity map of the first 4 GiB (Intel SDM volume 3, section 4.5): PML4, PDPT, four page
/// directories.
fn page_tables() -> Vec<u8> {
    let mut entries = vec![0_u64; ((2 + PAGE_DIRECTORIES) * TABLE_SIZE / 8) as usize];
    let per_table = (TABLE_SIZE / 8) as usize;
    let table = |index: u64| layout::BOOT_PAGE_TABLES + index * TABLE_SIZE;
    entries[0] = table(1) | TABLE_ENTRY;
    for directory in 0..PAGE_DIRECTORIES {
        entries[per_table + directory as usize] = table(2 + directory) | TABLE_ENTRY;
    }
    for (page, entry) in (0..).zip(&mut entries[2 * per_table..]) {
        *entry = (page * LARGE_PAGE_SIZE) | LARGE_PAGE;
    }
    entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}
