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

    /// Whether the page at `gpa` is in the set.
    pub fn contains(&self, gpa: u64) -> bool {
        self.bit(gpa)
            .is_some_and(|(region, word, bit)| self.regions[region].words[word] & bit != 0)
    }

    /// Takes the page at `gpa` out of the set. Returns whether it was in it.
    pub fn take(&mut self, gpa: u64) -> bool {
        let Some((region, word, bit)) = self.bit(gpa) else {
            return false;
        };
        let word = &mut self.regions[region].words[word];
        let was_in = *word & bit != 0;
        *word &= !bit;
        was_in
    }

    /// Region, word and bit of the page at `gpa`, if there is one.
    fn bit(&self, gpa: u64) -> Option<(usize, usize, u64)> {
        let place = |(index, region): (usize, &DirtyRegion)| {
            let page = gpa.checked_sub(region.start)? / PAGE_SIZE;
            (page < region.pages).then_some((index, (page / 64) as usize, 1 << (page % 64)))
        };
        self.regions.iter().enumerate().find_map(place)
    }

    /// Takes the next `most` pages at or behind `from` out of the set, or fewer at its end; the
    /// first ones if there are none behind it.
    pub fn take_next(&mut self, from: u64, most: u32) -> Vec<Run> {
        let mut pages = self.next_pages(from, most);
        if pages.is_empty() {
            pages = self.next_pages(0, most);
        }
        let mut runs: Vec<Run> = Vec::new();
        for gpa in pages {
            self.take(gpa);
            match runs.last_mut() {
                Some((first, count))
                    if *first + u64::from(*count) * PAGE_SIZE == gpa
                        && self.starts_no_region(gpa) =>
                {
                    *count += 1;
                }
                _ => runs.push((gpa, 1)),
            }
        }
        runs
    }

    fn starts_no_region(&self, gpa: u64) -> bool {
        self.regions.iter().all(|region| region.start != gpa)
    }

    fn next_pages(&self, from: u64, most: u32) -> Vec<u64> {
        let mut pages = Vec::new();
        for region in &self.regions {
            let skipped = from.saturating_sub(region.start).div_ceil(PAGE_SIZE);
            let first_word = (skipped / 64) as usize;
            for (index, &word) in region.words.iter().enumerate().skip(first_word) {
                let mut rest = word;
                if index == first_word {
                    rest &= u64::MAX << (skipped % 64);
                }
                while rest != 0 {
                    if pages.len() == most as usize {
                        return pages;
                    }
                    let page = index as u64 * 64 + u64::from(rest.trailing_zeros());
                    pages.push(region.start + page * PAGE_SIZE);
                    rest &= rest - 1;
                }
            }
        }
        pages
    }

    /// Adds the pages of one chunk that are in `words`.
    pub fn insert(&mut self, chunk: Chunk, words: &[u64]) {
        let first = (chunk.first_page / 64) as usize;
        let ours = &mut self.regions[chunk.region as usize].words[first..];
        for (word, more) in ours.iter_mut().zip(words) {
            *word |= more;
        }
    }

    /// The chunk with this number, of `words * 64` pages at most, of a region; `None` if there is
    /// none.
    pub fn chunk(&self, region: u32, number: u64, words: usize) -> Option<Chunk> {
        let total = self.regions.get(region as usize)?.pages;
        let most = words as u64 * 64;
        let first_page = number.checked_mul(most).filter(|first| *first < total)?;
        Some(Chunk {
            region,
            first_page,
            pages: (total - first_page).min(most) as u32,
        })
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

    #[test]
    fn pages_are_taken_from_a_place_on_and_then_from_the_start() {
        let mut pending = Pending::none(&memory());
        let mut dirty = pending.regions.clone();
        dirty[0].words[0] = 0b1011;
        dirty[0].words[2] = 1 << 63;
        dirty[1].words[0] = 0b11;
        pending.add(&dirty);
        assert!(pending.contains(3 << 12) && !pending.contains(2 << 12));
        assert!(!pending.contains(1 << 31) && !pending.take(u64::MAX));
        assert_eq!(
            pending.take_next(2 << 12, 3),
            [(3 << 12, 1), (191 << 12, 1), (1 << 32, 1)]
        );
        assert_eq!(
            pending.take_next((1 << 32) + 4096, 9),
            [((1 << 32) + 4096, 1)]
        );
        assert_eq!(pending.take_next((1 << 32) + 8192, 9), [(0, 2)]);
        assert!(pending.take_next(0, 9).is_empty() && pending.count() == 0);
    }

    #[test]
    fn page_is_taken_once() {
        let mut pending = Pending::all(&memory());
        assert!(pending.take((1 << 32) + 4096) && !pending.take((1 << 32) + 4096));
        assert_eq!(pending.count(), 263);
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
