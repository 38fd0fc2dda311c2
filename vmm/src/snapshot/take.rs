//! Taking a snapshot of a running guest.

use std::fs::File;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use pindah_vmm_api::{AfterSnapshot, PauseReason, SnapshotReport};

use super::{Manifest, SnapshotError, file, memory};
use crate::vm::migratable::Migratable;

/// Pauses the guest, writes its state and its memory, and lets it go on if it ran and `then` says
/// so. The files reach the disk after it goes on. `state` and `memory` are empty regular files,
/// open for reading and writing. `cancelled` is looked at between chunks of a MiB.
///
/// # Errors
/// [`SnapshotError`]; the guest goes on if it ran before, and the files are worth nothing.
pub fn take(
    guest: &dyn Migratable,
    state: &File,
    memory: &File,
    then: AfterSnapshot,
    cancelled: &AtomicBool,
) -> Result<SnapshotReport, SnapshotError> {
    let started = Instant::now();
    file::require_empty("state", state)?;
    file::require_empty("memory", memory)?;
    let ran = guest.pause(PauseReason::Snapshot)?;
    let paused = Instant::now();
    let written = write(guest, state, memory, cancelled);
    let goes_on = ran && (then == AfterSnapshot::Continue || written.is_err());
    let resumed = if goes_on { guest.resume() } else { Ok(()) };
    if let Err(error) = &resumed {
        tracing::error!("the guest stays paused after its snapshot: {error}");
    }
    let paused_ms = goes_on.then(|| paused.elapsed().as_millis() as u64);
    let (ram_bytes, written_bytes, state_bytes) = written?;
    resumed?;
    let synced = sync(state, memory);
    if synced.is_err() && ran && !goes_on {
        guest.resume()?;
    }
    synced?;
    Ok(SnapshotReport {
        ram_bytes,
        written_bytes,
        state_bytes,
        paused_ms,
        total_ms: started.elapsed().as_millis() as u64,
    })
}

fn write(
    guest: &dyn Migratable,
    state_file: &File,
    memory_file: &File,
    cancelled: &AtomicBool,
) -> Result<(u64, u64, u64), SnapshotError> {
    let vm = guest.save()?;
    let memory = memory::write(&guest.memory(), memory_file, cancelled)?;
    let ram_bytes = memory.regions.iter().map(|region| region.bytes).sum();
    let written_bytes = memory.written_bytes;
    let state_bytes = file::write(state_file, &Manifest { vm, memory })?;
    Ok((ram_bytes, written_bytes, state_bytes))
}

fn sync(state: &File, memory: &File) -> Result<(), SnapshotError> {
    for (name, file) in [("memory", memory), ("state", state)] {
        file.sync_all()
            .map_err(|source| SnapshotError::Write { file: name, source })?;
    }
    Ok(())
}
