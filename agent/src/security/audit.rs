//! The audit log: who asked for what, and what the answer was. One JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

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

/// The log's file.
#[derive(Debug)]
pub struct AuditLog {
    file: Mutex<File>,
}

impl AuditLog {
    /// Opens the log, or makes it: for its owner only.
    ///
    /// # Errors
    /// The host refuses.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(path)?;
        Ok(Self {
            file: Mutex::new(file),
        })
    }

    /// Adds an entry. A full disk stops nobody from stopping a guest: it is logged and passed over.
    pub fn write(&self, entry: &AuditEntry) {
        let Ok(mut line) = serde_json::to_vec(entry) else {
            return;
        };
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(&line) {
            tracing::error!("the audit log cannot be written: {error}");
        }
    }
}
