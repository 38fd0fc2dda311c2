//! What was said, for who comes later: in the live system's memory, and in the end on the disk.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where the log is in the live system.
pub const FILE: &str = "/run/pindah/install.log";

/// A file of lines, each with the seconds since the installer started.
#[derive(Clone, Debug)]
pub struct Log {
    path: PathBuf,
    begin: Instant,
}

impl Log {
    /// Goes on with the one at `path`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let log = Self {
            path: path.to_owned(),
            begin: Instant::now(),
        };
        log.write("")?;
        Ok(log)
    }

    /// Adds lines.
    pub fn say(&self, text: &str) {
        let time = self.begin.elapsed().as_secs_f64();
        for line in text.lines() {
            // Who cannot keep a log goes on without.
            let _ = self.write(&format!("[{time:7.1}] {line}\n"));
        }
    }

    /// All of it.
    pub fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap_or_default()
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let options = options.append(true).create(true).mode(0o600);
        options.open(&self.path)?.write_all(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_added_to_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/install.log");
        Log::open(&path).unwrap().say("one\ntwo");
        let log = Log::open(&path).unwrap();
        log.say("three");
        let text = log.text();
        let words: Vec<_> = text.lines().map(|line| line.split("] ").nth(1)).collect();
        assert_eq!(words, [Some("one"), Some("two"), Some("three")]);
    }
}
