//! What is left of an update over a restart, in files of the state partition.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{LastUpdate, UpdateRequest};
use crate::files;

const PENDING: &str = "pending.json";
const LAST: &str = "last.json";

/// An update that has not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    /// The task that does it.
    pub task: Uuid,
    /// Who asked for it.
    pub user: String,
    /// How it was asked for.
    pub request: UpdateRequest,
    /// What the node ran when it began.
    pub from_version: String,
    /// What it is to run; empty until that is known.
    pub version: String,
    /// The slot that was running.
    pub from: String,
    /// The slot that is written.
    pub to: String,
    /// Whether the node could run guests.
    pub kvm: bool,
    /// The node was drained for it, and takes guests again after it.
    pub undrain: bool,
    /// The start of the host in which it was about to restart; `None`: it is not that far.
    pub restarting: Option<String>,
    /// Why it goes back.
    pub why: Option<String>,
}

impl Pending {
    /// The one in `directory`, if there is one.
    pub(super) fn load(directory: &Path) -> Option<Self> {
        read(&directory.join(PENDING))
    }

    /// Writes it, so that it is there after a power cut.
    pub(super) fn save(&self, directory: &Path) -> io::Result<()> {
        files::replace_by_json_durably(&directory.join(PENDING), self)
    }

    /// Forgets it, and how it ended is kept.
    pub(super) fn end(directory: &Path, last: Option<&LastUpdate>) -> io::Result<()> {
        if let Some(last) = last {
            files::replace_by_json_durably(&directory.join(LAST), last)?;
        }
        fs::remove_file(directory.join(PENDING))?;
        fs::File::open(directory)?.sync_all()
    }
}

/// How the last one ended.
pub(super) fn last(directory: &Path) -> Option<LastUpdate> {
    read(&directory.join(LAST))
}

/// What cannot be read is as if it were not there: an agent of another version may have written it.
fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    let value = serde_json::from_slice(&bytes);
    value
        .inspect_err(|error| tracing::warn!("{}: {error}", path.display()))
        .ok()
}

/// That a slot is on trial: a file that `/usr/lib/pindah/end-trial` looks for.
pub(super) fn trial_mark(state_dir: &Path, slot: &str) -> PathBuf {
    state_dir.join(format!("trial-{slot}"))
}

/// Which start of the host this is.
pub(super) fn boot_id() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}
