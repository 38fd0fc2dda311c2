//! What a finished command has said.

use std::borrow::Cow;

use anyhow::{Result, bail};

/// A finished command in a server.
#[derive(Clone, Debug)]
pub struct Output {
    /// What was run, for messages.
    pub command: String,
    /// Exit status, or 128 + the signal that ended it.
    pub status: i32,
    /// Standard output, byte for byte.
    pub stdout: Vec<u8>,
    /// Standard error, byte for byte.
    pub stderr: Vec<u8>,
}

impl Output {
    /// The same if the command succeeded.
    ///
    /// # Errors
    /// If the exit status is not 0; the message carries what was printed.
    pub fn ok(self) -> Result<Self> {
        if self.status != 0 {
            bail!(
                "`{}` ended with {}\n--- stdout\n{}\n--- stderr\n{}",
                self.command,
                self.status,
                tail(&self.stdout),
                tail(&self.stderr)
            );
        }
        Ok(self)
    }

    /// Standard output as text.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// Standard error as text.
    pub fn error_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }
}

/// The last 40 lines (at most 8 KiB) of a log, for messages.
pub(crate) fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(8192)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
