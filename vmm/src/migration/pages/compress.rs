//! Compression of blocks: the codecs' contexts, and when each is tried.
//!
//! What a codec does with the content is measured on the blocks that it compresses. One that is
//! not in use is tried on a block now and then, so that a change of content is noticed.

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use pindah_vmm_api::Compression;
use zstd::bulk::Compressor;

use super::BLOCK_BYTES;
use super::block::Encoding;
use super::choice::{Codec, Meter, choose};
use crate::migration::priority;

/// Room for what LZ4 may take before it is known not to shrink.
const PACKED_BYTES: usize = get_maximum_output_size(BLOCK_BYTES);

/// Level of Zstandard: the next ones cost half the speed for a few per cent.
const ZSTD_LEVEL: i32 = 1;

/// Codecs that are not in use are tried once in what the link carries in this fraction of a
/// second: about 16 ms, of which trying both takes a quarter of one at most.
const PROBES_PER_S: u64 = 64;

/// Bounds for that: a slow link's blocks are few, and a fast link's many.
const PROBE_BYTES: (u64, u64) = (512 << 10, 16 << 20);

/// The codecs.
pub(super) struct Codecs {
    mode: Compression,
    /// What the link carries, once it is known.
    link_bytes_per_s: Option<u64>,
    lz4: Option<CompressTable>,
    zstd: Option<Compressor<'static>>,
    lz4_meter: Meter,
    zstd_meter: Meter,
    /// Bytes until both are tried again.
    until_probe: u64,
    /// What the last one made.
    packed: Box<[u8]>,
}

impl Codecs {
    /// Codecs without contexts: each is made when it is first tried.
    pub fn new(mode: Compression) -> Self {
        let room = if mode == Compression::None {
            0
        } else {
            PACKED_BYTES
        };
        Self {
            mode,
            link_bytes_per_s: None,
            lz4: None,
            zstd: None,
            lz4_meter: Meter::default(),
            zstd_meter: Meter::default(),
            until_probe: 0,
            packed: vec![0; room].into_boxed_slice(),
        }
    }

    /// What the link carries from now on.
    pub fn set_link_rate(&mut self, bytes_per_s: u64) {
        self.link_bytes_per_s = Some(bytes_per_s);
    }

    /// Compresses `block`, of at most [`BLOCK_BYTES`]; `None` if it does not pay, or does not
    /// shrink by an eighth.
    pub fn pack(&mut self, block: &[u8]) -> Option<(Encoding, &[u8])> {
        let codec = match self.mode {
            Compression::None => None,
            Compression::Auto => self.choose(block),
            Compression::Lz4 => Some(Codec::Lz4),
            Compression::Zstd => Some(Codec::Zstd),
        }?;
        let length = self.run(codec, block)?;
        Some((codec.encoding(), &self.packed[..length]))
    }

    fn choose(&mut self, block: &[u8]) -> Option<Codec> {
        let link = self.link_bytes_per_s?;
        let length = block.len() as u64;
        if self.until_probe < length {
            self.until_probe = (link / PROBES_PER_S).clamp(PROBE_BYTES.0, PROBE_BYTES.1);
            self.run(Codec::Lz4, block);
            self.run(Codec::Zstd, block);
        } else {
            self.until_probe -= length;
        }
        choose(link, &self.lz4_meter, &self.zstd_meter)
    }

    /// Compresses and measures.
    fn run(&mut self, codec: Codec, block: &[u8]) -> Option<usize> {
        let most = block.len() - block.len() / 8;
        let start = priority::used();
        // All that can fail is that the result does not fit.
        let length = match codec {
            Codec::Lz4 => {
                let table = self.lz4.get_or_insert_with(CompressTable::large);
                compress_into_with_table(block, &mut self.packed, table).ok()
            }
            Codec::Zstd => {
                let zstd = self.zstd.get_or_insert_with(|| {
                    Compressor::new(ZSTD_LEVEL).expect("the level is one of Zstandard's")
                });
                zstd.compress_to_buffer(block, &mut self.packed[..most])
                    .ok()
            }
        };
        let length = length.filter(|length| *length <= most);
        let meter = match codec {
            Codec::Lz4 => &mut self.lz4_meter,
            Codec::Zstd => &mut self.zstd_meter,
        };
        let used = priority::used().saturating_sub(start);
        meter.record(block.len(), length.unwrap_or(block.len()), used);
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static SAME: [u8; BLOCK_BYTES] = [7; BLOCK_BYTES];

    fn encoding(codecs: &mut Codecs, block: &[u8]) -> Option<Encoding> {
        codecs.pack(block).map(|(encoding, _)| encoding)
    }

    #[test]
    fn automatic_choice_waits_for_the_links_rate() {
        let mut codecs = Codecs::new(Compression::Auto);
        assert_eq!(encoding(&mut codecs, &SAME), None);
        codecs.set_link_rate(1_000_000);
        assert!(encoding(&mut codecs, &SAME).is_some());
    }

    #[test]
    fn change_of_content_is_noticed() {
        let mut random = vec![0; BLOCK_BYTES];
        let mut state = 1_u64;
        for byte in &mut random {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        let mut codecs = Codecs::new(Compression::Auto);
        // Slow enough for any build of the codecs on any host.
        codecs.set_link_rate(100_000);
        for _ in 0..100 {
            assert_eq!(encoding(&mut codecs, &random), None);
        }
        let mut raw = 0;
        while encoding(&mut codecs, &SAME).is_none() {
            raw += BLOCK_BYTES as u64;
        }
        assert!(raw <= 2 * PROBE_BYTES.0, "{raw}");
    }

    #[test]
    fn forced_codec_leaves_what_does_not_shrink() {
        for (mode, expected) in [
            (Compression::Lz4, Encoding::Lz4),
            (Compression::Zstd, Encoding::Zstd),
        ] {
            let mut codecs = Codecs::new(mode);
            assert_eq!(encoding(&mut codecs, &SAME), Some(expected));
            let counted: Vec<u8> = (0..=255).collect();
            assert_eq!(encoding(&mut codecs, &counted), None);
        }
        let mut none = Codecs::new(Compression::None);
        none.set_link_rate(1);
        assert_eq!(encoding(&mut none, &SAME), None);
    }
}
