//! Snapshots: a whole guest in a directory of two files.
//!
//! | file | content |
//! |---|---|
//! | `state.cbor` | magic, format version, length, CBOR of [`Manifest`], XXH3 of all before |
//! | `memory.bin` | the regions of guest RAM one after the other; pages of zeroes are holes |
//!
//! The VMM writes to two descriptors that it is given ([`take`]); whoever opened them sees to it
//! that an interrupted snapshot is never taken for a whole one ([`directory`]). Both checksums
//! are of the content, not of how a file system keeps it: a copy that fills the holes is as good.
//! What is read back is hostile: every size is bounded and every byte is covered by a checksum.

pub mod directory;
mod file;
mod memory;
mod take;

#[cfg(test)]
mod tests;

use std::io;

use pindah_vmm_api::RunState;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::vm::migratable::MigratableError;
use crate::vm::state::{VmState, VmStateError};

pub use directory::{CreateError, OpenError, PartialSnapshot, Snapshot};
pub use file::FileError;
pub use memory::LoadError;
pub use take::take;

/// Name of the state's file.
pub const STATE_FILE: &str = "state.cbor";
/// Name of the memory's file.
pub const MEMORY_FILE: &str = "memory.bin";

/// What the state's file holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Everything that is not in RAM.
    pub vm: VmState,
    /// What the memory's file holds.
    pub memory: MemoryMap,
}

/// What the memory's file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMap {
    /// The regions in the order of the file, by rising address.
    pub regions: Vec<Region>,
    /// Bytes in pages that are not all zeroes.
    pub written_bytes: u64,
    /// XXH3 (64 bits) over number and content of each of those pages, by rising number. Numbers
    /// count 4096-byte pages of the file.
    pub checksum: u64,
}

/// One region of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// GPA of its first byte.
    pub start: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Why there is no snapshot. The guest goes on as before.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// A descriptor is not what is needed.
    #[error("the {file} file must be {wanted}")]
    File {
        /// `state` or `memory`.
        file: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// The guest is off or has crashed.
    #[error("there is no snapshot of a guest that is {state}")]
    Gone {
        /// What it is.
        state: RunState,
    },
    /// Whoever asked has gone, or the VMM is ending.
    #[error("the snapshot was given up")]
    Cancelled,
    /// The guest does not stop, give its state, or go on.
    #[error("the guest cannot be taken")]
    Guest(#[source] MigratableError),
    /// The state has no encoding.
    #[error("the guest's state cannot be written")]
    State(#[from] VmStateError),
    /// A file cannot be written: the disk is full, or fails.
    #[error("the {file} file cannot be written")]
    Write {
        /// `state` or `memory`.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Guest RAM cannot be read; its mapping is broken.
    #[error("guest memory at {address:#x} cannot be read")]
    Memory {
        /// GPA.
        address: u64,
        /// Why.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

impl From<MigratableError> for SnapshotError {
    fn from(error: MigratableError) -> Self {
        match error {
            MigratableError::Gone { state } => Self::Gone { state },
            other => Self::Guest(other),
        }
    }
}
