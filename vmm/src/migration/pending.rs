//! The pages that the destination does not have as they are now.

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{DirtyRegion, GuestMemory, PAGE_SIZE};

/// A set of pages of guest RAM, a bitmap a region.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    regions: Vec<DirtyRegion>,
}

/// A run of pages: GPA of the first, and how many.
pub type Run = (u64, u32);

/// Where a chunk of the set lies: region, first page in it, number of pages. The first page is a
/// multiple of 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Index of the region.
    pub region: u32,
    /// First page, counted from the region's start.
    pub first_page: u64,
    /// Number of pages; a multiple of 64 unless the region ends there.
    pub pages: u32,
}

impl Pending {
    /// Every page of `memory`.
    pub fn all(memory: &GuestMemory) -> Self {
        let full = |pages: u64| {
            let mut words = vec![u64::MAX; pages.div_ceil(64) as usize];
            if let (Some(last), rest @ 1..) = (words.last_mut(), pages % 64) {
                *last = (1 << rest) - 1;
            }
            words
        };
        Self::with(memory, full)
    }

    /// No page of `memory`.
    pub fn none(memory: &GuestMemory) -> Self {
        Self::with(memory, |pages| vec![0; pages.div_ceil(64) as usize])
    }

    fn with(memory: &GuestMemory, words: impl Fn(u64) -> Vec<u64>) -> Self {
        let regions = memory.iter().map(|region| {
            let pages = region.len().div_ceil(PAGE_SIZE);
            DirtyRegion {
                start: region.start_addr().0,
                pages,
                words: words(pages),
            }
        });
        Self {
            regions: regions.collect(),
        }
    }

    /// Number of pages.
    pub fn count(&self) -> u64 {
        self.regions.iter().map(DirtyRegion::count).sum()
    }

    /// Adds what a dirty log says, and returns how many pages were not in the set yet.
    pub fn add(&mut self, dirty: &[DirtyRegion]) -> u64 {
        let mut added = 0;
        for (ours, theirs) in self.regions.iter_mut().zip(dirty) {
            for (word, more) in ours.words.iter_mut().zip(&theirs.words) {
                added += u64::from((more & !*word).count_ones());
                *word |= more;
            }
        }
        added
    }

    /// The pages that are in both.
    pub fn intersection(&self, other: &Self) -> Self {
        self.combined(other, |ours, theirs| ours & theirs)
    }

    /// The pages that are not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        self.combined(other, |ours, theirs| ours & !theirs)
    }

    fn combined(&self, other: &Self, operation: impl Fn(u64, u64) -> u64) -> Self {
        let mut result = self.clone();
        for (ours, theirs) in result.regions.iter_mut().zip(&other.regions) {
            for (word, other) in ours.words.iter_mut().zip(&theirs.words) {
                *word = operation(*word, *other);
            }
        }
        result
    }

    /// The chunks of at most `words * 64` pages that have pages in them, by rising address.
    pub fn chunks(&self, words: usize) -> Vec<Chunk> {
        let words = words.max(1);
        let of_region = |(region, dirty): (u32, &DirtyRegion)| {
            let total = dirty.pages;
            let chunks = dirty.words.chunks(words).zip(0_u64..);
            chunks
                .filter(|(chunk, _)| chunk.iter().any(|&word| word != 0))
                .map(|(_, index)| {
                    let first_page = index * words as u64 * 64;
                    Chunk {
                        region,
                        first_page,
                        pages: (total - first_page).min(words as u64 * 64) as u32,
                    }
                })
                .collect::<Vec<_>>()
        };
        (0..).zip(&self.regions).flat_map(of_region).collect()
    }

    /// The bits of one chunk.
    pub fn words(&self, chunk: Chunk) -> &[u64] {
        let first = (chunk.first_page / 64) as usize;
        let count = chunk.pages.div_ceil(64) as usize;
        &self.regions[chunk.region as usize].words[first..first + count]
    }

    /// Takes the pages of one chunk that are in `selected` out of the set.
    pub fn remove(&mut self, chunk: Chunk, selected: &[u64]) {
        let first = (chunk.first_page / 64) as usize;
        let words = &mut self.regions[chunk.region as usize].words[first..];
        for (word, gone) in words.iter_mut().zip(selected) {
            *word &= !gone;
        }
    }

    /// The runs of pages in `words`, which are bits of `chunk`.
    pub fn runs(&self, chunk: Chunk, words: &[u64]) -> Vec<Run> {
        let start = self.regions[chunk.region as usize].start + chunk.first_page * PAGE_SIZE;
        let mut runs: Vec<Run> = Vec::new();
        for (&word, index) in words.iter().zip(0_u64..) {
            let mut rest = word;
            while rest != 0 {
                let first = rest.trailing_zeros();
                let length = (!(rest >> first)).trailing_zeros();
                let gpa = start + (index * 64 + u64::from(first)) * PAGE_SIZE;
                match runs.last_mut() {
                    Some((before, pages)) if *before + u64::from(*pages) * PAGE_SIZE == gpa => {
                        *pages += length;
                    }
                    _ => runs.push((gpa, length)),
                }
                rest &= u64::MAX.checked_shl(first + length).unwrap_or(0);
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    use super::*;

    fn memory() -> GuestMemory {
        let ranges = [
            (GuestAddress(0), 200 * 4096),
            (GuestAddress(1 << 32), 64 * 4096),
        ];
        GuestMemory::from_ranges(&ranges).unwrap()
    }

    #[test]
    fn all_pages_are_one_run_a_chunk() {
        let pending = Pending::all(&memory());
        assert_eq!(pending.count(), 264);
        let chunks = pending.chunks(2);
        let runs = |chunk: &Chunk| pending.runs(*chunk, pending.words(*chunk));
        let runs: Vec<_> = chunks.iter().flat_map(runs).collect();
        assert_eq!(runs, [(0, 128), (128 * 4096, 72), (1 << 32, 64)]);
        assert_eq!(pending.chunks(2)[1].pages, 72);
    }

    #[test]
    fn hot_and_cold_pages_are_the_whole() {
        let mut first = Pending::none(&memory());
        let mut second = first.clone();
        let dirty = |word| {
            let mut regions = Pending::none(&memory()).regions;
            regions[0].words[1] = word;
            regions
        };
        assert_eq!(first.add(&dirty(0b1110)), 3);
        second.add(&dirty(0b0111));
        assert_eq!(second.intersection(&first).count(), 2);
        assert_eq!(second.without(&first).count(), 1);
    }

    proptest! {
        #[test]
        fn any_set_is_the_union_of_its_runs(
            words: [u64; 4], size in 1_usize..5,
        ) {
            let mut pending = Pending::none(&memory());
            let mut dirty = pending.regions.clone();
            dirty[0].words[..3].copy_from_slice(&words[..3]);
            dirty[0].words[3] = words[3] & 0xff;
            pending.add(&dirty);
            let mut pages = Vec::new();
            for chunk in pending.chunks(size) {
                let selected = pending.words(chunk).to_vec();
                for (gpa, count) in pending.runs(chunk, &selected) {
                    pages.extend((0..u64::from(count)).map(|page| gpa / 4096 + page));
                }
                pending.remove(chunk, &selected);
            }
            let bit = |page: &u64| dirty[0].words[(*page / 64) as usize] >> (page % 64) & 1 == 1;
            let expected: Vec<u64> = (0..200).filter(bit).collect();
            prop_assert_eq!(pages, expected);
            prop_assert_eq!(pending.count(), 0);
        }
    }
}
