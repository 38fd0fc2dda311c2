//! Blocks: the headers and extents that say which pages a payload holds.

use super::{DecodeError, PAGE};

/// Bytes before a block's extents.
pub(super) const HEADER_BYTES: usize = 8;

/// Bytes of an extent.
pub(super) const EXTENT_BYTES: usize = 8;

/// Most pages that an extent describes.
const EXTENT_PAGES: u64 = PAGE as u64;

/// Most extents that our blocks have: 512 bytes of them already are little beside 512 pages.
const BLOCK_EXTENTS: usize = 512;

/// How the pages of a block are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// They are all zeroes.
    Zero = 0,
    /// As they are.
    Raw = 1,
    /// LZ4, block format.
    Lz4 = 2,
    /// One Zstandard frame.
    Zstd = 3,
    /// What changed since the version that the destination holds.
    Delta = 4,
}

impl Encoding {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Zero,
            1 => Self::Raw,
            2 => Self::Lz4,
            3 => Self::Zstd,
            4 => Self::Delta,
            _ => return None,
        })
    }
}

/// Contiguous pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub first_gpa: u64,
    pub pages: u64,
}

impl Extent {
    /// Bytes of RAM that it describes.
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE as u64
    }

    fn encode(&self) -> [u8; EXTENT_BYTES] {
        (self.first_gpa | (self.pages - 1)).to_le_bytes()
    }

    /// Any eight bytes are an extent.
    pub fn decode(bytes: [u8; EXTENT_BYTES]) -> Self {
        let word = u64::from_le_bytes(bytes);
        let further = word % EXTENT_PAGES;
        Self {
            first_gpa: word - further,
            pages: further + 1,
        }
    }
}

/// The pages of a block that is being made.
#[derive(Default)]
pub(super) struct Extents {
    extents: Vec<Extent>,
    pages: u64,
}

impl Extents {
    /// Adds a page.
    pub fn push(&mut self, gpa: u64) {
        self.pages += 1;
        match self.extents.last_mut() {
            Some(last) if last.first_gpa + last.bytes() == gpa && last.pages < EXTENT_PAGES => {
                last.pages += 1;
            }
            _ => self.extents.push(Extent {
                first_gpa: gpa,
                pages: 1,
            }),
        }
    }

    /// Becomes the pages at `gpas`.
    pub fn set(&mut self, gpas: &[u64]) {
        self.clear();
        for &gpa in gpas {
            self.push(gpa);
        }
    }

    pub fn clear(&mut self) {
        self.extents.clear();
        self.pages = 0;
    }

    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.extents.len() >= BLOCK_EXTENTS || self.pages >= super::FRAME_PAGES
    }

    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Size of a block of these pages, with a payload of `payload` bytes.
    pub fn block_bytes(&self, payload: usize) -> usize {
        HEADER_BYTES + self.extents.len() * EXTENT_BYTES + payload
    }

    /// Appends such a block.
    pub fn write_block(&self, encoding: Encoding, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&[encoding as u8, 0]);
        out.extend_from_slice(&(self.extents.len() as u16).to_le_bytes());
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        for extent in &self.extents {
            out.extend_from_slice(&extent.encode());
        }
        out.extend_from_slice(payload);
    }
}

/// A block that came in.
pub(super) struct Block<'a> {
    pub encoding: Encoding,
    extents: &'a [[u8; EXTENT_BYTES]],
    pub payload: &'a [u8],
}

impl<'a> Block<'a> {
    /// Splits the first block off `bytes`. Nothing about its pages is checked yet.
    pub fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError> {
        let (&header, rest) = bytes
            .split_first_chunk()
            .ok_or_else(|| DecodeError::Truncated {
                missing: (HEADER_BYTES - bytes.len()) as u64,
            })?;
        let [encoding, reserved, low, high, a, b, c, d] = header;
        let extents = usize::from(u16::from_le_bytes([low, high]));
        let (Some(encoding), 0, 1..) = (Encoding::from_number(encoding), reserved, extents) else {
            let header = u64::from_le_bytes(header);
            return Err(DecodeError::Header { header });
        };
        let described = extents * EXTENT_BYTES;
        let needed = described as u64 + u64::from(u32::from_le_bytes([a, b, c, d]));
        if rest.len() as u64 >= needed {
            let (block, rest) = rest.split_at(needed as usize);
            let (extents, payload) = block.split_at(described);
            let block = Self {
                encoding,
                extents: extents.as_chunks().0,
                payload,
            };
            Ok((block, rest))
        } else {
            let missing = needed - rest.len() as u64;
            Err(DecodeError::Truncated { missing })
        }
    }

    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        self.extents.iter().copied().map(Extent::decode)
    }

    /// At most 2^28.
    pub fn pages(&self) -> u64 {
        self.extents().map(|extent| extent.pages).sum()
    }

    /// The payload is not what it should be.
    pub fn malformed(&self) -> DecodeError {
        DecodeError::Payload {
            first_gpa: Extent::decode(self.extents[0]).first_gpa,
            pages: self.pages(),
            encoding: self.encoding,
            length: self.payload.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_of_neighbours_merge_up_to_their_limit() {
        let mut extents = Extents::default();
        for page in 0..=EXTENT_PAGES {
            extents.push(page * PAGE as u64);
        }
        extents.push(0x1_0000_0000);

        let mut bytes = Vec::new();
        extents.write_block(Encoding::Zero, &[], &mut bytes);
        let (block, rest) = Block::split(&bytes).unwrap();

        let pages: Vec<(u64, u64)> = block.extents().map(|e| (e.first_gpa, e.pages)).collect();
        let last = EXTENT_PAGES * PAGE as u64;
        assert_eq!(pages, [(0, EXTENT_PAGES), (last, 1), (0x1_0000_0000, 1)]);
        assert_eq!(bytes.len(), extents.block_bytes(0));
        assert!(rest.is_empty());
    }

    #[test]
    fn block_that_is_none_is_refused() {
        let split = |bytes: &[u8]| Block::split(bytes).err().unwrap();
        let truncated = |missing| DecodeError::Truncated { missing };

        assert_eq!(split(&[1, 0, 1]), truncated(5));
        assert_eq!(split(&[1, 0, 1, 0, 0, 0, 0, 0]), truncated(8));
        assert_eq!(
            split(&[1, 0, 1, 0, 255, 255, 255, 255]),
            truncated((1 << 32) + 7)
        );
        for header in [[5, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]] {
            let bytes = [header, [0; 4]].concat();
            assert!(matches!(split(&bytes), DecodeError::Header { .. }));
        }
    }
}
