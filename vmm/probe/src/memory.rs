//! Who has which RAM: the image, buffers taken in order, and the working set.

use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use crate::boot;
use crate::boot_info::{BootInfo, RAM_RANGES_MAX, Ram};
use crate::paging;
use pindah_probe::content::{PAGE_BYTES, PAGE_WORDS};

/// Types whose zero bytes are a valid value.
///
/// # Safety
/// All zero bits are a valid value.
pub unsafe trait Zeroed {}
// SAFETY: an integer.
unsafe impl Zeroed for u8 {}
// SAFETY: an integer.
unsafe impl Zeroed for u32 {}
// SAFETY: an integer.
unsafe impl Zeroed for AtomicU16 {}
// SAFETY: an integer.
unsafe impl Zeroed for AtomicU32 {}
// SAFETY: an integer.
unsafe impl Zeroed for AtomicU64 {}

/// RAM that nobody has taken.
pub struct Memory {
    free: [Ram; RAM_RANGES_MAX],
    total: u64,
}

impl Memory {
    /// All RAM above the image.
    pub fn new(info: &BootInfo) -> Self {
        let mut free = info.ram;
        let total = free.iter().map(|ram| ram.end - ram.start).sum();
        paging::map_ram(&mut free);
        let image_end = boot::image_end();
        for ram in &mut free {
            ram.start = ram.start.max(image_end).next_multiple_of(PAGE_BYTES);
            ram.end = (ram.end & !(PAGE_BYTES - 1)).max(ram.start);
        }
        Self { free, total }
    }

    /// RAM of the machine, in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Takes zeroed bytes, aligned to pages.
    pub fn take(&mut self, bytes: u64) -> Option<*mut u8> {
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        let ram = self
            .free
            .iter_mut()
            .find(|ram| ram.end - ram.start >= bytes)?;
        let start = ram.start as *mut u8;
        ram.start += bytes;
        // SAFETY: the range is mapped RAM that nobody else has.
        unsafe { start.write_bytes(0, bytes as usize) };
        Some(start)
    }

    /// Takes a zeroed array.
    pub fn take_slice<T: Zeroed>(&mut self, len: usize) -> Option<&'static mut [T]> {
        let start = self.take((len * size_of::<T>()) as u64)? as u64 as *mut T;
        // SAFETY: the range is zeroed RAM, aligned to a page, that nobody else has, for ever; a
        // `Zeroed` type is valid then.
        Some(unsafe { core::slice::from_raw_parts_mut(start, len) })
    }

    /// Takes the pages of a working set, with the table of what each should hold.
    pub fn take_working_set(&mut self, pages: u64) -> Option<WorkingSet> {
        let table = self.take_slice::<u32>(pages as usize)?.as_mut_ptr();
        let mut runs = [Run::default(); RAM_RANGES_MAX];
        let mut first = 0;
        for (run, ram) in runs.iter_mut().zip(&mut self.free) {
            let count = ((ram.end - ram.start) / PAGE_BYTES).min(pages - first);
            *run = Run {
                first,
                end: first + count,
                gpa: ram.start,
            };
            ram.start += count * PAGE_BYTES;
            first += count;
        }
        (first == pages).then_some(WorkingSet { runs, table, pages })
    }
}

/// Pages of the working set that lie together.
#[derive(Clone, Copy, Default)]
struct Run {
    first: u64,
    end: u64,
    gpa: u64,
}

/// The pages that are dirtied and verified. Their expected generations are kept apart from them.
#[derive(Clone, Copy)]
pub struct WorkingSet {
    runs: [Run; RAM_RANGES_MAX],
    table: *mut u32,
    pages: u64,
}

// SAFETY: each page and its entry in the table belong to one vCPU, see `Worker`.
unsafe impl Send for WorkingSet {}
// SAFETY: as above.
unsafe impl Sync for WorkingSet {}

impl WorkingSet {
    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Address of a page.
    pub fn gpa(&self, page: u64) -> u64 {
        let run = self
            .runs
            .iter()
            .find(|run| (run.first..run.end).contains(&page));
        let run = run.expect("page is below pages()");
        run.gpa + (page - run.first) * PAGE_BYTES
    }

    /// The page's words.
    ///
    /// # Safety
    /// The caller is the one vCPU that the page belongs to and has no other reference to it.
    pub unsafe fn words(&self, page: u64) -> &'static mut [u64; PAGE_WORDS] {
        // SAFETY: `gpa` names mapped RAM taken for this page; the caller is alone with it.
        unsafe { &mut *(self.gpa(page) as *mut [u64; PAGE_WORDS]) }
    }

    /// The generation that the page should have.
    ///
    /// # Safety
    /// As `words`.
    pub unsafe fn generation(&self, page: u64) -> &'static mut u32 {
        assert!(page < self.pages);
        let entry = self.table.wrapping_add(page as usize);
        // SAFETY: the table has an entry for each page; the caller is alone with it.
        unsafe { &mut *entry }
    }

    /// Flips one bit of a page behind the table's back.
    pub fn corrupt(&self, page: u64) {
        let word = (self.gpa(page) + 2048) as *mut u64;
        // SAFETY: inside a page of the working set; volatile, since its vCPU may look at it now.
        let value = unsafe { word.read_volatile() };
        // SAFETY: as above.
        unsafe { word.write_volatile(value ^ 1) };
    }
}
