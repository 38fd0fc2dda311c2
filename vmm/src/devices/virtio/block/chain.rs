//! Descriptor chains: from a head in the descriptor table to a list of guest buffers.
//!
//! `virtio-queue` keeps the rings; its chain iterator, however, ends a broken chain as if it were
//! complete and cannot start from a head that was taken before. A request that is kept over a
//! pause needs the second, a hostile guest the first.

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::memory::GuestMemory;

/// Longest chain that is accepted, indirect descriptors included: what `preadv` takes
/// (`IOV_MAX`), and the largest queue that the configuration allows.
pub(super) const MAX_DESCRIPTORS: usize = 1024;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub address: GuestAddress,
    /// Never 0.
    pub len: u32,
}

/// Why a chain cannot be served at all (virtio 1.2, 2.7.5): the driver is broken, or hostile.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum ChainError {
    #[error("descriptor {index} is beyond a table of {len}")]
    Index { index: u32, len: u32 },
    #[error("the descriptor table at {0:#x} is outside RAM")]
    Table(u64),
    #[error("the chain has more than {MAX_DESCRIPTORS} descriptors, or a loop")]
    TooLong,
    #[error("the indirect table of {0} bytes is empty, too long or not whole")]
    IndirectLength(u32),
    #[error("an indirect descriptor has a next one, or stands in an indirect table")]
    IndirectNested,
    #[error("the buffer at {address:#x} has no bytes")]
    Empty { address: u64 },
    #[error("the buffer at {address:#x} of {len} bytes is not in RAM")]
    OutsideRam { address: u64, len: u32 },
    #[error("a buffer for the driver to write stands after one for the device to write")]
    Order,
    #[error("the header is {0} bytes short")]
    Header(usize),
    #[error("there is no byte for the status")]
    Status,
}

/// A chain's buffers, split by who writes them. Reused from chain to chain.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// Written by the driver, in order.
    pub readable: Vec<Segment>,
    /// For the device to write, in order.
    pub writable: Vec<Segment>,
}

impl Chain {
    /// Takes the chain that starts at `head`. Every buffer is checked to lie in RAM.
    ///
    /// # Errors
    /// [`ChainError`]; the lists then hold what came before the fault.
    pub fn walk(
        &mut self,
        memory: &GuestMemory,
        queue: &Queue,
        head: u16,
    ) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        let mut table = GuestAddress(queue.desc_table());
        let mut len = u32::from(queue.size());
        let mut index = u32::from(head);
        let mut indirect = false;
        for _ in 0..=MAX_DESCRIPTORS {
            let descriptor = read(memory, table, len, index)?;
            if descriptor.refers_to_indirect_table() {
                if indirect || descriptor.has_next() {
                    return Err(ChainError::IndirectNested);
                }
                (table, len) = indirect_table(&descriptor)?;
                (index, indirect) = (0, true);
                continue;
            }
            self.push(memory, &descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = u32::from(descriptor.next());
        }
        Err(ChainError::TooLong)
    }

    fn push(&mut self, memory: &GuestMemory, descriptor: &Descriptor) -> Result<(), ChainError> {
        let (address, len) = (descriptor.addr(), descriptor.len());
        if len == 0 {
            return Err(ChainError::Empty { address: address.0 });
        }
        if !GuestMemoryBackend::check_range(memory, address, len as usize) {
            let address = address.0;
            return Err(ChainError::OutsideRam { address, len });
        }
        if self.readable.len() + self.writable.len() == MAX_DESCRIPTORS {
            return Err(ChainError::TooLong);
        }
        if descriptor.is_write_only() {
            self.writable.push(Segment { address, len });
        } else if self.writable.is_empty() {
            self.readable.push(Segment { address, len });
        } else {
            return Err(ChainError::Order);
        }
        Ok(())
    }
}

fn read(
    memory: &GuestMemory,
    table: GuestAddress,
    len: u32,
    index: u32,
) -> Result<Descriptor, ChainError> {
    if index >= len {
        return Err(ChainError::Index { index, len });
    }
    let offset = u64::from(index) * size_of::<Descriptor>() as u64;
    let address = table.0.checked_add(offset).map(GuestAddress);
    address
        .and_then(|address| memory.read_obj(address).ok())
        .ok_or(ChainError::Table(table.0))
}

fn indirect_table(descriptor: &Descriptor) -> Result<(GuestAddress, u32), ChainError> {
    let bytes = descriptor.len();
    let entry = size_of::<Descriptor>() as u32;
    if bytes == 0 || !bytes.is_multiple_of(entry) || bytes / entry > u32::from(u16::MAX) {
        return Err(ChainError::IndirectLength(bytes));
    }
    Ok((descriptor.addr(), bytes / entry))
}

/// Bytes in all of `segments`.
pub(super) fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Removes the first `count` bytes, which must be there.
pub(super) fn drop_front(segments: &mut Vec<Segment>, mut count: u32) {
    let mut whole = 0;
    for segment in segments.iter_mut() {
        if segment.len > count {
            segment.address.0 += u64::from(count);
            segment.len -= count;
            break;
        }
        count -= segment.len;
        whole += 1;
    }
    segments.drain(..whole);
}

/// Removes the last byte and says where it is; `None` if there is none.
pub(super) fn take_last_byte(segments: &mut Vec<Segment>) -> Option<GuestAddress> {
    let last = segments.last_mut()?;
    last.len -= 1;
    let address = GuestAddress(last.address.0 + u64::from(last.len));
    if last.len == 0 {
        segments.pop();
    }
    Some(address)
}
