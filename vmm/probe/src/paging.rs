//! Page tables beyond the baked ones: RAM above 4 GiB at its own address, devices in a window.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::boot::{self, Table};
use crate::boot_info::Ram;

const PRESENT_WRITE_USER: u64 = 0x7;
const LARGE: u64 = 0x80;
const LARGE_BYTES: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
const BAKED: u64 = 4 * GIB;
const POOL: usize = 80;
/// Devices anywhere in the address space are seen from here on: the second PML4 entry.
const WINDOW: u64 = 512 * GIB;

#[repr(C, align(4096))]
struct Pool([Table; POOL]);

// SAFETY: nothing depends on what it holds at the start, see `below`.
#[unsafe(link_section = ".noinit")]
static TABLES: Pool = Pool([const { [const { AtomicU64::new(0) }; 512] }; POOL]);
static TABLES_USED: AtomicUsize = AtomicUsize::new(0);
static WINDOW_USED: AtomicU64 = AtomicU64::new(0);

/// Maps RAM above 4 GiB, identity. What the tables have no room for is cut off.
pub fn map_ram(ram: &mut [Ram]) {
    for range in ram {
        let mut at = range.start.max(BAKED) & !(LARGE_BYTES - 1);
        while at < range.end {
            if at >= WINDOW || !map(at, at) {
                range.end = at.max(range.start);
                return;
            }
            at += LARGE_BYTES;
        }
    }
}

/// Maps a device's registers and says where they are now.
pub fn map_device(start: u64, len: u64) -> Option<u64> {
    if start.checked_add(len)? <= BAKED {
        return Some(start);
    }
    let first = start & !(LARGE_BYTES - 1);
    let pages = (start + len - first).div_ceil(LARGE_BYTES);
    let window = WINDOW + WINDOW_USED.fetch_add(pages * LARGE_BYTES, Relaxed);
    (0..pages)
        .all(|page| map(window + page * LARGE_BYTES, first + page * LARGE_BYTES))
        .then_some(window + start - first)
}

/// Maps one large page; false if no table is left.
fn map(address: u64, physical: u64) -> bool {
    let Some(pdpt) = below(&boot::pml4[(address / WINDOW) as usize]) else {
        return false;
    };
    let Some(pd) = below(&pdpt[(address / GIB % 512) as usize]) else {
        return false;
    };
    pd[(address / LARGE_BYTES % 512) as usize]
        .store(physical | PRESENT_WRITE_USER | LARGE, Relaxed);
    true
}

/// The table that an entry points to, taken from the pool if there is none yet.
fn below(entry: &AtomicU64) -> Option<&'static Table> {
    let value = entry.load(Relaxed);
    if value != 0 {
        // SAFETY: entries of the upper levels point only to tables, in the image or the pool,
        // and both are identity mapped and live for ever.
        return Some(unsafe { &*((value & !0xfff) as *const Table) });
    }
    let table = TABLES.0.get(TABLES_USED.fetch_add(1, Relaxed))?;
    for entry in table {
        entry.store(0, Relaxed);
    }
    entry.store(&raw const *table as u64 | PRESENT_WRITE_USER, Relaxed);
    Some(table)
}
