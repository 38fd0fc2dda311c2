//! Guest RAM: where it lies, what stands behind it, and which pages were written.
//!
//! All RAM is mapped once when the machine is built and never again. Writes by our own devices
//! go through `vm-memory`, whose bitmap records them; KVM's log records the guest's. What the
//! kernel writes on a device's behalf (io_uring, tap reads) neither sees, so a device calls
//! [`mark_dirty`].

use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Guest RAM with a dirty bitmap of 4096-byte pages.
pub type GuestMemory = GuestMemoryMmap<AtomicBitmap>;

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
