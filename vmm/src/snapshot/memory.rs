//! Guest RAM to a sparse file and back.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use xxhash_rust::xxh3::Xxh3;

use super::{MemoryMap, Region, SnapshotError};
use crate::memory::{GuestMemory, is_zero};

/// Unit of zero detection and of the checksum.
const PAGE: usize = 4096;
/// Copied at a time: fits a core's second-level cache, and makes writes that are large enough.
const CHUNK: usize = 1 << 20;

/// Why memory cannot be read back. The guest cannot be started.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The regions are not those of the machine that was built.
    #[error("the snapshot's memory has other regions than the machine of its configuration")]
    Layout,
    /// The file is shorter or longer than the regions.
    #[error(
        "the memory file is {actual} bytes long instead of {expected}: it is truncated or another's"
    )]
    Length {
        /// What the state file says.
        expected: u64,
        /// What it is.
        actual: u64,
    },
    /// The content is not what was written.
    #[error(
        "the memory file is corrupt: its checksum is {actual:#018x} instead of {expected:#018x}"
    )]
    Checksum {
        /// What the state file says.
        expected: u64,
        /// What it is.
        actual: u64,
    },
    /// The host fails.
    #[error("the memory file cannot be read at {offset:#x}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The guest's mapping is broken.
    #[error("guest memory at {address:#x} cannot be written")]
    Memory {
        /// GPA.
        address: u64,
        /// Why.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// The regions of `memory` in the order of the file.
pub(super) fn regions(memory: &GuestMemory) -> Vec<Region> {
    let region = |region: &vm_memory::GuestRegionMmap<_>| Region {
        start: region.start_addr().0,
        bytes: region.len(),
    };
    memory.iter().map(region).collect()
}

/// Content seen so far: what the checksum covers.
#[derive(Default)]
struct Content {
    hash: Xxh3,
    bytes: u64,
}

impl Content {
    fn page(&mut self, number: u64, page: &[u8]) {
        self.hash.update(&number.to_le_bytes());
        self.hash.update(page);
        self.bytes += page.len() as u64;
    }
}

/// Calls `run` with offset and content of every run of pages in `chunk` that are not zero.
/// `base` is the chunk's offset in the file.
fn runs<E>(
    chunk: &[u8],
    base: u64,
    content: &mut Content,
    mut run: impl FnMut(usize, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut start = None;
    for (index, page) in chunk.chunks(PAGE).enumerate() {
        let at = index * PAGE;
        if is_zero(page) {
            if let Some(start) = start.take() {
                run(start, &chunk[start..at])?;
            }
        } else {
            content.page((base + at as u64) / PAGE as u64, page);
            start.get_or_insert(at);
        }
    }
    start.map_or(Ok(()), |start| run(start, &chunk[start..]))
}

/// Writes all of guest RAM, which must be at rest, to an empty file.
pub(super) fn write(
    memory: &GuestMemory,
    file: &File,
    cancelled: &AtomicBool,
) -> Result<MemoryMap, SnapshotError> {
    let failed = |source| SnapshotError::Write {
        file: "memory",
        source,
    };
    let regions = regions(memory);
    let total = regions.iter().map(|region| region.bytes).sum();
    file.set_len(total).map_err(failed)?;
    let mut buffer = vec![0; CHUNK];
    let mut content = Content::default();
    let mut base = 0;
    for region in &regions {
        let mut done = 0;
        while done < region.bytes {
            if cancelled.load(Ordering::Relaxed) {
                return Err(SnapshotError::Cancelled);
            }
            let length = (region.bytes - done).min(CHUNK as u64) as usize;
            let chunk = &mut buffer[..length];
            let address = region.start + done;
            memory
                .read_slice(chunk, GuestAddress(address))
                .map_err(|source| SnapshotError::Memory { address, source })?;
            let offset = base + done;
            runs(chunk, offset, &mut content, |at, bytes| {
                file.write_all_at(bytes, offset + at as u64)
            })
            .map_err(failed)?;
            done += length as u64;
        }
        base += region.bytes;
    }
    Ok(MemoryMap {
        regions,
        written_bytes: content.bytes,
        checksum: content.hash.digest(),
    })
}

/// Reads what [`write`] wrote into fresh guest RAM, which must be all zeroes.
pub(super) fn load(file: &File, map: &MemoryMap, memory: &GuestMemory) -> Result<(), LoadError> {
    if map.regions != regions(memory) {
        return Err(LoadError::Layout);
    }
    let expected = map.regions.iter().map(|region| region.bytes).sum();
    let actual = file
        .metadata()
        .map_err(|source| LoadError::Read { offset: 0, source })?
        .len();
    if actual != expected {
        return Err(LoadError::Length { expected, actual });
    }
    let mut buffer = vec![0; CHUNK];
    let mut content = Content::default();
    let mut base = 0;
    for &region in &map.regions {
        load_region(file, base, region, memory, &mut buffer, &mut content)?;
        base += region.bytes;
    }
    let actual = content.hash.digest();
    if actual != map.checksum || content.bytes != map.written_bytes {
        return Err(LoadError::Checksum {
            expected: map.checksum,
            actual,
        });
    }
    Ok(())
}

fn load_region(
    file: &File,
    base: u64,
    region: Region,
    memory: &GuestMemory,
    buffer: &mut [u8],
    content: &mut Content,
) -> Result<(), LoadError> {
    let end = base + region.bytes;
    let mut offset = base;
    while let Some(data) = next_data(file, offset, end)? {
        // Extents may start inside a page where the file system's blocks are smaller.
        let page = PAGE as u64;
        offset = data.start - (data.start - base) % page;
        let stop = (base + (data.end - base).next_multiple_of(page)).min(end);
        while offset < stop {
            let length = (stop - offset).min(CHUNK as u64) as usize;
            let chunk = &mut buffer[..length];
            file.read_exact_at(chunk, offset)
                .map_err(|source| LoadError::Read { offset, source })?;
            let address = region.start + (offset - base);
            runs(chunk, offset, content, |at, bytes| {
                let address = address + at as u64;
                memory
                    .write_slice(bytes, GuestAddress(address))
                    .map_err(|source| LoadError::Memory { address, source })
            })?;
            offset += length as u64;
        }
    }
    Ok(())
}

/// The next extent with data in `offset..end` (lseek(2), `SEEK_DATA`, `SEEK_HOLE`); everything is
/// data on a file system that does not know.
fn next_data(
    file: &File,
    offset: u64,
    end: u64,
) -> Result<Option<std::ops::Range<u64>>, LoadError> {
    if offset >= end {
        return Ok(None);
    }
    let failed = |errno: Errno| LoadError::Read {
        offset,
        source: errno.into(),
    };
    let start = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) if start >= end => return Ok(None),
        Ok(start) => start.max(offset),
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(offset..end)),
        Err(errno) => return Err(failed(errno)),
    };
    let hole = rustix::fs::seek(file, SeekFrom::Hole(start)).map_err(failed)?;
    Ok(Some(start..hole.clamp(start + 1, end)))
}
