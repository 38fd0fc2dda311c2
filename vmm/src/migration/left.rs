//! Pages that are left behind, on the wire: the body of [`Kind::Leave`].
//!
//! Shape, little-endian: index of the region (u32), number of the chunk in it (u32), then a
//! Zstandard frame with the chunk's bits: a u64 for 64 pages each, least significant first. A chunk
//! has 2,097,152 pages, the last one of a region what is left. A guest that writes here and there
//! makes bits that hardly compress, and even they are 16 KiB for 512 MiB of RAM; addresses would
//! be 32 times that.
//!
//! [`Kind::Leave`]: super::protocol::Kind::Leave

use thiserror::Error;
use zstd::bulk::Decompressor;

use super::pending::{Chunk, Pending};

/// Words of a chunk.
const CHUNK_WORDS: usize = 32 << 10;
/// Bits are either nearly all the same, or noise.
const LEVEL: i32 = 1;

/// What a body holds is none of our pages.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LeftError {
    /// Too short.
    #[error("{0} bytes name no pages to leave")]
    Truncated(usize),
    /// No such chunk.
    #[error("there is no chunk {chunk} of region {region}")]
    Chunk {
        /// The region.
        region: u32,
        /// The chunk.
        chunk: u32,
    },
    /// The bits are not as many as the chunk has, or some stand for no page.
    #[error("the bits for chunk {chunk} of region {region} are not what it has")]
    Bits {
        /// The region.
        region: u32,
        /// The chunk.
        chunk: u32,
    },
}

/// The bodies for all of `pages`, one a chunk that has some.
pub fn encode(pages: &Pending) -> Vec<Vec<u8>> {
    let body = |chunk: Chunk| {
        let words = pages.words(chunk);
        let bits: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let number = (chunk.first_page / 64 / CHUNK_WORDS as u64) as u32;
        let mut body = chunk.region.to_le_bytes().to_vec();
        body.extend(number.to_le_bytes());
        body.extend(zstd::bulk::compress(&bits, LEVEL).expect("there is memory for it"));
        body
    };
    pages.chunks(CHUNK_WORDS).into_iter().map(body).collect()
}

/// Reads a body about the same RAM as that of `pages`: a chunk and its bits.
///
/// # Errors
/// [`LeftError`].
pub fn decode(body: &[u8], pages: &Pending) -> Result<(Chunk, Vec<u64>), LeftError> {
    let truncated = LeftError::Truncated(body.len());
    let Some((region, rest)) = body.split_first_chunk() else {
        return Err(truncated);
    };
    let Some((number, bits)) = rest.split_first_chunk() else {
        return Err(truncated);
    };
    let region = u32::from_le_bytes(*region);
    let number = u32::from_le_bytes(*number);
    let chunk = pages
        .chunk(region, u64::from(number), CHUNK_WORDS)
        .ok_or(LeftError::Chunk {
            region,
            chunk: number,
        })?;
    let malformed = LeftError::Bits {
        region,
        chunk: number,
    };
    let mut bytes = vec![0; pages.words(chunk).len() * 8];
    let length = Decompressor::new()
        .and_then(|mut zstd| zstd.decompress_to_buffer(bits, &mut bytes[..]))
        .ok();
    if length != Some(bytes.len()) {
        return Err(malformed);
    }
    let words = bytes.as_chunks().0.iter().copied().map(u64::from_le_bytes);
    let words: Vec<u64> = words.collect();
    let beyond = match chunk.pages % 64 {
        0 => 0,
        rest => u64::MAX << rest,
    };
    if words.last().is_some_and(|last| last & beyond != 0) {
        return Err(malformed);
    }
    Ok((chunk, words))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    use super::*;
    use crate::memory::GuestMemory;

    fn memory() -> GuestMemory {
        let ranges = [
            (GuestAddress(0), 200 * 4096),
            (GuestAddress(1 << 32), 64 * 4096),
        ];
        GuestMemory::from_ranges(&ranges).unwrap()
    }

    #[test]
    fn all_pages_survive_the_way() {
        let all = Pending::all(&memory());
        let bodies = encode(&all);
        assert_eq!(bodies.len(), 2);
        let mut arrived = Pending::none(&memory());
        for body in &bodies {
            let (chunk, words) = decode(body, &arrived).unwrap();
            arrived.insert(chunk, &words);
        }
        assert_eq!(arrived.count(), 264);
        assert!(encode(&Pending::none(&memory())).is_empty());
    }

    #[test]
    fn what_names_no_pages_of_ours_is_refused() {
        let pages = Pending::none(&memory());
        let body = |region: u32, chunk: u32, words: &[u64]| {
            let bits: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let bits = zstd::bulk::compress(&bits, 1).unwrap();
            [&region.to_le_bytes()[..], &chunk.to_le_bytes(), &bits].concat()
        };
        assert!(decode(&body(0, 0, &[1, 2, 3, 4]), &pages).is_ok());
        assert_eq!(decode(&[0; 7], &pages), Err(LeftError::Truncated(7)));
        for (region, chunk) in [(2, 0), (0, 1), (u32::MAX, u32::MAX)] {
            let refused = decode(&body(region, chunk, &[0]), &pages);
            assert_eq!(refused, Err(LeftError::Chunk { region, chunk }));
        }
        let (region, chunk) = (0, 0);
        for words in [&[0; 3][..], &[0; 5], &[0, 0, 0, 1 << 8], &vec![0; 10_000]] {
            let refused = decode(&body(region, chunk, words), &pages);
            assert_eq!(refused, Err(LeftError::Bits { region, chunk }));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_pages_of_ours_or_refused(
            mut body in prop::collection::vec(any::<u8>(), 0..40),
            begins_well: bool,
        ) {
            if begins_well && body.len() >= 8 {
                body[..8].fill(0);
            }
            let pages = Pending::none(&memory());
            if let Ok((chunk, words)) = decode(&body, &pages) {
                let mut pages = pages.clone();
                pages.insert(chunk, &words);
                prop_assert!(pages.count() <= 264);
            }
        }
    }
}
