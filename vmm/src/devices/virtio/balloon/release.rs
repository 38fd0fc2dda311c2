//! Gives guest pages back to the host. They read as zero afterwards and are marked as written,
//! so that a migration that has sent their old content tells the destination.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::syscall::SyscallReturnCode;

use crate::arch::x86_64::layout::{FIRMWARE_END, RAM_BELOW_4G_END};
use crate::memory::{GuestMemory, GuestRegion, PAGE_SIZE, mark_dirty};

/// How one region's pages are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Backing {
    /// Nothing smaller is given back, nor anything that is not aligned to it.
    page_bytes: u64,
    advice: libc::c_int,
}

/// Gives guest pages back to the host.
pub struct Releaser {
    memory: Arc<GuestMemory>,
    /// One a region of `memory`, in its order; `None` where pages are not given back.
    backings: Vec<Option<Backing>>,
}

impl Releaser {
    /// Finds out what stands behind each region.
    ///
    /// # Errors
    /// `fstatfs` on a region's file fails.
    pub fn new(memory: Arc<GuestMemory>) -> io::Result<Self> {
        let backings = memory.iter().map(backing).collect::<io::Result<_>>()?;
        Ok(Self { memory, backings })
    }

    /// Gives back all pages that lie wholly in `len` bytes at `start`, and in RAM. Returns how
    /// many bytes that were.
    pub fn release(&self, start: u64, len: u64) -> u64 {
        let end = start.saturating_add(len);
        let regions = self.memory.iter().zip(&self.backings);
        let released = regions.filter_map(|(region, backing)| {
            let backing = (*backing)?;
            let (low, high) = (region.start_addr().0, region.start_addr().0 + region.len());
            let first = start.max(low).checked_sub(low)?;
            let behind = end.min(high).checked_sub(low)?;
            let first = first.checked_next_multiple_of(backing.page_bytes)?;
            let behind = behind / backing.page_bytes * backing.page_bytes;
            let bytes = behind.checked_sub(first).filter(|bytes| *bytes > 0)?;
            if let Err(error) = advise(region, first, bytes, backing.advice) {
                tracing::debug!(%error, bytes, "the host does not take guest pages back");
                return None;
            }
            mark_dirty(&self.memory, GuestAddress(low + first), bytes as usize);
            Some(bytes)
        });
        released.sum()
    }

    /// Gives back 4096-byte pages by number, with as few calls as possible. `pages` comes back
    /// sorted. Returns how many bytes went.
    pub fn release_pages(&self, pages: &mut [u32]) -> u64 {
        pages.sort_unstable();
        let runs = pages.chunk_by(|page, next| next - page <= 1);
        let released = runs.map(|run| {
            let (first, last) = (run[0], run[run.len() - 1]);
            let pages = u64::from(last - first) + 1;
            self.release(u64::from(first) * PAGE_SIZE, pages * PAGE_SIZE)
        });
        released.sum()
    }
}

fn backing(region: &GuestRegion) -> io::Result<Option<Backing>> {
    if (RAM_BELOW_4G_END..FIRMWARE_END).contains(&region.start_addr().0) {
        // Firmware is no RAM that a guest could give back.
        return Ok(None);
    }
    let Some(file) = region.file_offset() else {
        return Ok(Some(Backing {
            page_bytes: PAGE_SIZE,
            advice: libc::MADV_DONTNEED,
        }));
    };
    let mut status = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open and `status` is as large as the call writes.
    let result = unsafe { libc::fstatfs(file.file().as_raw_fd(), status.as_mut_ptr()) };
    SyscallReturnCode(result).into_empty_result()?;
    // SAFETY: the call succeeded, so it has filled the structure.
    let status = unsafe { status.assume_init() };
    let page_bytes = if status.f_type == libc::HUGETLBFS_MAGIC {
        status.f_bsize as u64
    } else {
        PAGE_SIZE
    };
    // Frees the pages in the file too, where dropping the mapping alone would keep them.
    let advice = libc::MADV_REMOVE;
    Ok(Some(Backing { page_bytes, advice }))
}

fn advise(region: &GuestRegion, offset: u64, bytes: u64, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the caller keeps `offset` within the region, which is one mapping.
    let start = unsafe { region.as_ptr().add(offset as usize) };
    // SAFETY: the range lies in the mapping that `region` owns. It is the guest's RAM, to which
    // nobody holds references: its content may change at any time, here to zeroes.
    let result = unsafe { libc::madvise(start.cast(), bytes as usize, advice) };
    SyscallReturnCode(result).into_empty_result()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;
    use vm_memory::{Bytes, FileOffset};

    use super::*;

    const REGION: u64 = 0x10_000;
    const HIGH: u64 = 0x10_0000;
    const FIRMWARE: u64 = 0xffff_0000;

    fn file(len: u64) -> File {
        // SAFETY: the name is a C string; nothing else is touched.
        let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len).unwrap();
        file
    }

    /// Sixteen pages at 0, sixteen at 1 MiB, sixteen of firmware; all bytes are 0xaa.
    fn memory(shared: bool) -> Arc<GuestMemory> {
        let starts = [0, HIGH, FIRMWARE].map(GuestAddress);
        let ranges = starts.map(|start| {
            let file = shared.then(|| FileOffset::new(file(REGION), 0));
            (start, REGION as usize, file)
        });
        let memory = GuestMemory::from_ranges_with_files(ranges).unwrap();
        for start in starts {
            memory
                .write_slice(&vec![0xaa; REGION as usize], start)
                .unwrap();
        }
        Arc::new(memory)
    }

    /// The pages that read as zero, by number; all others must be untouched.
    fn zero_pages(memory: &GuestMemory) -> Vec<u64> {
        let regions = [0, HIGH, FIRMWARE];
        let pages = regions
            .into_iter()
            .flat_map(|start| (start..start + REGION).step_by(PAGE_SIZE as usize));
        let zero = pages.filter(|page| {
            let mut content = [0; PAGE_SIZE as usize];
            memory
                .read_slice(&mut content, GuestAddress(*page))
                .unwrap();
            let is_zero = content == [0; PAGE_SIZE as usize];
            assert!(is_zero || content == [0xaa; PAGE_SIZE as usize]);
            is_zero
        });
        zero.map(|page| page / PAGE_SIZE).collect()
    }

    #[test]
    fn only_whole_pages_in_ram_are_released() {
        for shared in [false, true] {
            let memory = memory(shared);
            let releaser = Releaser::new(Arc::clone(&memory)).unwrap();
            assert_eq!(releaser.release(0x1001, 0x3000), 0x2000);
            assert_eq!(releaser.release(0xf000, HIGH - 0xf000 + 0x1fff), 0x2000);
            assert_eq!(releaser.release(0x20_0000, 0x1000), 0);
            assert_eq!(releaser.release(FIRMWARE, 0x1000), 0);
            assert_eq!(releaser.release(0x5000, 0xfff), 0);
            assert_eq!(releaser.release(0x5000, 0), 0);
            assert_eq!(releaser.release(u64::MAX - 0xfff, u64::MAX), 0);
            assert_eq!(zero_pages(&memory), [2, 3, 15, 256]);
        }
    }

    #[test]
    fn released_pages_leave_the_memfd() {
        let memory = memory(true);
        let blocks = || {
            let region = memory.iter().next().unwrap();
            let file = region.file_offset().unwrap().file();
            file.metadata().unwrap().blocks()
        };
        let before = blocks();
        let releaser = Releaser::new(Arc::clone(&memory)).unwrap();
        releaser.release(0, 0x8000);
        assert_eq!(blocks(), before / 2);
    }

    #[test]
    fn released_pages_are_marked_dirty() {
        use vm_memory::bitmap::Bitmap;
        let memory = memory(false);
        for region in memory.iter() {
            // Forgets what setting the test up has written.
            let mapping: &vm_memory::MmapRegion<vm_memory::bitmap::AtomicBitmap> = region;
            mapping.bitmap().reset();
        }
        let releaser = Releaser::new(Arc::clone(&memory)).unwrap();
        releaser.release(0x3000, 0x2000);
        let region = memory.iter().next().unwrap();
        let dirty = (0..16).filter(|page| region.bitmap().dirty_at(page * 0x1000));
        assert_eq!(dirty.collect::<Vec<_>>(), [3, 4]);
    }

    proptest! {
        #[test]
        fn any_page_numbers_release_exactly_those_in_ram(
            pages in prop::collection::vec(
                prop_oneof![0..20_u32, 250..280_u32, 0xfffe0..0xfffff_u32, any::<u32>()], 0..40),
        ) {
            let memory = memory(false);
            let releaser = Releaser::new(Arc::clone(&memory)).unwrap();
            let in_ram = |page: &u32| matches!(page, 0..16 | 256..272);
            let mut expected: Vec<u64> =
                pages.iter().filter(|page| in_ram(page)).map(|&page| page.into()).collect();
            expected.sort_unstable();
            expected.dedup();
            let released = releaser.release_pages(&mut pages.clone());
            prop_assert_eq!(released, expected.len() as u64 * PAGE_SIZE);
            prop_assert_eq!(zero_pages(&memory), expected);
        }
    }
}
