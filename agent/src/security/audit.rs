//! The audit log: who asked for what, and what the answer was. One JSON object a line.
//!
//! A file that is full becomes `audit.log.1`, and what was that `audit.log.2`, up to
//! [`OLD_FILES`]; the oldest goes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// Size at which a file is full, in bytes: some 50,000 entries.
const FILE_MAX: u64 = 10 << 20;
/// Full files that are kept.
const OLD_FILES: u32 = 9;

/// One request that could change something.
#[derive(Clone, Debug, Serialize)]
pub struct AuditEntry {
    /// When, in milliseconds since the Unix epoch.
    pub time_unix_ms: u64,
    /// Who; empty: nobody that we know.
    pub user: String,
    /// The token's id.
    pub token: String,
    /// From where.
    pub address: String,
    /// HTTP method.
    pub method: String,
    /// Path, without its query.
    pub path: String,
    /// HTTP status of the answer.
    pub status: u16,
}

/// The log's files.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    file_max: u64,
    open: Mutex<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    bytes: u64,
}

impl OpenFile {
    /// The log's file, or a new one: for its owner only.
    fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }
}

impl AuditLog {
    /// Opens the log, or makes it: for its owner only.
    ///
    /// # Errors
    /// The host refuses.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_file_max(path, FILE_MAX)
    }

    fn with_file_max(path: &Path, file_max: u64) -> io::Result<Self> {
        Ok(Self {
            open: Mutex::new(OpenFile::open(path)?),
            path: path.to_owned(),
            file_max,
        })
    }

    /// Adds an entry. A full disk stops nobody from stopping a guest: it is logged and passed over.
    pub fn write(&self, entry: &AuditEntry) {
        let Ok(mut line) = serde_json::to_vec(entry) else {
            return;
        };
        line.push(b'\n');
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.bytes >= self.file_max {
            match self.rotate() {
                Ok(new) => *open = new,
                Err(error) => tracing::error!("the audit log cannot be rotated: {error}"),
            }
        }
        match open.file.write_all(&line) {
            Ok(()) => open.bytes += line.len() as u64,
            Err(error) => tracing::error!("the audit log cannot be written: {error}"),
        }
    }

    fn rotate(&self) -> io::Result<OpenFile> {
        for number in (1..OLD_FILES).rev() {
            move_over(&self.old(number), &self.old(number + 1))?;
        }
        move_over(&self.path, &self.old(1))?;
        OpenFile::open(&self.path)
    }

    fn old(&self, number: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }
}

/// Nothing happens if there is no `from`.
fn move_over(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        moved => moved,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn log_keeps_the_last_files_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let entry = |status| AuditEntry {
            time_unix_ms: 1,
            user: "anna".to_owned(),
            token: String::new(),
            address: "192.0.2.1".to_owned(),
            method: "POST".to_owned(),
            path: "/api/v1/guests".to_owned(),
            status,
        };
        let log = AuditLog::with_file_max(&path, 1).unwrap();
        for status in 0..20 {
            log.write(&entry(status));
        }
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert!(read(path.clone()).contains("\"status\":19"));
        assert!(read(log.old(1)).contains("\"status\":18"));
        assert!(read(log.old(OLD_FILES)).contains("\"status\":10"));
        let files = fs::read_dir(directory.path()).unwrap();
        assert_eq!(files.count(), 1 + OLD_FILES as usize);
        let mode = fs::metadata(log.old(1)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        // One that was written before counts by its size.
        drop(log);
        let log = AuditLog::with_file_max(&path, 1).unwrap();
        log.write(&entry(20));
        assert!(read(log.old(1)).contains("\"status\":19"));
    }
}
