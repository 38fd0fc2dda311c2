//! Commands on the serial line, one a line.

use crate::cmdline::WordError;
use crate::options::{Exit, Options};

/// What a line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// One `status` line.
    Status,
    /// A verification of the whole working set.
    Verify,
    /// A change of a setting.
    Set(&'a str),
    /// A flipped bit in a page, to see that it is found.
    Corrupt(u64),
    /// The end that `exit_by` names, after a full verification if `verify=1`.
    Exit,
    /// The end at once.
    Leave(Exit),
}

/// Settings that may change while the guest runs.
const SETTABLE: [&str; 6] = [
    "rate_mib_s",
    "gap_us",
    "spin",
    "verify",
    "beat_ms",
    "exit_by",
];

impl<'a> Command<'a> {
    /// Reads one line.
    ///
    /// # Errors
    /// The line, if it is no command.
    pub fn parse(line: &'a str) -> Result<Self, WordError<'a>> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (verb, rest.trim()) {
            ("status", "") => Ok(Self::Status),
            ("verify", "") => Ok(Self::Verify),
            ("set", word) => {
                let key = word.split('=').next().unwrap_or("");
                if !SETTABLE.contains(&key) {
                    return Err(WordError::Unknown(line));
                }
                Options::default().apply(word)?;
                Ok(Self::Set(word))
            }
            ("corrupt", page) => page
                .parse()
                .map(Self::Corrupt)
                .map_err(|_| WordError::Bad(line, "a page's number")),
            ("exit", "") => Ok(Self::Exit),
            ("reset", "") => Ok(Self::Leave(Exit::Reset)),
            ("poweroff", "") => Ok(Self::Leave(Exit::Poweroff)),
            ("crash", "") => Ok(Self::Leave(Exit::Crash)),
            _ => Err(WordError::Unknown(line)),
        }
    }
}

/// Collects bytes to lines; what is too long for a line is dropped with it.
pub struct LineBuffer {
    bytes: [u8; 128],
    len: usize,
}

impl Default for LineBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl LineBuffer {
    /// Empty.
    pub const fn new() -> Self {
        Self {
            bytes: [0; 128],
            len: 0,
        }
    }

    /// Takes one byte; true if it ended a line, which `line` shows until the next byte.
    pub fn push(&mut self, byte: u8) -> bool {
        if matches!(byte, b'\r' | b'\n') {
            return true;
        }
        if self.len < self.bytes.len() {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        false
    }

    /// The line so far, emptied for the next.
    pub fn take(&mut self) -> &str {
        let line = &self.bytes[..self.len];
        self.len = 0;
        core::str::from_utf8(line).unwrap_or("").trim()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_each_command() {
        for (line, command) in [
            ("status", Command::Status),
            ("verify", Command::Verify),
            ("set rate_mib_s=max", Command::Set("rate_mib_s=max")),
            ("corrupt 17", Command::Corrupt(17)),
            ("exit", Command::Exit),
            ("reset", Command::Leave(Exit::Reset)),
            ("poweroff", Command::Leave(Exit::Poweroff)),
            ("crash", Command::Leave(Exit::Crash)),
        ] {
            assert_eq!(Command::parse(line), Ok(command));
        }
    }

    #[test]
    fn parse_refuses_what_cannot_change() {
        for line in [
            "set ws_mib=1",
            "set",
            "set spin=2",
            "status now",
            "corrupt x",
            "",
        ] {
            assert!(Command::parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn line_buffer_splits_lines_and_bounds_them() {
        let mut buffer = LineBuffer::new();
        assert!(b"status".iter().all(|&byte| !buffer.push(byte)));
        assert!(buffer.push(b'\n'));
        assert_eq!(buffer.take(), "status");
        for _ in 0..1000 {
            buffer.push(b'x');
        }
        assert!(buffer.push(b'\r'));
        assert_eq!(buffer.take().len(), 128);
    }
}
