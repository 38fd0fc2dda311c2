//! Frames of pages: a migration's encoder makes them, they are corrupted, and the decoder applies
//! them to RAM that has neighbours.

use std::sync::{Arc, LazyLock, Mutex};

use pindah_vmm::memory::GuestMemory;
use pindah_vmm::migration::pages::{Decoder, Encoder, EncoderOptions};
use pindah_vmm::migration::protocol::{HEADER_BYTES, MAX_PAGES_BYTES};
use pindah_vmm_api::Compression;
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, MmapRegion, VolatileMemory};

use crate::input::Input;

const PAGE: usize = 4096;
/// Two regions of as many pages, with a page of the host's before, between and behind them.
const REGION_PAGES: usize = 8;
pub(crate) const REGIONS: [u64; 2] = [0, 0x10_0000];
/// Size of each.
pub(crate) const REGION_BYTES: usize = REGION_PAGES * PAGE;
const GUARD: u8 = 0xa5;
/// A rate at which the encoder makes differences.
const SLOW: u64 = 1_000_000;

struct Fixture {
    source: Arc<GuestMemory>,
    host: MmapRegion,
    destination: Arc<GuestMemory>,
    decoder: Decoder,
}

static FIXTURE: LazyLock<Mutex<Fixture>> = LazyLock::new(|| Mutex::new(Fixture::new()));

/// Where a region lies in the host's mapping; the page before it is a guard.
fn offset(region: usize) -> usize {
    (1 + region * (REGION_PAGES + 1)) * PAGE
}

impl Fixture {
    fn new() -> Self {
        let bytes = REGION_BYTES;
        let ranges = REGIONS.map(|start| (GuestAddress(start), bytes));
        let source = GuestMemory::from_ranges(&ranges).expect("a host that maps 64 KiB");
        let host = MmapRegion::new(offset(REGIONS.len())).expect("a host that maps 80 KiB");
        for guard in 0..=REGIONS.len() {
            let guard = host.get_slice(offset(guard) - PAGE, PAGE);
            guard.expect("it is mapped").copy_from(&[GUARD; PAGE]);
        }
        let regions = (0..REGIONS.len()).map(|region| {
            let bitmap = AtomicBitmap::with_len(bytes);
            let start = host.as_ptr().wrapping_add(offset(region));
            // SAFETY: these pages are mapped for as long as `host` lives, which is in the same
            // fixture, and no other region has them.
            let builder = unsafe {
                MmapRegionBuilder::new_with_bitmap(bytes, bitmap).with_raw_mmap_pointer(start)
            };
            let mapping = builder.build().expect("whole pages");
            GuestRegionMmap::new(mapping, GuestAddress(REGIONS[region])).expect("a low address")
        });
        let destination = GuestMemory::from_regions(regions.collect());
        let destination = Arc::new(destination.expect("regions that ascend"));
        Self {
            source: Arc::new(source),
            host,
            decoder: Decoder::new(Arc::clone(&destination)),
            destination,
        }
    }

    fn assert_guards(&self) {
        for guard in 0..=REGIONS.len() {
            let mut content = [0; PAGE];
            let guard = self.host.get_slice(offset(guard) - PAGE, PAGE);
            guard.expect("it is mapped").copy_to(&mut content);
            assert!(content == [GUARD; PAGE], "written outside of RAM");
        }
    }
}

fn gpa(page: usize) -> GuestAddress {
    let (region, page) = (page / REGION_PAGES, page % REGION_PAGES);
    GuestAddress(REGIONS[region] + (page * PAGE) as u64)
}

fn read(memory: &GuestMemory, page: usize) -> [u8; PAGE] {
    let mut content = [0; PAGE];
    let done = memory.read_slice(&mut content, gpa(page));
    done.expect("it is RAM");
    content
}

fn write(memory: &GuestMemory, page: usize, content: &[u8]) {
    let done = memory.write_slice(content, gpa(page));
    done.expect("it is RAM");
}

/// Runs one case.
pub fn run(data: &[u8]) {
    let mut fixture = FIXTURE.lock().expect("a failed case ends the process");
    let fixture = &mut *fixture;
    let input = &mut Input::new(data);
    for page in 0..REGIONS.len() * REGION_PAGES {
        write(&fixture.source, page, &[0; PAGE]);
        write(&fixture.destination, page, &[0; PAGE]);
    }
    if input.chance(4) {
        let body = blocks(input);
        // What is wrong is refused.
        let _ = fixture.decoder.apply(&body);
    } else {
        passes(fixture, input);
    }
    fixture.assert_guards();
}

/// Passes over the source's RAM, until one of them is corrupted.
fn passes(fixture: &mut Fixture, input: &mut Input) {
    let options = EncoderOptions {
        compression: input.pick(&[Compression::None, Compression::Lz4, Compression::Zstd]),
        delta_cache_bytes: input.pick(&[0, 2 * PAGE as u64, 1 << 20]),
    };
    let mut encoder = Encoder::new(Arc::clone(&fixture.source), options);
    encoder.set_link_rate(SLOW);
    let mut frames = Vec::new();
    for _ in 0..=input.below(3) {
        guest_writes(&fixture.source, input);
        frames.clear();
        encoder.set_frame_bytes(input.edge() as usize);
        let runs = REGIONS.map(|start| (start, REGION_PAGES as u32));
        let done = encoder.encode_runs(&runs, &mut frames);
        done.expect("the runs are all of RAM");
        let corrupted = input.chance(2);
        let mut rest = &frames[..];
        while let Some((&[_, _, _, _, a, b, c, d], following)) = rest.split_first_chunk() {
            let length = u32::from_le_bytes([a, b, c, d]) as usize;
            assert!(length <= MAX_PAGES_BYTES && rest.len() >= HEADER_BYTES + length);
            let (body, following) = following.split_at(length);
            if corrupted {
                let mut body = body.to_vec();
                corrupt(&mut body, input);
                let _ = fixture.decoder.apply(&body);
            } else {
                let applied = fixture.decoder.apply(body);
                applied.expect("what was encoded can be applied");
            }
            rest = following;
        }
        if corrupted {
            return;
        }
        for page in 0..REGIONS.len() * REGION_PAGES {
            let same = read(&fixture.source, page) == read(&fixture.destination, page);
            assert!(same, "page {page} is another after the pass");
        }
    }
}

fn guest_writes(memory: &GuestMemory, input: &mut Input) {
    for _ in 0..input.below(12) {
        let page = input.below(REGIONS.len() * REGION_PAGES);
        match input.below(6) {
            0 => write(memory, page, &[input.byte(); PAGE]),
            1 => {
                let mut state = input.qword();
                let noise: [u8; PAGE] = std::array::from_fn(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                    (state >> 56) as u8
                });
                write(memory, page, &noise);
            }
            _ => {
                let mut content = read(memory, page);
                let at = input.below(PAGE - 8);
                content[at..at + 8].copy_from_slice(&input.qword().to_le_bytes());
                write(memory, page, &content);
            }
        }
    }
}

/// Changes bytes, most of them where headers and extents are.
fn corrupt(body: &mut Vec<u8>, input: &mut Input) {
    for _ in 0..=input.below(4) {
        let near = if input.chance(3) { body.len() } else { 32 };
        let at = input.below(near.min(body.len()));
        match input.below(6) {
            0 => body[at] ^= 1 << input.below(8),
            1 => {
                let value = input.edge().to_le_bytes();
                let end = (at + 8).min(body.len());
                body[at..end].copy_from_slice(&value[..end - at]);
            }
            2 => body.truncate(at + 1),
            3 => body.insert(at, input.byte()),
            4 => body.extend_from_within(at..),
            _ => body[at] = input.byte(),
        }
    }
}

/// Blocks with proper headers around anything.
pub(crate) fn blocks(input: &mut Input) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..=input.below(3) {
        let encoding = input.below(5) as u8;
        let extents = 1 + input.below(3);
        body.extend([encoding, 0, extents as u8, 0]);
        let length = body.len();
        body.extend([0; 4]);
        for _ in 0..extents {
            let first = gpa(input.below(REGIONS.len() * REGION_PAGES)).0;
            let first = if input.chance(8) { input.edge() } else { first };
            let further = if input.chance(4) {
                input.below(PAGE)
            } else {
                input.below(2)
            };
            body.extend((first | further as u64).to_le_bytes());
        }
        let payload = input.bytes(200);
        body[length..length + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        body.extend(payload);
    }
    body
}
