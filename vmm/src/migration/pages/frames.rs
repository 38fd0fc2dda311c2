//! Frames: blocks gathered until they are worth a header.

use super::block::{Encoding, Extents};
use super::{BLOCK_PAGES, FRAME_PAGES, PAGE};
use crate::migration::protocol::{FrameHeader, HEADER_BYTES, Kind, MAX_PAGES_BYTES};

/// Sizes that a caller may ask for: at least one page, and at most half of what a frame may have,
/// so that no block on top of it ever exceeds that.
const MIN_BYTES: usize = PAGE;
const MAX_BYTES: usize = MAX_PAGES_BYTES / 2;

/// Appends blocks to a buffer and puts frame headers before them.
pub(super) struct Frames {
    /// Bodies are no longer than this, unless they are a single block.
    target: usize,
    /// Where the open frame's header lies in the buffer.
    open: Option<usize>,
    /// Pages that the open frame describes.
    pages: u64,
}

impl Frames {
    pub fn new(target: usize) -> Self {
        Self {
            target: target.clamp(MIN_BYTES, MAX_BYTES),
            open: None,
            pages: 0,
        }
    }

    /// Pages as they are that make about one frame.
    pub fn raw_pages(&self) -> usize {
        (self.target / PAGE).min(BLOCK_PAGES)
    }

    /// Payload at which a block that grows page by page is large enough.
    pub fn small_payload(&self) -> usize {
        self.target / 2
    }

    /// Appends a block.
    pub fn put(
        &mut self,
        encoding: Encoding,
        extents: &Extents,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) {
        if let Some(start) = self.open {
            let body = out.len() - start - HEADER_BYTES + extents.block_bytes(payload.len());
            if body > self.target || self.pages + extents.pages() > FRAME_PAGES {
                self.close(out);
            }
        }
        if self.open.is_none() {
            self.open = Some(out.len());
            self.pages = 0;
            out.extend_from_slice(&[0; HEADER_BYTES]);
        }
        self.pages += extents.pages();
        extents.write_block(encoding, payload, out);
    }

    /// Ends the open frame, if there is one.
    pub fn close(&mut self, out: &mut [u8]) {
        let Some(start) = self.open.take() else {
            return;
        };
        let header = FrameHeader {
            kind: Kind::Pages,
            length: out.len() - start - HEADER_BYTES,
        };
        out[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
    }
}
