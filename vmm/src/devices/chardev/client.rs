//! One connected reader.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::Shared;

/// A client and how far it has come.
pub(super) struct Client {
    stream: UnixStream,
    position: u64,
    /// It has no room for more output.
    pub blocked: bool,
    /// It may still send input.
    pub reading: bool,
    /// What epoll watches for.
    pub armed: EventSet,
}

impl Client {
    /// Makes `stream` non-blocking; it starts at `position`.
    pub(super) fn new(stream: UnixStream, position: u64) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            position,
            blocked: false,
            reading: true,
            armed: EventSet::IN,
        })
    }

    /// Writes until the client is full or has everything.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn flush(&mut self, shared: &Shared, chunk: &mut [u8]) -> io::Result<()> {
        self.blocked = false;
        loop {
            let (start, count) = shared.output().read(self.position, chunk);
            self.position = start;
            if count == 0 {
                return Ok(());
            }
            match self.stream.write(&chunk[..count]) {
                Ok(written) => self.position += written as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads some input; 0 if there is none now, or will be none any more.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stream.read(buffer) {
            Ok(0) => {
                self.reading = false;
                Ok(0)
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(0)
            }
            result => result,
        }
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
