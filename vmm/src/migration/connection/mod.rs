//! One connection of a migration: whole frames each way, plain or encrypted, never later than a
//! deadline, never longer than until somebody cancels.
//!
//! ```text
//! send ─► (encrypt) ─► outgoing ─► socket ─► incoming ─► (decrypt in place) ─► plain ─► Frame
//! ```
//! Without TLS what is sent goes straight to the socket, and what is read straight to `plain`. A
//! frame that is received is a slice of that buffer: nothing is allocated for it.
//!
//! [`Connection::connect`] and [`Connection::accept`] both return only when the other side has
//! proved who it is and has said that it speaks this protocol: the destination answers the
//! source's [`Preamble`] with its own. TLS alone would not tell a source that its certificate was
//! refused before the first message is due.
//!
//! The socket does not block. `TCP_NODELAY` is on, since a message that waits for an
//! acknowledgement waits 40 ms; and little is left unsent in the kernel
//! ([`NOT_SENT_LOW_WATER_BYTES`]), since what waits there delays the last pages of the guest.

mod error;
mod opening;
mod socket;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use rustix::event::PollFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::{ConnectionError, Doing};
pub use socket::{LinkTime, NOT_SENT_LOW_WATER_BYTES};

use super::buffer::Buffer;
use super::protocol::{FrameHeader, HEADER_BYTES, Kind};
use super::tls::{Session, Step, TlsRefusal};
use super::wait::{Cancel, wait};

/// Room for each read: a page of the socket's queue costs the same call as a quarter of a MiB.
const READ_BYTES: usize = 256 << 10;
/// What is encrypted before it is written: full records, and small enough for a core's cache.
const SEAL_BYTES: usize = 128 << 10;

/// One connection. See the module.
pub struct Connection {
    stream: TcpStream,
    tls: Option<Session>,
    cancel: Option<Cancel>,
    /// As it came from the socket, where that is not `plain` already.
    incoming: Buffer,
    /// What frames are made of.
    plain: Buffer,
    /// Encrypted and not yet in the socket.
    outgoing: Buffer,
    /// A frame that is put together to be sent.
    message: Vec<u8>,
    wire_bytes: u64,
    version: u16,
    /// The other side has said that nothing more comes.
    ended: bool,
    /// A frame was sent in part: nothing can follow it.
    torn: bool,
}

/// A whole frame, in the connection's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the body holds.
    pub kind: Kind,
    /// The body.
    pub body: &'a [u8],
}

impl Frame<'_> {
    /// The body as a message.
    ///
    /// # Errors
    /// [`ConnectionError::Message`].
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, ConnectionError> {
        ciborium::from_reader(self.body).map_err(|error| ConnectionError::Message {
            kind: self.kind,
            reason: error.to_string(),
        })
    }
}

impl Connection {
    fn new(
        stream: TcpStream,
        tls: Option<Session>,
        cancel: &Cancel,
    ) -> Result<Self, ConnectionError> {
        socket::prepare(&stream).map_err(|source| ConnectionError::Io {
            doing: Doing::Setup,
            source,
        })?;
        Ok(Self {
            stream,
            tls,
            cancel: Some(cancel.clone()),
            incoming: Buffer::default(),
            plain: Buffer::default(),
            outgoing: Buffer::default(),
            message: Vec::new(),
            wire_bytes: 0,
            version: 0,
            ended: false,
            torn: false,
        })
    }

    /// The version of the protocol that both sides speak.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Bytes that went to the socket so far, as they are on the wire.
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// What the kernel has measured on the link; `None` before it has, or if it does not tell.
    pub fn link_time(&self) -> Option<LinkTime> {
        socket::link_time(&self.stream).ok().flatten()
    }

    /// Has the kernel let bytes go no faster than this, in bytes a second; `None` for as fast as
    /// it finds good.
    pub fn set_pace(&self, bytes_per_s: Option<u64>) {
        if let Err(error) = socket::set_pace(&self.stream, bytes_per_s) {
            tracing::debug!("the kernel does not pace a migration: {error}");
        }
    }

    /// From now on only deadlines end a wait: to say that the migration is cancelled, and after
    /// the point of no return.
    pub fn ignore_cancel(&mut self) {
        self.cancel = None;
    }

    /// Says that nothing more is sent, and lets the other side take what was: a socket that is
    /// closed with something unread takes back what it sent last. Waits until the other side
    /// closes, and no longer than `deadline`.
    pub fn close(mut self, deadline: Instant) {
        let _ = self.flush(Doing::Sending, deadline);
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        let mut scrap = [0; 4096];
        loop {
            match self.stream.read(&mut scrap) {
                Ok(0) => return,
                Ok(_) if Instant::now() < deadline => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let asked = [(self.stream.as_fd(), PollFlags::IN)];
                    if wait(&asked, deadline, None).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    }

    /// Sends whole frames, encoded. Returns when all of them are in the socket.
    ///
    /// # Errors
    /// [`ConnectionError`]; nothing can be sent any more.
    pub fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), ConnectionError> {
        self.send_as(Doing::Sending, bytes, deadline)
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// As [`Self::send`]. [`ConnectionError::TooLong`] sends nothing.
    pub fn send_frame(
        &mut self,
        kind: Kind,
        body: &[u8],
        deadline: Instant,
    ) -> Result<(), ConnectionError> {
        let mut message = self.begin_message();
        message.extend_from_slice(body);
        self.send_whole(kind, message, deadline)
    }

    /// Sends one frame with `message` in CBOR.
    ///
    /// # Errors
    /// As [`Self::send`]. [`ConnectionError::TooLong`] and [`ConnectionError::Message`] send
    /// nothing.
    pub fn send_message<T: Serialize>(
        &mut self,
        kind: Kind,
        message: &T,
        deadline: Instant,
    ) -> Result<(), ConnectionError> {
        let mut bytes = self.begin_message();
        if let Err(error) = ciborium::into_writer(message, &mut bytes) {
            let reason = error.to_string();
            return Err(ConnectionError::Message { kind, reason });
        }
        self.send_whole(kind, bytes, deadline)
    }

    /// The buffer for a frame, with room for its header.
    fn begin_message(&mut self) -> Vec<u8> {
        let mut message = std::mem::take(&mut self.message);
        message.clear();
        message.resize(HEADER_BYTES, 0);
        message
    }

    fn send_whole(
        &mut self,
        kind: Kind,
        mut message: Vec<u8>,
        deadline: Instant,
    ) -> Result<(), ConnectionError> {
        let length = message.len() - HEADER_BYTES;
        let sent = if length > kind.limit() {
            Err(ConnectionError::TooLong { kind, length })
        } else {
            message[..HEADER_BYTES].copy_from_slice(&FrameHeader { kind, length }.encode());
            self.send_as(Doing::Sending, &message, deadline)
        };
        self.message = message;
        sent
    }

    fn send_as(
        &mut self,
        doing: Doing,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<(), ConnectionError> {
        if self.torn {
            return Err(ConnectionError::Torn);
        }
        self.torn = true;
        if self.tls.is_none() {
            self.write_all(doing, bytes, deadline)?;
        } else {
            for part in bytes.chunks(SEAL_BYTES) {
                self.encrypt(part)?;
                self.flush(doing, deadline)?;
            }
        }
        self.torn = false;
        Ok(())
    }

    fn encrypt(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        loop {
            match self.step(Some(bytes))? {
                Step::Encrypted => return Ok(()),
                Step::Again | Step::Transmit => {}
                Step::Closed => self.ended = true,
                Step::Idle => return Err(ConnectionError::Closed),
            }
        }
    }

    fn step(&mut self, send: Option<&[u8]>) -> Result<Step, TlsRefusal> {
        let Some(session) = &mut self.tls else {
            return Ok(Step::Idle);
        };
        let step = session.step(
            &mut self.incoming,
            &mut self.plain,
            &mut self.outgoing,
            send,
        );
        // TLS is not to be asked again.
        self.ended |= step.is_err();
        self.torn |= step.is_err();
        step
    }

    /// Writes what is outgoing.
    fn flush(&mut self, doing: Doing, deadline: Instant) -> Result<(), ConnectionError> {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        let written = self.write_all(doing, outgoing.filled(), deadline);
        let count = outgoing.filled().len();
        outgoing.take(count);
        self.outgoing = outgoing;
        written
    }

    fn write_all(
        &mut self,
        doing: Doing,
        mut bytes: &[u8],
        deadline: Instant,
    ) -> Result<(), ConnectionError> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => {
                    self.wire_bytes += count as u64;
                    bytes = &bytes[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::OUT, doing, deadline)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ConnectionError::of_io(doing, source)),
            }
        }
        Ok(())
    }

    fn wait(
        &self,
        wanted: PollFlags,
        doing: Doing,
        deadline: Instant,
    ) -> Result<(), ConnectionError> {
        wait(
            &[(self.stream.as_fd(), wanted)],
            deadline,
            self.cancel.as_ref(),
        )
        .map(|_| ())
        .map_err(|ended| ConnectionError::of_wait(doing, ended))
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// [`ConnectionError`]; [`ConnectionError::TimedOut`] and [`ConnectionError::Cancelled`] lose
    /// nothing of it.
    pub fn receive(&mut self, deadline: Instant) -> Result<Frame<'_>, ConnectionError> {
        let header = loop {
            match self.whole_frame()? {
                Some(header) => break header,
                None => self.read_by(Doing::Receiving, deadline)?,
            }
        };
        Ok(self.take_frame(header))
    }

    /// The next frame, if all of it is there.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub fn try_receive(&mut self) -> Result<Option<Frame<'_>>, ConnectionError> {
        let header = loop {
            match self.whole_frame()? {
                Some(header) => break header,
                None if self.read()? => {}
                None => return Ok(None),
            }
        };
        Ok(Some(self.take_frame(header)))
    }

    /// Whether [`Self::receive`] would return without reading from the socket.
    pub fn has_buffered(&self) -> bool {
        self.ended || !matches!(self.whole_frame(), Ok(None))
    }

    fn whole_frame(&self) -> Result<Option<FrameHeader>, ConnectionError> {
        let filled = self.plain.filled();
        let Some(&bytes) = filled.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = FrameHeader::decode(bytes).ok_or(ConnectionError::Frame { header: bytes })?;
        Ok((filled.len() >= HEADER_BYTES + header.length).then_some(header))
    }

    fn take_frame(&mut self, header: FrameHeader) -> Frame<'_> {
        Frame {
            kind: header.kind,
            body: &self.plain.take(HEADER_BYTES + header.length)[HEADER_BYTES..],
        }
    }

    fn read_by(&mut self, doing: Doing, deadline: Instant) -> Result<(), ConnectionError> {
        while !self.read()? {
            self.wait(PollFlags::IN, doing, deadline)?;
        }
        Ok(())
    }

    /// Takes what the socket has, to `plain`. Returns whether it had something.
    fn read(&mut self) -> Result<bool, ConnectionError> {
        if self.cancel.as_ref().is_some_and(Cancel::is_set) {
            return Err(ConnectionError::Cancelled);
        }
        if self.ended {
            return Err(ConnectionError::Closed);
        }
        let buffer = match self.tls {
            Some(_) => &mut self.incoming,
            None => &mut self.plain,
        };
        match self.stream.read(buffer.room(READ_BYTES)) {
            Ok(0) => return Err(ConnectionError::Closed),
            Ok(count) => buffer.commit(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(source) => return Err(ConnectionError::of_io(Doing::Receiving, source)),
        }
        if self.tls.as_ref().is_some_and(|tls| !tls.is_handshaking()) {
            self.decrypt()?;
        }
        Ok(true)
    }

    /// All that has come in, as far as it is whole records.
    fn decrypt(&mut self) -> Result<(), ConnectionError> {
        loop {
            match self.step(None)? {
                // What TLS itself wants to say goes with what is sent next.
                Step::Again | Step::Transmit | Step::Encrypted => {}
                Step::Idle => return Ok(()),
                Step::Closed => self.ended = true,
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Waits until one of `connections` has something to receive. Bit n of the answer stands for the
/// nth; there are at most 32.
///
/// # Errors
/// [`ConnectionError::TimedOut`], [`ConnectionError::Cancelled`].
pub fn wait_readable(
    connections: &[&Connection],
    deadline: Instant,
    cancel: Option<&Cancel>,
) -> Result<u32, ConnectionError> {
    let buffered = (0..)
        .zip(connections)
        .filter(|(_, connection)| connection.has_buffered())
        .fold(0, |bits, (index, _)| bits | 1 << index);
    let deadline = if buffered == 0 {
        deadline
    } else {
        Instant::now()
    };
    let asked: Vec<_> = connections
        .iter()
        .map(|connection| (connection.as_fd(), PollFlags::IN))
        .collect();
    match wait(&asked, deadline, cancel) {
        Ok(ready) => Ok(ready | buffered),
        Err(super::wait::Ended::Late) if buffered != 0 => Ok(buffered),
        Err(ended) => Err(ConnectionError::of_wait(Doing::Receiving, ended)),
    }
}
