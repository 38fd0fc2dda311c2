//! What becomes of a page on the wire, and back.
//!
//! ```text
//!  guest RAM ─► copy ─┬─ zeroes ─────────────────────► a few bytes a run
//!                     ├─ the destination's version ──► nothing
//!                     ├─ nearly that version ────────► the words that differ
//!                     ├─ shrinks, and that pays ─────► LZ4 or Zstandard, 16 pages a block
//!                     └─ anything else ──────────────► as it is
//! ```
//! The first fate that fits is taken: they are in the order of what they cost. A page is read
//! once, so that what is compared, remembered and sent is the same whatever the guest writes
//! meanwhile; that it wrote is in the dirty log, and sends the page again.
//!
//! The body of a frame ([`Kind::Pages`]) is one or more blocks. A block holds pages that share a
//! fate, however they are scattered.
//!
//! Shape of a block, little-endian: encoding (u8: [`Encoding`]), a byte of zero, number of extents
//! (u16, at least 1), length of the payload in bytes (u32), the extents (u64 each), the payload.
//! An extent is a range of pages: its first GPA, a multiple of 4096, with the number of further
//! pages (0 to 4095) in the low twelve bits. The payload is that of all extents in turn:
//!
//! | encoding | payload |
//! |---|---|
//! | zero | nothing |
//! | raw | the pages |
//! | LZ4, Zstandard | at most 16 pages as one LZ4 block or one Zstandard frame |
//! | delta | for each page what [`delta`] describes |
//!
//! A frame describes at most [`FRAME_PAGES`], which bounds what it costs its receiver.
//!
//! [`Kind::Pages`]: super::protocol::Kind::Pages

mod block;
mod choice;
mod compress;
mod decode;
mod delta;
mod encode;
mod frames;
#[cfg(test)]
mod tests;
mod versions;

use thiserror::Error;

use crate::memory::PAGE_SIZE;

pub use block::Encoding;
pub use decode::{Applied, Decoder};
pub use encode::{Encoder, EncoderOptions};

/// Bytes of a page.
const PAGE: usize = PAGE_SIZE as usize;

/// Most pages that are compressed as one.
const BLOCK_PAGES: usize = 16;

/// Bytes of as many pages.
const BLOCK_BYTES: usize = BLOCK_PAGES * PAGE;

/// Most pages that one frame describes: 256 MiB.
pub const FRAME_PAGES: u64 = 1 << 16;

/// The content of a page.
type Page = [u8; PAGE];

/// Why pages cannot be encoded. Nothing was.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum EncodeError {
    /// The run is not whole pages of one region.
    #[error("{pages} pages from {first_gpa:#x} are not within one region of guest RAM")]
    Address {
        /// Where it starts.
        first_gpa: u64,
        /// How long it is.
        pages: u32,
    },
    /// The runs overlap, or do not ascend.
    #[error("the run of pages at {first_gpa:#x} comes after one that ends beyond its start")]
    Order {
        /// Where it starts.
        first_gpa: u64,
    },
}

/// Why a frame cannot be applied. Blocks before the one that is wrong were.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The frame ends inside a block.
    #[error("a frame of pages ends {missing} bytes too early")]
    Truncated {
        /// What the block's header says there should be.
        missing: u64,
    },
    /// The header is none.
    #[error("a block of pages starts with {header:#018x}, which means nothing")]
    Header {
        /// The header, its first byte as the lowest.
        header: u64,
    },
    /// The pages are not RAM.
    #[error("{pages} pages from {first_gpa:#x} are not within one region of guest RAM")]
    Address {
        /// Where they start.
        first_gpa: u64,
        /// How many.
        pages: u64,
    },
    /// The frame costs more than a frame may.
    #[error("a frame describes more than {FRAME_PAGES} pages")]
    TooManyPages,
    /// The payload is not what the header says.
    #[error("{length} bytes from {first_gpa:#x} are not {pages} pages as {encoding:?}")]
    Payload {
        /// The GPA of the block's first page.
        first_gpa: u64,
        /// How many pages it should be.
        pages: u64,
        /// How they should be encoded.
        encoding: Encoding,
        /// The payload's length.
        length: usize,
    },
}
