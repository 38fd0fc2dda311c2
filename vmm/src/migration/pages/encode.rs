//! The source's side: from guest RAM to frames.

use std::sync::Arc;

use pindah_vmm_api::{Compression, PageStatistics};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::block::{Encoding, Extents};
use super::compress::Codecs;
use super::frames::Frames;
use super::versions::{Change, Versions};
use super::{BLOCK_PAGES, EncodeError, PAGE, Page};
use crate::memory::{GuestMemory, is_zero};

/// Body of a frame unless the caller asks for another.
const FRAME_BYTES: usize = 64 << 10;

/// Versions of pages are kept on links slower than this. To remember a page for the first time
/// costs a core about 0.8 ns a byte, most of it for fresh memory: a fifth of the 4 ns that a link
/// of this rate takes for it, and too much on a faster one for pages that may never come again.
const DELTA_BELOW_BYTES_PER_S: u64 = 250_000_000;

/// How pages are encoded.
#[derive(Clone, Copy, Debug)]
pub struct EncoderOptions {
    /// How they are compressed.
    pub compression: Compression,
    /// Most memory for versions that the destination holds; 0: no differences.
    pub delta_cache_bytes: u64,
}

/// Encodes pages of one guest for one destination.
///
/// All frames have to be applied there, in the order in which they were made. A page always goes
/// through the same encoder: another would not know which version the destination holds.
pub struct Encoder {
    memory: Arc<GuestMemory>,
    codecs: Codecs,
    versions: Versions,
    frames: Frames,
    statistics: PageStatistics,
    /// Pages of zeroes that are in no block yet.
    zeroes: Extents,
    /// As many with a difference, and these.
    changed: Extents,
    differences: Vec<u8>,
    /// GPAs of pages that go whole, and their content from the first page of `stage` on.
    whole: Vec<u64>,
    stage: Box<[Page]>,
    /// What the block that is being written holds.
    extents: Extents,
}

impl Encoder {
    /// An encoder that has sent nothing, over a link of unknown rate: without compression, unless
    /// it was asked for, and without differences.
    pub fn new(memory: Arc<GuestMemory>, options: EncoderOptions) -> Self {
        let ram_pages = memory.last_addr().0 as usize / PAGE + 1;
        Self {
            codecs: Codecs::new(options.compression),
            versions: Versions::new(ram_pages, options.delta_cache_bytes),
            frames: Frames::new(FRAME_BYTES),
            statistics: PageStatistics::default(),
            zeroes: Extents::default(),
            changed: Extents::default(),
            differences: Vec::new(),
            whole: Vec::with_capacity(BLOCK_PAGES),
            stage: vec![[0; PAGE]; BLOCK_PAGES].into_boxed_slice(),
            extents: Extents::default(),
            memory,
        }
    }

    /// What the link can carry. Decides about codecs and differences.
    ///
    /// That it carried less because less was sent is not to be told here: a codec that is slower
    /// than the link would look right for ever.
    pub fn set_link_rate(&mut self, bytes_per_s: u64) {
        self.codecs.set_link_rate(bytes_per_s);
        self.versions
            .set_open(bytes_per_s < DELTA_BELOW_BYTES_PER_S);
    }

    /// The destination's versions are no more: from now on no page is a difference from one.
    pub fn forget_versions(&mut self) {
        self.versions = Versions::new(0, 0);
    }

    /// The size of bodies to aim at, 4 to 256 KiB; 64 KiB if nothing is said. A body is longer
    /// only if it is a single block of compressed pages, which has no more than 57 KiB.
    pub fn set_frame_bytes(&mut self, bytes: usize) {
        self.frames = Frames::new(bytes);
    }

    /// These pages need not be sent.
    pub fn count_untouched(&mut self, pages: u64) {
        self.statistics.untouched_pages += pages;
    }

    /// What became of the pages so far.
    pub fn statistics(&self) -> PageStatistics {
        self.statistics
    }

    /// Appends frames with `pages` pages from `first_gpa` to `out`.
    ///
    /// # Errors
    /// As [`Self::encode_runs`].
    pub fn encode(
        &mut self,
        first_gpa: u64,
        pages: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        self.encode_runs(&[(first_gpa, pages)], out)
    }

    /// Appends frames with the pages of `runs`, each `(first_gpa, pages)`, to `out`: whole frames,
    /// and none if no page has to be sent. Scattered pages share frames and blocks.
    ///
    /// # Errors
    /// [`EncodeError`] if a run is not whole pages of one region, or starts before the one before
    /// it ends.
    pub fn encode_runs(
        &mut self,
        runs: &[(u64, u32)],
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let memory = Arc::clone(&self.memory);
        check(&memory, runs)?;
        let length = out.len();
        for &(first_gpa, pages) in runs {
            let bytes = pages as usize * PAGE;
            let ram = memory.get_slice(GuestAddress(first_gpa), bytes);
            let ram = ram.expect("runs are checked");
            for at in (0..bytes).step_by(PAGE) {
                let page = ram.subslice(at, PAGE).expect("it is within the run");
                page.copy_to(&mut self.stage[self.whole.len()]);
                self.staged(first_gpa + at as u64, out);
            }
        }
        self.flush_whole(out);
        self.flush_changed(out);
        self.flush_zeroes(out);
        self.frames.close(out);
        self.statistics.wire_bytes += (out.len() - length) as u64;
        Ok(())
    }

    /// Decides about the page that was copied last.
    fn staged(&mut self, gpa: u64, out: &mut Vec<u8>) {
        let page = &self.stage[self.whole.len()];
        if is_zero(page) {
            self.versions.update_zero(gpa);
            self.statistics.zero_pages += 1;
            self.zeroes.push(gpa);
            if self.zeroes.is_full() {
                self.flush_zeroes(out);
            }
            return;
        }
        match self.versions.update(gpa, page, &mut self.differences) {
            Change::None => self.statistics.unchanged_pages += 1,
            Change::Delta => {
                self.statistics.delta_pages += 1;
                self.changed.push(gpa);
                let is_large = self.differences.len() >= self.frames.small_payload();
                if is_large || self.changed.is_full() {
                    self.flush_changed(out);
                }
            }
            Change::Whole => {
                self.whole.push(gpa);
                if self.whole.len() == BLOCK_PAGES {
                    self.flush_whole(out);
                }
            }
        }
    }

    fn flush_zeroes(&mut self, out: &mut Vec<u8>) {
        if !self.zeroes.is_empty() {
            self.frames.put(Encoding::Zero, &self.zeroes, &[], out);
            self.zeroes.clear();
        }
    }

    fn flush_changed(&mut self, out: &mut Vec<u8>) {
        if !self.changed.is_empty() {
            let payload = &self.differences;
            self.frames
                .put(Encoding::Delta, &self.changed, payload, out);
            self.changed.clear();
            self.differences.clear();
        }
    }

    fn flush_whole(&mut self, out: &mut Vec<u8>) {
        let pages = self.whole.len();
        if pages == 0 {
            return;
        }
        if let Some((encoding, packed)) = self.codecs.pack(self.stage[..pages].as_flattened()) {
            self.statistics.compressed_pages += pages as u64;
            self.extents.set(&self.whole);
            self.frames.put(encoding, &self.extents, packed, out);
        } else {
            self.statistics.raw_pages += pages as u64;
            let at_once = self.frames.raw_pages();
            let contents = self.stage[..pages].chunks(at_once);
            for (gpas, content) in self.whole.chunks(at_once).zip(contents) {
                self.extents.set(gpas);
                let content = content.as_flattened();
                self.frames.put(Encoding::Raw, &self.extents, content, out);
            }
        }
        self.whole.clear();
    }
}

fn check(memory: &GuestMemory, runs: &[(u64, u32)]) -> Result<(), EncodeError> {
    let mut end = 0;
    for &(first_gpa, pages) in runs {
        let bytes = u64::from(pages) * PAGE as u64;
        let ram = memory.get_slice(GuestAddress(first_gpa), bytes as usize);
        if ram.is_err() || !first_gpa.is_multiple_of(PAGE as u64) {
            return Err(EncodeError::Address { first_gpa, pages });
        }
        if first_gpa < end {
            return Err(EncodeError::Order { first_gpa });
        }
        end = first_gpa + bytes;
    }
    Ok(())
}
