//! Two machines' RAM, one encoder, one decoder.

use std::sync::Arc;

use pindah_vmm_api::Compression;
use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::block::Extents;
use super::*;
use crate::memory::{GuestMemory, GuestRegion};
use crate::migration::protocol::{FrameHeader, HEADER_BYTES, Kind, MAX_PAGES_BYTES};

/// Two regions with a hole between them.
const REGIONS: [(u64, usize); 2] = [(0, 24), (0x40_0000, 24)];
const SLOW: u64 = 1_000_000;
const FAST: u64 = 10_000_000_000;

fn ram() -> Arc<GuestMemory> {
    let ranges = REGIONS.map(|(start, pages)| (GuestAddress(start), pages * PAGE));
    Arc::new(GuestMemory::from_ranges(&ranges).unwrap())
}

/// GPA of a page, counted through both regions.
fn gpa(page: usize) -> u64 {
    let (region, page) = (page / REGIONS[0].1, page % REGIONS[0].1);
    REGIONS[region].0 + (page * PAGE) as u64
}

fn page(memory: &GuestMemory, page: usize) -> Page {
    let mut content = [0; PAGE];
    memory
        .read_slice(&mut content, GuestAddress(gpa(page)))
        .unwrap();
    content
}

fn put(memory: &GuestMemory, page: usize, content: &Page) {
    memory
        .write_slice(content, GuestAddress(gpa(page)))
        .unwrap();
}

fn text(seed: u8) -> Page {
    let words = [&b"guest "[..], b"memory ", b"moves ", b"slowly "];
    let mut state = u32::from(seed) + 1;
    let mut content = Vec::new();
    while content.len() < PAGE {
        state = state.wrapping_mul(747796405).wrapping_add(2891336453);
        content.extend_from_slice(words[(state >> 30) as usize]);
    }
    *content.first_chunk().unwrap()
}

fn noise(seed: u8) -> Page {
    let mut state = u64::from(seed) + 1;
    std::array::from_fn(|_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 56) as u8
    })
}

/// The bodies in `bytes`, which are whole frames.
fn bodies(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut bodies = Vec::new();
    while let Some((&header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let header = FrameHeader::decode(header).unwrap();
        assert_eq!(header.kind, Kind::Pages);
        let (body, rest) = rest.split_at(header.length);
        bodies.push(body);
        bytes = rest;
    }
    assert!(bytes.is_empty());
    bodies
}

fn encoder(memory: &Arc<GuestMemory>, compression: Compression, cached_pages: usize) -> Encoder {
    let options = EncoderOptions {
        compression,
        delta_cache_bytes: (cached_pages * PAGE) as u64,
    };
    Encoder::new(Arc::clone(memory), options)
}

/// Both sides, with all that was sent applied.
struct Pair {
    source: Arc<GuestMemory>,
    destination: Arc<GuestMemory>,
    encoder: Encoder,
    decoder: Decoder,
}

impl Pair {
    fn new(compression: Compression, cached_pages: usize) -> Self {
        let (source, destination) = (ram(), ram());
        Self {
            encoder: encoder(&source, compression, cached_pages),
            decoder: Decoder::new(Arc::clone(&destination)),
            source,
            destination,
        }
    }

    /// Sends pages, which ascend. Returns the bodies' sizes.
    fn send(&mut self, pages: &[usize]) -> Vec<usize> {
        let runs: Vec<(u64, u32)> = pages.iter().map(|&page| (gpa(page), 1)).collect();
        let mut out = vec![0xaa; 3];
        self.encoder.encode_runs(&runs, &mut out).unwrap();
        let bodies = bodies(&out[3..]);
        for body in &bodies {
            self.decoder.apply(body).unwrap();
        }
        for &number in pages {
            assert!(
                page(&self.source, number) == page(&self.destination, number),
                "page {number} differs"
            );
        }
        bodies.iter().map(|body| body.len()).collect()
    }
}

#[test]
fn pages_take_the_cheapest_way() {
    let mut pair = Pair::new(Compression::Zstd, 48);
    pair.encoder.set_link_rate(SLOW);
    for number in 8..24 {
        put(&pair.source, number, &text(number as u8));
    }
    for number in 24..40 {
        put(&pair.source, number, &noise(number as u8));
    }
    let all: Vec<usize> = (0..48).collect();
    let first = pair.send(&all);
    let mut counted = text(8);
    counted[80..88].fill(1);
    put(&pair.source, 8, &counted);
    let second = pair.send(&all);
    pair.encoder.count_untouched(5);

    let statistics = pair.encoder.statistics();
    assert_eq!(statistics.untouched_pages, 5);
    assert_eq!(statistics.zero_pages, 32);
    assert_eq!(statistics.compressed_pages, 16);
    assert_eq!(statistics.raw_pages, 16);
    assert_eq!(statistics.delta_pages, 1);
    assert_eq!(statistics.unchanged_pages, 31);
    let frames = first.iter().chain(&second);
    let sent: usize = frames.map(|body| body + HEADER_BYTES).sum();
    assert_eq!(statistics.wire_bytes, sent as u64);
    assert!(second.iter().sum::<usize>() < 100, "{second:?}");
}

#[test]
fn scattered_pages_share_a_frame() {
    let mut pair = Pair::new(Compression::None, 0);
    let odd: Vec<usize> = (1..48).step_by(2).collect();
    for &number in &odd[..6] {
        put(&pair.source, number, &noise(number as u8));
    }
    assert_eq!(pair.send(&odd), [8 + 6 * (8 + PAGE) + 8 + 18 * 8]);
}

#[test]
fn frames_have_the_size_that_was_asked_for() {
    let mut pair = Pair::new(Compression::None, 0);
    for number in 0..48 {
        put(&pair.source, number, &noise(number as u8));
    }
    let all: Vec<usize> = (0..48).collect();
    for (asked, most) in [(0, PAGE), (20_000, 4 * PAGE), (64 << 10, 16 * PAGE)] {
        pair.encoder.set_frame_bytes(asked);
        let sizes = pair.send(&all);
        assert!(sizes.iter().all(|size| *size < most + 100), "{sizes:?}");
        assert!(sizes.iter().filter(|size| **size > most).count() >= 2);
    }
    pair.encoder.set_frame_bytes(usize::MAX);
    assert_eq!(pair.send(&all).len(), 1);
}

#[test]
fn differences_wait_for_a_slow_link() {
    let mut pair = Pair::new(Compression::Auto, 48);
    put(&pair.source, 3, &noise(1));
    pair.send(&[3]);
    pair.send(&[3]);
    pair.encoder.set_link_rate(FAST);
    pair.send(&[3]);
    assert_eq!(pair.encoder.statistics().raw_pages, 3);

    pair.encoder.set_link_rate(SLOW);
    pair.send(&[3]);
    pair.encoder.set_link_rate(FAST);
    put(&pair.source, 3, &noise(2));
    pair.send(&[3]);
    assert!(pair.send(&[3]).is_empty());
    assert_eq!(pair.encoder.statistics().raw_pages, 5);
    assert_eq!(pair.encoder.statistics().unchanged_pages, 1);
}

#[test]
fn runs_that_are_wrong_are_refused_and_encode_nothing() {
    let memory = ram();
    let mut encoder = encoder(&memory, Compression::None, 0);
    put(&memory, 0, &noise(0));
    let mut out = Vec::new();
    let address = |first_gpa, pages| EncodeError::Address { first_gpa, pages };
    for (runs, expected) in [
        (&[(0, 1), (0x40_0000, 25)][..], address(0x40_0000, 25)),
        (&[(0, 1), (0x1_8000, 1)], address(0x1_8000, 1)),
        (&[(0, 1), (0x1001, 1)], address(0x1001, 1)),
        (&[(0, u32::MAX)], address(0, u32::MAX)),
        (&[(0, 1), (u64::MAX - 4095, 1)], address(u64::MAX - 4095, 1)),
        (
            &[(0, 2), (0x1000, 1)],
            EncodeError::Order { first_gpa: 0x1000 },
        ),
        (&[(0x1000, 1), (0, 1)], EncodeError::Order { first_gpa: 0 }),
    ] {
        assert_eq!(encoder.encode_runs(runs, &mut out), Err(expected));
    }
    assert!(out.is_empty());
    assert_eq!(
        encoder.statistics(),
        pindah_vmm_api::PageStatistics::default()
    );
}

#[test]
fn zeroes_leave_fresh_ram_untouched() {
    let mut pair = Pair::new(Compression::None, 0);
    put(&pair.source, 7, &noise(0));
    pair.send(&[7]);
    put(&pair.source, 7, &[0; PAGE]);
    for region in pair.destination.iter() {
        region.bitmap().reset();
    }
    pair.send(&(0..48).collect::<Vec<_>>());
    let is_written = |region: &GuestRegion, at| region.bitmap().dirty_at(at * PAGE);
    let written = pair
        .destination
        .iter()
        .flat_map(|region| (0..24).filter(|at| is_written(region, *at)));
    assert_eq!(written.collect::<Vec<_>>(), [7]);
}

/// A body of one block.
fn body(encoding: Encoding, first_page: usize, pages: usize, payload: &[u8]) -> Vec<u8> {
    let mut extents = Extents::default();
    for page in 0..pages {
        extents.push(gpa(first_page) + (page * PAGE) as u64);
    }
    let mut body = Vec::new();
    extents.write_block(encoding, payload, &mut body);
    body
}

#[test]
fn payload_of_another_size_is_refused() {
    let zeroes = vec![0; 1 << 20];
    let zstd = |bytes| zstd::bulk::compress(&zeroes[..bytes], 1).unwrap();
    let lz4 = |bytes| lz4_flex::block::compress(&zeroes[..bytes]);
    let memory = ram();
    let mut decoder = Decoder::new(Arc::clone(&memory));
    put(&memory, 0, &noise(0));
    for (encoding, pages, payload) in [
        (Encoding::Zstd, 1, zstd(1 << 20)),
        (Encoding::Zstd, 2, zstd(PAGE)),
        (Encoding::Zstd, 17, zstd(17 * PAGE)),
        (Encoding::Zstd, 2, [zstd(PAGE), zstd(2 * PAGE)].concat()),
        (Encoding::Lz4, 1, lz4(1 << 20)),
        (Encoding::Lz4, 2, lz4(PAGE)),
        (Encoding::Lz4, 17, lz4(17 * PAGE)),
        (Encoding::Raw, 1, vec![0; PAGE + 1]),
        (Encoding::Raw, 2, vec![0; PAGE]),
        (Encoding::Zero, 1, vec![0]),
        (Encoding::Delta, 1, vec![0, 0]),
        (Encoding::Delta, 2, vec![0]),
    ] {
        let applied = decoder.apply(&body(encoding, 0, pages, &payload));
        let expected = DecodeError::Payload {
            first_gpa: 0,
            pages: pages as u64,
            encoding,
            length: payload.len(),
        };
        assert_eq!(applied, Err(expected));
    }
    assert!(page(&memory, 0) == noise(0));
}

#[test]
fn pages_that_are_no_ram_are_refused() {
    let mut decoder = Decoder::new(ram());
    for (encoding, payload) in [
        (Encoding::Zero, vec![]),
        (Encoding::Raw, vec![1; 2 * PAGE]),
        (Encoding::Delta, vec![0; 2]),
    ] {
        let applied = decoder.apply(&body(encoding, 23, 2, &payload));
        let first_gpa = gpa(23);
        assert_eq!(
            applied,
            Err(DecodeError::Address {
                first_gpa,
                pages: 2
            })
        );
    }
}

#[test]
fn frame_of_more_pages_than_allowed_is_refused() {
    let mut decoder = Decoder::new(ram());
    let most = body(Encoding::Zero, 0, 16, &[]).repeat(FRAME_PAGES as usize / 16);
    assert!(most.len() < MAX_PAGES_BYTES);
    assert_eq!(decoder.apply(&most), Ok(Applied { pages: FRAME_PAGES }));
    let more = [most, body(Encoding::Zero, 0, 1, &[])].concat();
    assert_eq!(decoder.apply(&more), Err(DecodeError::TooManyPages));
}

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![
        Just(Compression::Auto),
        Just(Compression::None),
        Just(Compression::Lz4),
        Just(Compression::Zstd),
    ]
}

/// What happens between two passes.
#[derive(Clone, Debug)]
enum Step {
    /// The guest fills a page.
    Fill(usize, Box<Page>),
    /// The guest writes into a page.
    Poke(usize, usize, u8),
    /// The link's rate, or the size of frames, is another.
    Link(u64),
    Frame(usize),
    /// These pages are sent once more though nothing was written.
    Again(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0..48_usize;
    let content = prop_oneof![
        Just([0; PAGE]),
        any::<u8>().prop_map(text),
        any::<u8>().prop_map(noise),
        any::<u8>().prop_map(|byte| [byte; PAGE]),
    ];
    prop_oneof![
        4 => (number.clone(), content).prop_map(|(page, content)| Step::Fill(page, Box::new(content))),
        8 => (number, 0..PAGE, any::<u8>()).prop_map(|(page, at, byte)| Step::Poke(page, at, byte)),
        1 => prop_oneof![Just(SLOW), Just(FAST), any::<u64>()].prop_map(Step::Link),
        1 => (0..600_000_usize).prop_map(Step::Frame),
        2 => any::<u64>().prop_map(Step::Again),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn destination_equals_the_source_after_every_pass(
        compression in compression(),
        cached_pages in prop_oneof![Just(0), 1..8_usize, Just(48)],
        rate in prop_oneof![Just(None), Just(Some(SLOW)), Just(Some(FAST))],
        passes in vec(vec(step(), 0..24), 1..8),
    ) {
        let mut pair = Pair::new(compression, cached_pages);
        if let Some(rate) = rate {
            pair.encoder.set_link_rate(rate);
        }
        for steps in passes {
            let mut pages = 0_u64;
            for step in steps {
                match step {
                    Step::Fill(number, content) => {
                        put(&pair.source, number, &content);
                        pages |= 1 << number;
                    }
                    Step::Poke(number, at, byte) => {
                        let address = GuestAddress(gpa(number) + at as u64);
                        pair.source.write_obj(byte, address).unwrap();
                        pages |= 1 << number;
                    }
                    Step::Link(rate) => pair.encoder.set_link_rate(rate),
                    Step::Frame(bytes) => pair.encoder.set_frame_bytes(bytes),
                    Step::Again(more) => pages |= more,
                }
            }
            let numbers: Vec<usize> = (0..48).filter(|number| pages >> number & 1 != 0).collect();
            let sizes = pair.send(&numbers);
            prop_assert!(sizes.iter().all(|size| *size <= MAX_PAGES_BYTES));
            for number in 0..48 {
                prop_assert!(page(&pair.source, number) == page(&pair.destination, number));
            }
        }
    }

    #[test]
    fn any_body_is_applied_or_refused(bytes in vec(any::<u8>(), 0..300)) {
        let _ = Decoder::new(ram()).apply(&bytes);
    }

    #[test]
    fn mutated_body_is_applied_or_refused(
        compression in compression(),
        steps in vec(step(), 0..24),
        mutations in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let memory = ram();
        let mut encoder = encoder(&memory, compression, 48);
        encoder.set_link_rate(SLOW);
        let mut out = Vec::new();
        for _ in 0..2 {
            out.clear();
            for step in &steps {
                match step {
                    Step::Fill(number, content) => put(&memory, *number, content),
                    &Step::Poke(number, at, byte) => {
                        let address = GuestAddress(gpa(number) + at as u64);
                        memory.write_obj(byte, address).unwrap();
                    }
                    _ => {}
                }
            }
            encoder.encode_runs(&[(0, 24), (gpa(24), 24)], &mut out).unwrap();
        }
        let mut decoder = Decoder::new(ram());
        for body in bodies(&out) {
            let mut body = body.to_vec();
            for (at, byte) in &mutations {
                let at = at.index(body.len());
                body[at] = *byte;
            }
            let _ = decoder.apply(&body);
        }
    }
}
