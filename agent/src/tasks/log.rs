//! A task's log: a file with one JSON object a line.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::clock::now_unix_ms;

/// A line of a task's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// When, in milliseconds since the Unix epoch.
    pub time_unix_ms: u64,
    /// What happened.
    pub text: String,
}

pub(super) fn path(directory: &Path, id: Uuid) -> PathBuf {
    directory.join(format!("{id}.log"))
}

/// The tasks that have a log in `directory`.
pub(super) fn ids(directory: &Path) -> Vec<Uuid> {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    let id = |file: fs::DirEntry| {
        let name = file.file_name();
        Uuid::parse_str(name.to_str()?.strip_suffix(".log")?).ok()
    };
    files.filter_map(id).collect()
}

pub(super) fn append(path: &Path, text: &str) -> io::Result<LogLine> {
    let line = LogLine {
        time_unix_ms: now_unix_ms(),
        text: text.to_owned(),
    };
    let mut bytes = serde_json::to_vec(&line)?;
    bytes.push(b'\n');
    let mut options = fs::OpenOptions::new();
    options
        .append(true)
        .create(true)
        .open(path)?
        .write_all(&bytes)?;
    Ok(line)
}

/// The lines after the first `after`. One that was cut short by a fall of the host is left out.
pub(super) fn read(path: &Path, after: usize) -> Vec<LogLine> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines.skip(after).collect()
}
