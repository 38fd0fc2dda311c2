//! Block requests: from a descriptor chain to an operation on the disk (virtio 1.2, 5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, ChainError, Segment, drop_front, take_last_byte, total};
use crate::memory::GuestMemory;

/// The unit of the protocol's sector numbers, whatever the disk's block size (5.2.2).
pub(super) const SECTOR_SIZE: u64 = 512;
/// Most sectors that one discard may name: 2 GiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Most sectors that one write-zeroes request may name: 64 MiB, as some storage must be zeroed by
/// hand, and the queue waits for that.
pub(super) const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 17;

const HEADER_LEN: usize = 16;
const ZERO_SEGMENT_LEN: usize = 16;

/// What is to be done on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// What was completed before is on stable storage when this is done.
    Flush,
    /// The range's content is no longer needed.
    Discard,
    /// The range reads as zeroes; with `unmap` it may be deallocated too.
    WriteZeroes {
        unmap: bool,
    },
}

/// A request that is sound and within the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    pub kind: Kind,
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes on the disk.
    pub len: u64,
}

/// What to do with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Do this with the chain's data buffers.
    Submit(Operation),
    /// Put the disk's serial number into the data buffers.
    GetId,
    /// Answer with this status at once.
    Reply(u8),
}

/// A chain that can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub action: Action,
    /// Where the status byte goes.
    pub status: GuestAddress,
}

/// What the disk allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub capacity_sectors: u64,
    pub read_only: bool,
}

/// Takes the header and the status byte off `chain`, whose lists then hold data only.
///
/// # Errors
/// [`ChainError`] if the chain cannot even be answered.
pub(super) fn parse(
    memory: &GuestMemory,
    chain: &mut Chain,
    limits: Limits,
) -> Result<Request, ChainError> {
    let mut header = [0; HEADER_LEN];
    gather(memory, &mut chain.readable, &mut header)?;
    let status = take_last_byte(&mut chain.writable).ok_or(ChainError::Status)?;
    let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
    let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
    let action = action(memory, chain, limits, kind, sector)?;
    Ok(Request { action, status })
}

fn action(
    memory: &GuestMemory,
    chain: &mut Chain,
    limits: Limits,
    kind: u32,
    sector: u64,
) -> Result<Action, ChainError> {
    Ok(match kind {
        VIRTIO_BLK_T_IN => transfer(Kind::Read, &chain.writable, limits, sector),
        VIRTIO_BLK_T_OUT if limits.read_only => Action::Reply(VIRTIO_BLK_S_IOERR as u8),
        VIRTIO_BLK_T_OUT => transfer(Kind::Write, &chain.readable, limits, sector),
        VIRTIO_BLK_T_FLUSH => Action::Submit(Operation {
            kind: Kind::Flush,
            offset: 0,
            len: 0,
        }),
        VIRTIO_BLK_T_GET_ID => Action::GetId,
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.read_only => {
            Action::Reply(VIRTIO_BLK_S_IOERR as u8)
        }
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            // One segment a request is what the configuration space promises.
            if total(&chain.readable) != ZERO_SEGMENT_LEN as u64 {
                return Ok(Action::Reply(VIRTIO_BLK_S_IOERR as u8));
            }
            let mut segment = [0; ZERO_SEGMENT_LEN];
            gather(memory, &mut chain.readable, &mut segment)?;
            zero_segment(kind == VIRTIO_BLK_T_DISCARD, &segment, limits)
        }
        _ => Action::Reply(VIRTIO_BLK_S_UNSUPP as u8),
    })
}

fn transfer(kind: Kind, data: &[Segment], limits: Limits, sector: u64) -> Action {
    let bytes = total(data);
    if !bytes.is_multiple_of(SECTOR_SIZE) || !within(limits, sector, bytes / SECTOR_SIZE) {
        return Action::Reply(VIRTIO_BLK_S_IOERR as u8);
    }
    Action::Submit(Operation {
        kind,
        offset: sector * SECTOR_SIZE,
        len: bytes,
    })
}

/// struct virtio_blk_discard_write_zeroes (5.2.6): sector, number of sectors, flags.
fn zero_segment(discard: bool, segment: &[u8; ZERO_SEGMENT_LEN], limits: Limits) -> Action {
    let sector = u64::from_le_bytes(segment[..8].try_into().expect("eight bytes"));
    let sectors = u32::from_le_bytes(segment[8..12].try_into().expect("four bytes"));
    let flags = u32::from_le_bytes(segment[12..].try_into().expect("four bytes"));
    let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (discard && unmap) {
        return Action::Reply(VIRTIO_BLK_S_UNSUPP as u8);
    }
    let most = if discard {
        MAX_DISCARD_SECTORS
    } else {
        MAX_WRITE_ZEROES_SECTORS
    };
    if sectors > most || !within(limits, sector, u64::from(sectors)) {
        return Action::Reply(VIRTIO_BLK_S_IOERR as u8);
    }
    let kind = if discard {
        Kind::Discard
    } else {
        Kind::WriteZeroes { unmap }
    };
    Action::Submit(Operation {
        kind,
        offset: sector * SECTOR_SIZE,
        len: u64::from(sectors) * SECTOR_SIZE,
    })
}

fn within(limits: Limits, sector: u64, sectors: u64) -> bool {
    sector
        .checked_add(sectors)
        .is_some_and(|end| end <= limits.capacity_sectors)
}

/// Copies the first bytes out of `segments` and removes them: a driver may split a structure
/// over descriptors as it likes (2.7.4).
fn gather(
    memory: &GuestMemory,
    segments: &mut Vec<Segment>,
    bytes: &mut [u8],
) -> Result<(), ChainError> {
    let mut done = 0;
    for segment in segments.iter() {
        let count = (segment.len as usize).min(bytes.len() - done);
        if memory
            .read_slice(&mut bytes[done..done + count], segment.address)
            .is_err()
        {
            let address = segment.address.0;
            let len = segment.len;
            return Err(ChainError::OutsideRam { address, len });
        }
        done += count;
        if done == bytes.len() {
            break;
        }
    }
    if done < bytes.len() {
        return Err(ChainError::Header(bytes.len() - done));
    }
    drop_front(segments, bytes.len() as u32);
    Ok(())
}
