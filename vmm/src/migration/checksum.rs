//! One number for all of guest RAM, to compare both sides while the guest stands.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use xxhash_rust::xxh3::Xxh3;

use crate::memory::GuestMemory;

/// Read at a time.
const CHUNK: usize = 1 << 20;

/// XXH3 (64 bits) over all regions in their order.
pub fn of(memory: &GuestMemory) -> u64 {
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; CHUNK];
    for region in memory.iter() {
        let (start, len) = (region.start_addr().0, region.len());
        for offset in (0..len).step_by(CHUNK) {
            let chunk = &mut buffer[..(len - offset).min(CHUNK as u64) as usize];
            memory
                .read_slice(chunk, GuestAddress(start + offset))
                .expect("the range is in the region");
            hash.update(chunk);
        }
    }
    hash.digest()
}
