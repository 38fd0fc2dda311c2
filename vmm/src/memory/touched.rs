//! Which pages of guest RAM were ever touched (proc_pid_pagemap(5)).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::GuestMemoryBackend;

use super::{GuestMemory, PAGE_SIZE};

/// A page is in RAM, or on swap.
const PRESENT_OR_SWAPPED: u64 = 1 << 63 | 1 << 62;

/// This process's page map, opened while it still has paths.
#[derive(Debug)]
pub struct PageMap(Option<File>);

impl PageMap {
    /// Opens it. Without `/proc`, or where RAM lies in a file, whose pages may be there without
    /// being mapped, every page counts as touched.
    pub fn open(anonymous: bool) -> Self {
        Self(
            anonymous
                .then(|| File::open("/proc/self/pagemap").ok())
                .flatten(),
        )
    }

    /// One bit a page, least significant first, of `pages` pages from `first_page` of region
    /// `region` on: whether it holds anything. What was given back to the host does not.
    pub fn touched(
        &self,
        memory: &GuestMemory,
        region: u32,
        first_page: u64,
        pages: u32,
    ) -> Vec<u64> {
        self.read(memory, region, first_page, pages)
            .unwrap_or_else(|| all(pages))
    }

    fn read(
        &self,
        memory: &GuestMemory,
        region: u32,
        first_page: u64,
        pages: u32,
    ) -> Option<Vec<u64>> {
        let region = memory.iter().nth(region as usize)?;
        let host = region.as_ptr() as u64 / PAGE_SIZE + first_page;
        let mut entries = vec![0; pages as usize * 8];
        read_exact(self.0.as_ref()?, &mut entries, host * 8).ok()?;
        let (entries, _) = entries.as_chunks::<8>();
        let words = entries.chunks(64).map(|entries| {
            entries
                .iter()
                .zip(0..)
                .filter(|(entry, _)| u64::from_ne_bytes(**entry) & PRESENT_OR_SWAPPED != 0)
                .fold(0, |word, (_, bit)| word | 1 << bit)
        });
        Some(words.collect())
    }
}

fn read_exact(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(bytes, offset)
}

/// A bit for each of `pages` pages, and none beyond.
fn all(pages: u32) -> Vec<u64> {
    let mut words = vec![u64::MAX; pages.div_ceil(64) as usize];
    if let (Some(last), rest @ 1..) = (words.last_mut(), pages % 64) {
        *last = (1 << rest) - 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn written_pages_are_touched_and_others_are_not() {
        let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 1 << 20)];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let map = PageMap::open(true);
        memory
            .write_slice(&[1], GuestAddress((1 << 32) + 66 * PAGE_SIZE))
            .unwrap();
        assert_eq!(map.touched(&memory, 1, 64, 70), [0b100, 0]);
        assert_eq!(
            PageMap::open(false).touched(&memory, 1, 64, 70),
            [u64::MAX, 0b11_1111]
        );
    }
}
