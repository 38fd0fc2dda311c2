//! How the machine was switched off, for whoever was away when it was: the exit code is told to the
//! parent only, and events to those who listen.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use pindah_vmm_api::{EventKind, Initiator};

/// An empty file, open since before the sandbox closed.
pub struct EndFile(File);

impl EndFile {
    /// Makes it, or empties it.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(path);
        Ok(Self(file.with_context(|| {
            format!("cannot write {}", path.display())
        })?))
    }

    /// Writes the event. The machine is off by then: a failure is only logged.
    pub fn write(mut self, by: Initiator) {
        let written = serde_json::to_vec(&EventKind::ShutDown { by })
            .map_err(io::Error::from)
            .and_then(|bytes| self.0.write_all(&bytes));
        if let Err(error) = written {
            tracing::error!("cannot write down how the machine ended: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_emptied_at_the_start_and_says_who_switched_the_machine_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("end");
        std::fs::write(&path, "of an earlier start").unwrap();
        let file = EndFile::create(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        file.write(Initiator::Guest);
        let event: EventKind = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let by = Initiator::Guest;
        assert_eq!(event, EventKind::ShutDown { by });
    }
}
