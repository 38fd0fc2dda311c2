//! Standard output or a file: the reader that should not lose anything.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

/// How bytes are written without waiting for whoever reads them.
enum Mode {
    /// `O_NONBLOCK`, or a regular file, which does not know waiting.
    Plain,
    /// A socket, whose flags others share: `MSG_DONTWAIT`.
    Send,
    /// A terminal or pipe, whose flags others share: polled before each write.
    Polled,
}

/// An open destination.
pub(super) struct Sink {
    file: File,
    mode: Mode,
    /// It has no room, and epoll watches for some.
    pub blocked: bool,
    /// It has failed to take output before.
    pub complained: bool,
}

/// A pipe that polls as writable takes this much at once (`PIPE_BUF`).
const POLLED_CHUNK: usize = 4096;

impl Sink {
    /// Takes `file`, whatever it is.
    pub(super) fn new(file: File) -> Self {
        // SAFETY: takes no pointers; the descriptor is open.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        let kind = file.metadata().map(|metadata| metadata.file_type());
        let mode = match kind {
            Ok(kind) if kind.is_socket() => Mode::Send,
            Ok(kind) if kind.is_file() => Mode::Plain,
            _ if flags & libc::O_NONBLOCK != 0 => Mode::Plain,
            _ => Mode::Polled,
        };
        Self {
            file,
            mode,
            blocked: false,
            complained: false,
        }
    }

    /// Writes some of `bytes`.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room now.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.mode {
            Mode::Plain => self.file.write(bytes),
            Mode::Send => send(self.file.as_raw_fd(), bytes),
            Mode::Polled if !writable(self.file.as_raw_fd(), Duration::ZERO) => {
                Err(ErrorKind::WouldBlock.into())
            }
            Mode::Polled => self.file.write(&bytes[..bytes.len().min(POLLED_CHUNK)]),
        }
    }

    /// Waits until there is room, or `deadline` has come. Returns whether there is.
    pub(super) fn wait(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        writable(self.file.as_raw_fd(), left)
    }
}

impl AsRawFd for Sink {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and the length are those of a live slice, which is only read.
    let count = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn writable(fd: RawFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    let timeout_ms = timeout.as_millis().min(10_000) as libc::c_int;
    // SAFETY: the pointer is to one valid pollfd, and the count says so.
    let count = unsafe { libc::poll(&raw mut poll, 1, timeout_ms) };
    // An error also counts: the write reports it.
    count > 0
}
