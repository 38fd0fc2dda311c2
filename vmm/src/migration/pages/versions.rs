//! The versions of pages that the destination holds, as far as there is room for them.
//!
//! A version here equals what the destination has once it applied all frames that were encoded so
//! far: whoever sends a page in any way tells.

use super::{PAGE, Page, delta};

/// Pages that are allocated at once: 1 MiB.
const CHUNK_PAGES: usize = 256;

/// What a page is to the version that the destination holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The same.
    None,
    /// A difference, which was appended.
    Delta,
    /// Too much, or that version is not known.
    Whole,
}

/// One version.
struct Entry {
    page: usize,
    /// It came in, or was asked for, since the hand last passed.
    useful: bool,
}

/// A bounded set of versions.
///
/// When it is full a new page takes the place under a hand that moves on by one place each time,
/// unless the page there is new or was useful since the last turn: then the other one is not
/// remembered. So a first pass over all RAM does not fill the set for good with pages that never
/// come again, and pages that are written in a cycle too long for it do not drive each other out.
pub(super) struct Versions {
    /// Page numbers that there are.
    pages: usize,
    /// Most versions.
    capacity: usize,
    /// Whether new pages are remembered.
    open: bool,
    /// By page number: 1 + its place, or 0. Empty until the set is first open.
    places: Vec<u32>,
    entries: Vec<Entry>,
    /// Content by place, chunk by chunk.
    chunks: Vec<Box<[Page]>>,
    hand: usize,
}

impl Versions {
    /// For RAM that ends before page number `pages`. `bytes` bounds the versions; to find them
    /// takes four bytes a page of RAM.
    pub fn new(pages: usize, bytes: u64) -> Self {
        let most = pages.min(u32::MAX as usize - 1);
        Self {
            pages,
            capacity: usize::try_from(bytes / PAGE as u64).map_or(most, |room| room.min(most)),
            open: false,
            places: Vec::new(),
            entries: Vec::new(),
            chunks: Vec::new(),
            hand: 0,
        }
    }

    /// Whether pages that are new are remembered from now on. Those that are in stay true, and of
    /// use, either way.
    pub fn set_open(&mut self, open: bool) {
        self.open = open && self.capacity > 0;
        if self.open && self.places.is_empty() {
            self.places = vec![0; self.pages];
        }
    }

    /// The page at `gpa` is about to be sent, as this says: [`Change::Delta`] appended to `out`.
    pub fn update(&mut self, gpa: u64, page: &Page, out: &mut Vec<u8>) -> Change {
        let number = gpa as usize / PAGE;
        let Some(place) = self.find(number) else {
            if self.open {
                self.insert(number, page);
            }
            return Change::Whole;
        };
        self.entries[place].useful = true;
        let version = &mut self.chunks[place / CHUNK_PAGES][place % CHUNK_PAGES];
        if version == page {
            return Change::None;
        }
        let change = if delta::encode(version, page, out) {
            Change::Delta
        } else {
            Change::Whole
        };
        *version = *page;
        change
    }

    /// The page at `gpa` is about to be sent as zeroes. It is remembered if it was: one that turns
    /// to zeroes and back is worth it.
    pub fn update_zero(&mut self, gpa: u64) {
        if let Some(place) = self.find(gpa as usize / PAGE) {
            self.chunks[place / CHUNK_PAGES][place % CHUNK_PAGES] = [0; PAGE];
        }
    }

    fn find(&self, number: usize) -> Option<usize> {
        let place = *self.places.get(number)?;
        (place as usize).checked_sub(1)
    }

    fn insert(&mut self, number: usize, page: &Page) {
        let entry = Entry {
            page: number,
            useful: true,
        };
        let place = if self.entries.len() < self.capacity {
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            let place = self.hand;
            self.hand = (place + 1) % self.capacity;
            let old = &mut self.entries[place];
            if std::mem::take(&mut old.useful) {
                return;
            }
            self.places[old.page] = 0;
            *old = entry;
            place
        };
        if place / CHUNK_PAGES == self.chunks.len() {
            let pages = CHUNK_PAGES.min(self.capacity - place);
            self.chunks.push(vec![[0; PAGE]; pages].into_boxed_slice());
        }
        self.chunks[place / CHUNK_PAGES][place % CHUNK_PAGES] = *page;
        self.places[number] = place as u32 + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM_PAGES: usize = 64;

    fn versions(capacity: usize) -> Versions {
        let mut versions = Versions::new(RAM_PAGES, (capacity * PAGE) as u64);
        versions.set_open(true);
        versions
    }

    /// Sends a page full of `byte`.
    fn send(versions: &mut Versions, page: usize, byte: u8) -> Change {
        versions.update((page * PAGE) as u64, &[byte; PAGE], &mut Vec::new())
    }

    #[test]
    fn page_sent_twice_is_known_the_second_time() {
        let mut versions = versions(4);
        assert_eq!(send(&mut versions, 3, 1), Change::Whole);
        assert_eq!(send(&mut versions, 3, 1), Change::None);
        assert_eq!(send(&mut versions, 3, 2), Change::Whole);
        assert_eq!(send(&mut versions, 3, 2), Change::None);
    }

    #[test]
    fn page_sent_as_zeroes_differs_from_them() {
        let mut versions = versions(4);
        send(&mut versions, 3, 1);
        versions.update_zero(3 * PAGE as u64);
        versions.update_zero(4 * PAGE as u64);

        let mut page = [0; PAGE];
        page[8] = 1;
        let mut out = Vec::new();
        assert_eq!(
            versions.update(3 * PAGE as u64, &page, &mut out),
            Change::Delta
        );
        assert_eq!(out.len(), 11);
        assert_eq!(
            versions.update(4 * PAGE as u64, &page, &mut out),
            Change::Whole
        );
    }

    #[test]
    fn closed_set_keeps_what_it_has_and_takes_nothing() {
        let mut versions = versions(4);
        send(&mut versions, 0, 1);
        versions.set_open(false);
        send(&mut versions, 1, 1);
        assert_eq!(send(&mut versions, 0, 1), Change::None);
        assert_eq!(send(&mut versions, 1, 1), Change::Whole);
    }

    #[test]
    fn set_without_room_never_opens() {
        let mut versions = versions(0);
        send(&mut versions, 0, 1);
        assert_eq!(send(&mut versions, 0, 1), Change::Whole);
    }

    #[test]
    fn pages_that_come_again_displace_those_that_do_not() {
        let mut versions = versions(8);
        for page in 0..RAM_PAGES {
            send(&mut versions, page, 1);
        }
        let hot = 0..6;
        for _ in 0..2 {
            for page in hot.clone() {
                send(&mut versions, page, 1);
            }
        }
        assert!(
            hot.clone()
                .all(|page| send(&mut versions, page, 1) == Change::None)
        );
    }

    #[test]
    fn cycle_longer_than_the_set_still_finds_as_many_as_it_holds() {
        let mut versions = versions(8);
        let mut known = 0;
        for _ in 0..10 {
            let changes = (0..16).map(|page| send(&mut versions, page, 1));
            known = changes.filter(|change| *change == Change::None).count();
        }
        assert!(known >= 7, "{known}");
    }
}
