//! Standard input.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use super::escape::{EscapeParser, Keys};
use super::terminal::{self, RawMode};

/// Standard input, with its terminal in raw mode if it is one.
pub(super) struct Stdin {
    file: File,
    terminal: Option<(RawMode, EscapeParser)>,
    /// A regular file: always readable, and unknown to epoll.
    pub always_readable: bool,
}

impl Stdin {
    /// Takes `file`; `None` if it is a terminal that another process group reads: trying to read
    /// along would stop the whole VMM (SIGTTIN).
    pub(super) fn new(file: File) -> Option<Self> {
        let terminal = if terminal::is_terminal(file.as_raw_fd()) {
            Some((RawMode::enter(file.as_fd())?, EscapeParser::default()))
        } else {
            None
        };
        Some(Self {
            file,
            terminal,
            always_readable: false,
        })
    }

    /// Reads at most `room` bytes. `None` at the end of the input.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing now.
    pub(super) fn read(&mut self, room: usize) -> io::Result<Option<Keys>> {
        let mut buffer = [0; 512];
        let room = room.min(buffer.len());
        let count = self.file.read(&mut buffer[..room])?;
        if count == 0 {
            return Ok(None);
        }
        let typed = &buffer[..count];
        Ok(Some(match &mut self.terminal {
            Some((_, parser)) => parser.parse(typed),
            None => Keys {
                input: typed.to_vec(),
                ..Keys::default()
            },
        }))
    }
}

impl AsRawFd for Stdin {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
