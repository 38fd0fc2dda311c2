//! The used ring, several entries at a time (virtio 1.2, 2.7.8).
//!
//! `virtio-queue` publishes entries one by one, but the buffers of one packet must become
//! visible together (5.1.6.4.1); and it does not know VIRTQ_AVAIL_F_NO_INTERRUPT.

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;

/// What a driver has done to its rings. The device then needs a reset.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum BrokenRing {
    /// A ring is not in RAM, or its index has run away.
    #[error("a ring is out of RAM or its index is impossible")]
    Ring,
    /// A buffer is not in RAM.
    #[error("a buffer is not in RAM")]
    Address,
    /// A chain is too long or too short to be one.
    #[error("a descriptor chain has an impossible length")]
    Length,
}

/// The next chain that the driver has made available.
pub(super) fn next_chain<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemory,
) -> Result<Option<DescriptorChain<&'m GuestMemory>>, BrokenRing> {
    let chain = queue.iter(memory).map_err(|_| BrokenRing::Ring)?.next();
    match chain {
        Some(chain) if chain.head_index() >= queue.size() => Err(BrokenRing::Ring),
        chain => Ok(chain),
    }
}

/// Puts chains on the used ring, as `(head, bytes written)`, all at once.
pub(super) fn publish(
    queue: &mut Queue,
    memory: &GuestMemory,
    used: &[(u16, u32)],
) -> Result<(), BrokenRing> {
    let mut next = queue.next_used();
    for &(head, bytes) in used {
        // struct virtq_used_elem: id, len.
        let element = u64::from(head) | u64::from(bytes) << 32;
        let slot = u64::from(next % queue.size());
        let address = at(queue.used_ring(), 4 + 8 * slot)?;
        let written = memory.write_obj(element.to_le(), address);
        written.map_err(|_| BrokenRing::Ring)?;
        next = next.wrapping_add(1);
    }
    let stored = memory.store(next.to_le(), at(queue.used_ring(), 2)?, Ordering::Release);
    stored.map_err(|_| BrokenRing::Ring)?;
    queue.set_next_used(next);
    Ok(())
}

/// Whether the driver wants to know of what was published since the used ring stood at `old`.
pub(super) fn wants_notification(
    queue: &Queue,
    memory: &GuestMemory,
    old: u16,
) -> Result<bool, BrokenRing> {
    let new = queue.next_used();
    if new == old {
        return Ok(false);
    }
    // The driver writes what it wants and then looks at the used index; we the other way round.
    fence(Ordering::SeqCst);
    let load = |offset: u64| {
        let address = at(queue.avail_ring(), offset)?;
        let word = memory.load::<u16>(address, Ordering::Relaxed);
        word.map(u16::from_le).map_err(|_| BrokenRing::Ring)
    };
    if queue.event_idx_enabled() {
        let event = load(4 + 2 * u64::from(queue.size()))?;
        let ahead = new.wrapping_sub(event).wrapping_sub(1);
        Ok(ahead < new.wrapping_sub(old))
    } else {
        Ok(load(0)? & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }
}

/// The address `offset` bytes into a ring.
fn at(ring: u64, offset: u64) -> Result<GuestAddress, BrokenRing> {
    let address = ring.checked_add(offset);
    address.map(GuestAddress).ok_or(BrokenRing::Ring)
}
