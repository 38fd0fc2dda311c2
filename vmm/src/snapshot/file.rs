//! The state's file.
//!
//! ```text
//! 0   8  magic "PINDAHSS"
//! 8   4  format version, little-endian
//! 12  8  length of the body, little-endian
//! 20  n  body: CBOR of the manifest
//!     8  XXH3 (64 bits) of all before, little-endian
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use super::{Manifest, SnapshotError};
use crate::vm::state::{MAX_STATE_BYTES, VmStateError};

const MAGIC: [u8; 8] = *b"PINDAHSS";
const FORMAT: u32 = 1;
const HEADER: usize = 20;
const TRAILER: usize = 8;
/// The state itself and the memory map beside it.
const MAX_BODY: usize = MAX_STATE_BYTES + (1 << 20);

/// Why a state file is refused.
#[derive(Debug, Error)]
pub enum FileError {
    /// The host fails.
    #[error("the state file cannot be read")]
    Read(#[source] io::Error),
    /// It is some other file.
    #[error("this is not a snapshot's state file")]
    Magic,
    /// A format that this program does not know.
    #[error("the state file has format {format}, this program knows {FORMAT}")]
    Format {
        /// Its format.
        format: u32,
    },
    /// It ends too early, goes on too long, or claims a length that cannot be.
    #[error("the state file is truncated or has bytes too many")]
    Length,
    /// The content is not what was written.
    #[error("the state file is corrupt: its checksum does not match")]
    Checksum,
    /// The body does not decode.
    #[error("the state file does not decode")]
    Decode(#[source] ciborium::de::Error<io::Error>),
    /// The machine's state in it is refused.
    #[error("the state file's content is refused")]
    State(#[from] VmStateError),
}

/// Refuses what could not be restored from, before the guest is paused for it.
pub(super) fn require_empty(name: &'static str, file: &File) -> Result<(), SnapshotError> {
    let refused = |wanted| SnapshotError::File { file: name, wanted };
    let metadata = file
        .metadata()
        .map_err(|source| SnapshotError::Write { file: name, source })?;
    if !metadata.is_file() {
        return Err(refused("a regular file"));
    }
    if metadata.len() != 0 {
        return Err(refused("empty"));
    }
    let flags = rustix::fs::fcntl_getfl(file).map_err(|errno| SnapshotError::Write {
        file: name,
        source: errno.into(),
    })?;
    if flags & OFlags::RWMODE == OFlags::RDONLY {
        return Err(refused("open for writing"));
    }
    if flags.contains(OFlags::APPEND) {
        return Err(refused("open without O_APPEND"));
    }
    Ok(())
}

/// Writes the manifest. Returns the file's length.
pub(super) fn write(file: &File, manifest: &Manifest) -> Result<u64, SnapshotError> {
    let bytes = encode(manifest)?;
    file.write_all_at(&bytes, 0)
        .map_err(|source| SnapshotError::Write {
            file: "state",
            source,
        })?;
    Ok(bytes.len() as u64)
}

pub(super) fn encode(manifest: &Manifest) -> Result<Vec<u8>, VmStateError> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    ciborium::into_writer(manifest, &mut bytes).map_err(VmStateError::Encode)?;
    let length = bytes.len() - HEADER;
    if length > MAX_BODY {
        return Err(VmStateError::TooLong { bytes: length });
    }
    bytes[12..HEADER].copy_from_slice(&(length as u64).to_le_bytes());
    let checksum = xxh3_64(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

/// Reads a manifest back. The file is hostile.
pub(super) fn read(file: &File) -> Result<Manifest, FileError> {
    let mut bytes = Vec::new();
    let most = (HEADER + MAX_BODY + TRAILER) as u64;
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(FileError::Read)?;
    decode(&bytes)
}

pub(super) fn decode(bytes: &[u8]) -> Result<Manifest, FileError> {
    let magic = bytes.first_chunk().ok_or(FileError::Magic)?;
    if *magic != MAGIC {
        return Err(FileError::Magic);
    }
    let (content, checksum) = bytes
        .split_last_chunk::<TRAILER>()
        .ok_or(FileError::Length)?;
    let (header, body) = content
        .split_first_chunk::<HEADER>()
        .ok_or(FileError::Length)?;
    let format = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
    if format != FORMAT {
        return Err(FileError::Format { format });
    }
    let length = u64::from_le_bytes(header[12..20].try_into().expect("eight bytes"));
    if length != body.len() as u64 || body.len() > MAX_BODY {
        return Err(FileError::Length);
    }
    if xxh3_64(content) != u64::from_le_bytes(*checksum) {
        return Err(FileError::Checksum);
    }
    let mut rest = body;
    let manifest: Manifest = ciborium::from_reader(&mut rest).map_err(FileError::Decode)?;
    if !rest.is_empty() {
        return Err(FileError::Length);
    }
    manifest.vm.check()?;
    Ok(manifest)
}
