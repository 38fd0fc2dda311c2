//! Which sessions are the agent's: a file a pool, in its state directory. All others are the
//! host's own, and are left alone.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::iscsiadm::{DEADLINE, NOTHING_FOUND, run};
use super::multipath;
use crate::files;

/// Where those files are.
pub(super) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("iscsi")
}

/// What an agent has made for a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mine {
    pub target: String,
    /// Those that it has logged in at.
    pub portals: Vec<String>,
    /// The LUN that it has multipathd look after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwid: Option<String>,
}

impl Mine {
    /// What is written at `path`; nothing yet: nothing at all.
    pub(super) fn read(path: &Path, target: &str) -> Self {
        read(path).unwrap_or_else(|| Self {
            target: target.to_owned(),
            portals: Vec::new(),
            wwid: None,
        })
    }

    /// Writes it before that is made.
    ///
    /// # Errors
    /// One line.
    pub(super) fn write(&self, path: &Path) -> Result<(), String> {
        let parent = path.parent().unwrap_or(path);
        let written =
            fs::create_dir_all(parent).and_then(|()| files::replace_by_json_durably(path, self));
        written.map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    fn has(&self, target: &str, portal: &str) -> bool {
        self.target == target && self.portals.iter().any(|one| one == portal)
    }
}

fn read(path: &Path) -> Option<Mine> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn marks(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Logs out of the targets of pools that are no more.
pub(super) async fn log_out_others(directory: &Path, keep: impl Fn(&Path) -> bool) {
    for path in marks(directory) {
        if !keep(&path) {
            log_out(&path).await;
        }
    }
}

/// Undoes what the file `path` speaks of; sessions that another file speaks of stay.
pub(super) async fn log_out(path: &Path) {
    let Some(mine) = read(path) else { return };
    let others = marks(path.parent().unwrap_or(path)).into_iter();
    let others = others.filter(|other| other != path);
    let others: Vec<Mine> = others.filter_map(|other| read(&other)).collect();
    for portal in &mine.portals {
        if others.iter().any(|other| other.has(&mine.target, portal)) {
            continue;
        }
        let node = ["-m", "node", "-T", &mine.target, "-p", portal];
        for action in [&["--logout"][..], &["-o", "delete"]] {
            let done = run(&[&node[..], action].concat(), DEADLINE).await;
            if let Err(complaint) = done
                && complaint.code != Some(NOTHING_FOUND)
            {
                let (target, reason) = (&mine.target, complaint.reason);
                tracing::warn!("cannot log out of {target} at {portal}: {reason}");
                return;
            }
        }
        tracing::info!("logged out of {} at {portal}", mine.target);
    }
    if let (Some(wwid), Some(id)) = (&mine.wwid, path.file_name()) {
        multipath::forget(id, wwid).await;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}
