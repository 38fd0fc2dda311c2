//! The destination's side: from frames to guest RAM.
//!
//! Every byte is hostile. What a frame costs is bounded by [`FRAME_PAGES`], and nothing is
//! allocated for it but the contexts of the codecs.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend};
use zstd::bulk::Decompressor;

use super::block::{Block, Encoding, Extent};
use super::{BLOCK_BYTES, BLOCK_PAGES, DecodeError, FRAME_PAGES, PAGE, delta};
use crate::memory::{GuestMemory, is_zero};

/// What a frame did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Pages that are up to date now.
    pub pages: u64,
}

/// Applies frames to one guest's RAM.
pub struct Decoder {
    memory: Arc<GuestMemory>,
    zstd: Option<Decompressor<'static>>,
    stage: Box<[u8]>,
}

impl Decoder {
    /// A decoder into `memory`, which is all zeroes until something is applied.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self {
            memory,
            zstd: None,
            stage: vec![0; BLOCK_BYTES].into_boxed_slice(),
        }
    }

    /// Applies a frame's body. A page that is zero already is not written, so that RAM that was
    /// never touched stays so.
    ///
    /// # Errors
    /// [`DecodeError`] if the body is none: RAM then holds a part of it, and nothing outside the
    /// pages that it names was written.
    pub fn apply(&mut self, body: &[u8]) -> Result<Applied, DecodeError> {
        let mut rest = body;
        let mut pages = 0;
        while !rest.is_empty() {
            let (block, following) = Block::split(rest)?;
            pages += block.pages();
            if pages > FRAME_PAGES {
                return Err(DecodeError::TooManyPages);
            }
            self.block(&block)?;
            rest = following;
        }
        Ok(Applied { pages })
    }

    /// Hands out the pages of a frame's body instead of writing them, extent by extent: GPA of the
    /// first, how many, and their content unless that is zeroes. That they are RAM is for `put` to
    /// find out. Differences, which need what is there, are refused.
    ///
    /// # Errors
    /// [`DecodeError`] if the body is none, and those of `put`.
    pub fn unpack<E: From<DecodeError>>(
        &mut self,
        body: &[u8],
        mut put: impl FnMut(u64, u64, Option<&[u8]>) -> Result<(), E>,
    ) -> Result<Applied, E> {
        let mut rest = body;
        let mut pages = 0;
        while !rest.is_empty() {
            let (block, following) = Block::split(rest)?;
            pages += block.pages();
            if pages > FRAME_PAGES {
                return Err(DecodeError::TooManyPages.into());
            }
            check(&block)?;
            let mut content = match block.encoding {
                Encoding::Zero => None,
                Encoding::Raw => Some(block.payload),
                Encoding::Delta => return Err(block.malformed().into()),
                Encoding::Lz4 | Encoding::Zstd => Some(self.decompress(&block)?),
            };
            for extent in block.extents() {
                let part = content.map(|whole| {
                    let (part, rest) = whole.split_at(extent.bytes() as usize);
                    content = Some(rest);
                    part
                });
                put(extent.first_gpa, extent.pages, part)?;
            }
            rest = following;
        }
        Ok(Applied { pages })
    }

    fn block(&mut self, block: &Block) -> Result<(), DecodeError> {
        check(block)?;
        match block.encoding {
            Encoding::Zero => self.zeroes(block),
            Encoding::Raw => write(&self.memory, block, block.payload),
            Encoding::Delta => self.differences(block),
            Encoding::Lz4 | Encoding::Zstd => {
                let memory = Arc::clone(&self.memory);
                write(&memory, block, self.decompress(block)?)
            }
        }
    }

    /// The content of a block that [`check`] has passed.
    fn decompress(&mut self, block: &Block) -> Result<&[u8], DecodeError> {
        let stage = &mut self.stage[..block.pages() as usize * PAGE];
        let length = if block.encoding == Encoding::Lz4 {
            lz4_flex::block::decompress_into(block.payload, stage).ok()
        } else {
            let zstd = self.zstd.get_or_insert_default();
            zstd.decompress_to_buffer(block.payload, stage).ok()
        };
        if length == Some(stage.len()) {
            Ok(stage)
        } else {
            Err(block.malformed())
        }
    }

    fn zeroes(&mut self, block: &Block) -> Result<(), DecodeError> {
        let page = &mut self.stage[..PAGE];
        for extent in block.extents() {
            let ram = ram(&self.memory, extent)?;
            for at in (0..ram.len()).step_by(PAGE) {
                let there = ram.subslice(at, PAGE).expect("it is within the extent");
                there.copy_to(page);
                if !is_zero(page) {
                    there.copy_from(&[0; PAGE]);
                }
            }
        }
        Ok(())
    }

    fn differences(&mut self, block: &Block) -> Result<(), DecodeError> {
        let (page, _) = self
            .stage
            .split_first_chunk_mut()
            .expect("it has room for a page");
        let mut rest = block.payload;
        for extent in block.extents() {
            let ram = ram(&self.memory, extent)?;
            for at in (0..ram.len()).step_by(PAGE) {
                let there = ram.subslice(at, PAGE).expect("it is within the extent");
                there.copy_to(page);
                rest = delta::apply(page, rest).ok_or_else(|| block.malformed())?;
                there.copy_from(page);
            }
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(block.malformed())
        }
    }
}

/// Whether the payload may be that of so many pages.
fn check(block: &Block) -> Result<(), DecodeError> {
    let payload = block.payload;
    let pages = block.pages() as usize;
    let is_allowed = match block.encoding {
        Encoding::Zero => payload.is_empty(),
        Encoding::Raw => payload.len() == pages * PAGE,
        Encoding::Lz4 | Encoding::Zstd => pages <= BLOCK_PAGES,
        Encoding::Delta => payload.len() <= pages * delta::MAX_BYTES,
    };
    if is_allowed {
        Ok(())
    } else {
        Err(block.malformed())
    }
}

/// Guest RAM, with the log of writes into it.
type Ram<'a> = vm_memory::VolatileSlice<'a, vm_memory::bitmap::MS<'a, GuestMemory>>;

fn ram(memory: &GuestMemory, extent: Extent) -> Result<Ram<'_>, DecodeError> {
    let slice = memory.get_slice(GuestAddress(extent.first_gpa), extent.bytes() as usize);
    slice.map_err(|_| DecodeError::Address {
        first_gpa: extent.first_gpa,
        pages: extent.pages,
    })
}

/// Writes `content`, which has the length of the block's pages.
fn write(memory: &GuestMemory, block: &Block, mut content: &[u8]) -> Result<(), DecodeError> {
    for extent in block.extents() {
        let ram = ram(memory, extent)?;
        let (pages, rest) = content.split_at(ram.len());
        ram.copy_from(pages);
        content = rest;
    }
    Ok(())
}
