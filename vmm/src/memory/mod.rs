//! Guest RAM: where it lies, what stands behind it, and which pages were written.
//!
//! All RAM is mapped once when the machine is built and never again. Writes by our own devices
//! go through `vm-memory`, whose bitmap records them; KVM's log records the guest's. What the
//! kernel writes on a device's behalf (io_uring, tap reads) neither sees, so a device calls
//! [`mark_dirty`].

mod build;
mod dirty;
mod touched;
pub mod userfault;
mod zero;

use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

pub use build::{MemoryError, build};
pub use dirty::{DirtyLog, DirtyLogError, DirtyRegion, set_memslot};
pub use touched::PageMap;
pub use zero::is_zero;

/// Size of a page of the dirty log in bytes, whatever the host maps.
pub const PAGE_SIZE: u64 = 4096;

/// Guest RAM with a dirty bitmap of 4096-byte pages.
pub type GuestMemory = GuestMemoryMmap<AtomicBitmap>;

/// One contiguous range of [`GuestMemory`]; its index is its memslot.
pub type GuestRegion = GuestRegionMmap<AtomicBitmap>;

/// The log of our devices' writes into a region.
fn device_log(region: &GuestRegion) -> &AtomicBitmap {
    // The region has a method of this name too, which gives a view and not the bitmap.
    let mapping: &MmapRegion<AtomicBitmap> = region;
    mapping.bitmap()
}

/// What our devices wrote into a region since the last call: one bit a page.
#[cfg(test)]
pub(crate) fn device_log_words(region: &GuestRegion) -> Vec<u64> {
    device_log(region).get_and_reset()
}

/// Marks `len` bytes at `address` as written. Parts that are not RAM are passed over.
pub fn mark_dirty(memory: &GuestMemory, address: GuestAddress, len: usize) {
    let start = address.0;
    let end = start.saturating_add(len as u64);
    for region in memory.iter() {
        let (low, high) = (region.start_addr().0, region.start_addr().0 + region.len());
        if start < high && low < end {
            let from = start.max(low);
            let count = end.min(high) - from;
            region
                .bitmap()
                .mark_dirty((from - low) as usize, count as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_dirty_across_a_hole_marks_only_ram() {
        let ranges = [(GuestAddress(0), 0x2000), (GuestAddress(0x4000), 0x2000)];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();

        mark_dirty(&memory, GuestAddress(0x1fff), 0x2002);

        let dirty: Vec<Vec<u64>> = memory
            .iter()
            .map(|region| device_log(region).get_and_reset())
            .collect();
        assert_eq!(dirty, [[0b10], [0b01]]);
    }
}
