//! What a page of the working set holds, so that a lost, stale or torn one is found.
//!
//! ```text
//! word 0      page number, mixed with a constant
//! word 1      generation: how often the page was written
//! word 2..    body: zero (counter), words of a small vocabulary (text), noise (random)
//! ```
//! A stamp rewrites the first two words and leaves the body of generation 0; a rewrite makes a
//! new body too.

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
/// Words of a page.
pub const PAGE_WORDS: usize = 512;

const HEADER_WORDS: usize = 2;
const PAGE_MARK: u64 = 0x5049_4e44_4148_0000;
const GENERATION_MARK: u64 = 0x4745_4e00_0000_0000;

/// Kind of body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zero: the page is its stamp only.
    Counter,
    /// About 3:1 under `zstd -1`.
    Text,
    /// Does not compress.
    Random,
}

impl Content {
    /// By its word on the command line.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Counter, Self::Text, Self::Random]
            .into_iter()
            .find(|content| content.name() == text)
    }

    /// Its word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Text => "text",
            Self::Random => "random",
        }
    }

    fn body(self, seed: u64) -> impl Iterator<Item = u64> {
        let mut noise = Noise::new(seed);
        (HEADER_WORDS..PAGE_WORDS).map(move |_| match self {
            Self::Counter => 0,
            Self::Text => text_word(noise.next_word()),
            Self::Random => noise.next_word(),
        })
    }
}

/// A word of the vocabulary; every so often one of noise, as names and numbers are in real text.
fn text_word(noise: u64) -> u64 {
    if noise as u8 % 32 < NOISE_IN_32 {
        noise
    } else {
        VOCABULARY[(noise >> 58) as usize]
    }
}

/// So many of 32 words of text are noise: with that a stream of pages is 3:1 under `zstd -1`,
/// and a page alone 2.5:1.
const NOISE_IN_32: u8 = 5;

/// Two words of four letters or so to a machine word: 64 of them, in no grammar.
const VOCABULARY: [u64; 64] = {
    let text = b"the node moved  guest to anotherserver, and all its pages were sent over wire. \
a switch of hosts takes less than one blink; nobody saw it. disk and network go on as before, \
clock is right, memory holds what it held. when power fails, a lease ends and some other node \
starts what was lost: first the oldest, then those with friends. no quorum, no promise. Even so \
people sleep well here, the log says why. backups run at night in small steps; restore is tried \
each week. ";
    let mut words = [0; 64];
    let mut i = 0;
    while i < 64 {
        let mut bytes = [b' '; 8];
        let mut j = 0;
        while j < 8 {
            bytes[j] = text[(8 * i + j) % text.len()];
            j += 1;
        }
        words[i] = u64::from_le_bytes(bytes);
        i += 1;
    }
    words
};

/// A small generator of noise (splitmix64).
#[derive(Clone, Copy, Debug)]
pub struct Noise(u64);

impl Noise {
    /// The sequence that `seed` names.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// How the pages of a working set are made.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// Their body.
    pub content: Content,
    /// Whether each write makes a new body, rather than a new stamp on the old one.
    pub rewrite: bool,
}

/// The first word of a page that is not as it was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Byte offset in the page.
    pub offset: u64,
    /// What was written there.
    pub expected: u64,
    /// What is there.
    pub found: u64,
}

impl Pages {
    fn seed(self, page: u64, generation: u32) -> u64 {
        let generation = if self.rewrite { generation } else { 0 };
        page << 32 | u64::from(generation)
    }

    /// Makes the whole page.
    pub fn fill(self, words: &mut [u64; PAGE_WORDS], page: u64, generation: u32) {
        let body = self.content.body(self.seed(page, generation));
        for (word, value) in words[HEADER_WORDS..].iter_mut().zip(body) {
            *word = value;
        }
        stamp(words, page, generation);
    }

    /// Writes the page again: a new generation, and a new body if so chosen.
    pub fn dirty(self, words: &mut [u64; PAGE_WORDS], page: u64, generation: u32) {
        if self.rewrite && self.content != Content::Counter {
            self.fill(words, page, generation);
        } else {
            stamp(words, page, generation);
        }
    }

    /// Compares the page with what was written last.
    ///
    /// # Errors
    /// The first word that differs.
    pub fn check(
        self,
        words: &[u64; PAGE_WORDS],
        page: u64,
        generation: u32,
    ) -> Result<(), Mismatch> {
        check_stamp(words, page, generation)?;
        let body = self.content.body(self.seed(page, generation));
        for (index, (&found, expected)) in words[HEADER_WORDS..].iter().zip(body).enumerate() {
            if found != expected {
                return Err(mismatch(index + HEADER_WORDS, expected, found));
            }
        }
        Ok(())
    }
}

fn stamp(words: &mut [u64; PAGE_WORDS], page: u64, generation: u32) {
    words[0] = PAGE_MARK ^ page;
    words[1] = GENERATION_MARK | u64::from(generation);
}

/// Compares the stamp only.
///
/// # Errors
/// The first word of it that differs.
pub fn check_stamp(words: &[u64; PAGE_WORDS], page: u64, generation: u32) -> Result<(), Mismatch> {
    let expected = [PAGE_MARK ^ page, GENERATION_MARK | u64::from(generation)];
    for (index, &expected) in expected.iter().enumerate() {
        if words[index] != expected {
            return Err(mismatch(index, expected, words[index]));
        }
    }
    Ok(())
}

fn mismatch(index: usize, expected: u64, found: u64) -> Mismatch {
    Mismatch {
        offset: 8 * index as u64,
        expected,
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Content; 3] = [Content::Counter, Content::Text, Content::Random];

    fn pages(content: Content, rewrite: bool) -> Pages {
        Pages { content, rewrite }
    }

    #[test]
    fn check_after_fill_and_dirty_passes() {
        for content in ALL {
            for rewrite in [false, true] {
                let pages = pages(content, rewrite);
                let mut words = [7; PAGE_WORDS];
                pages.fill(&mut words, 5, 0);
                assert_eq!(pages.check(&words, 5, 0), Ok(()));
                pages.dirty(&mut words, 5, 1);
                assert_eq!(pages.check(&words, 5, 1), Ok(()));
            }
        }
    }

    #[test]
    fn check_stale_page_names_the_generation() {
        let pages = pages(Content::Text, true);
        let mut words = [0; PAGE_WORDS];
        pages.fill(&mut words, 5, 3);
        let error = pages.check(&words, 5, 4).unwrap_err();
        assert_eq!(error.offset, 8);
        assert_eq!(error.expected - error.found, 1);
    }

    #[test]
    fn check_zero_or_foreign_page_fails_at_the_page_number() {
        let pages = pages(Content::Counter, false);
        let mut words = [0; PAGE_WORDS];
        assert_eq!(pages.check(&words, 0, 0).unwrap_err().offset, 0);
        pages.fill(&mut words, 8, 0);
        assert_eq!(pages.check(&words, 9, 0).unwrap_err().offset, 0);
    }

    #[test]
    fn check_torn_page_fails_in_the_body() {
        for content in ALL {
            let pages = pages(content, false);
            let mut words = [0; PAGE_WORDS];
            pages.fill(&mut words, 1, 1);
            words[PAGE_WORDS - 1] ^= 1 << 63;
            assert_eq!(pages.check(&words, 1, 1).unwrap_err().offset, 4088);
        }
    }

    #[test]
    fn rewrite_changes_most_of_a_random_page() {
        let pages = pages(Content::Random, true);
        let (mut old, mut new) = ([0; PAGE_WORDS], [0; PAGE_WORDS]);
        pages.fill(&mut old, 1, 1);
        pages.fill(&mut new, 1, 2);
        let same = old.iter().zip(&new).filter(|(a, b)| a == b).count();
        assert!(same < 4);
    }
}
