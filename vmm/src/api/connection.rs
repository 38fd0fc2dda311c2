//! One client: its socket, what has come and not been taken, what must go, and by when.
//!
//! ```text
//! Receiving ─ request ─► Working ─ response ─► Receiving ─► …
//!     │  └──── events ─► Streaming ─ cut or end ─► Finishing ─► gone
//!     └─ bad request, time-out ─ error ──────────► Finishing
//! ```

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use pindah_vmm_api::{ErrorCode, ErrorInfo, Event};
use vmm_sys_util::epoll::EventSet;

use super::handler::Request;
use super::request::{self, Head};
use super::response::Response;
use super::{Limits, MAX_DESCRIPTORS, refuse, socket, stream};

/// Taken from the socket at a time.
const READ_BYTES: usize = 16 << 10;
/// How long the rest of a refused request is read and thrown away, so that the client sees the
/// answer instead of a broken connection.
const LINGER: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Between requests or inside one.
    Receiving,
    /// The worker has its request.
    Working,
    /// It gets events.
    Streaming,
    /// The last bytes go out; what comes in is thrown away.
    Finishing,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    Closed,
}

pub(super) struct Connection {
    stream: UnixStream,
    pub(super) phase: Phase,
    input: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    descriptors_lost: bool,
    /// The head whose body is awaited.
    head: Option<Head>,
    keep_alive: bool,
    output: Vec<u8>,
    /// How much of `output` has gone.
    sent: usize,
    /// Finishing, and nothing more goes out.
    shut: bool,
    /// When the phase began, or the request's first byte came.
    since: Instant,
    /// When the socket last took something.
    written: Instant,
}

impl Connection {
    /// `stream` is non-blocking.
    pub(super) fn new(stream: UnixStream, now: Instant) -> Self {
        Self {
            stream,
            phase: Phase::Receiving,
            input: Vec::new(),
            descriptors: Vec::new(),
            descriptors_lost: false,
            head: None,
            keep_alive: true,
            output: Vec::new(),
            sent: 0,
            shut: false,
            since: now,
            written: now,
        }
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Nothing of a request has come and nothing of an answer must go.
    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Receiving && !self.has_begun() && !self.has_output()
    }

    pub(super) fn idle_since(&self) -> Instant {
        self.since
    }

    fn has_begun(&self) -> bool {
        !self.input.is_empty() || self.head.is_some() || !self.descriptors.is_empty()
    }

    fn has_output(&self) -> bool {
        self.sent < self.output.len()
    }

    /// The readiness that it waits for; the end of the other side always shows.
    pub(super) fn interest(&self) -> EventSet {
        let mut interest = EventSet::empty();
        if self.has_output() {
            interest |= EventSet::OUT;
        } else if self.phase == Phase::Receiving {
            interest |= EventSet::IN;
        }
        if self.phase == Phase::Finishing {
            interest |= EventSet::IN;
        }
        interest
    }

    /// When it has had enough time, if ever.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        match self.phase {
            Phase::Finishing if self.shut => Some(self.since + LINGER),
            _ if self.has_output() => Some(self.written + limits.write),
            Phase::Receiving if self.has_begun() => Some(self.since + limits.request),
            Phase::Receiving => Some(self.since + limits.idle),
            Phase::Working | Phase::Streaming | Phase::Finishing => None,
        }
    }

    /// Its deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) -> Fate {
        if self.phase != Phase::Receiving || !self.has_begun() || self.has_output() {
            return Fate::Closed;
        }
        let error = refuse(ErrorCode::Timeout, "the request did not arrive in time");
        self.refuse(error, now)
    }

    /// Takes what has come.
    pub(super) fn fill(&mut self, now: Instant) -> Fate {
        let mut buffer = [0; READ_BYTES];
        let mut descriptors = Vec::new();
        let received = match socket::receive(&self.stream, &mut buffer, &mut descriptors) {
            Ok(received) if received.bytes == 0 => return Fate::Closed,
            Ok(received) => received,
            Err(error) if is_transient(&error) => return Fate::Open,
            Err(_) => return Fate::Closed,
        };
        if self.phase != Phase::Receiving {
            return Fate::Open;
        }
        if !self.has_begun() {
            self.since = now;
        }
        self.descriptors.append(&mut descriptors);
        self.descriptors_lost |= received.descriptors_lost;
        self.input.extend_from_slice(&buffer[..received.bytes]);
        Fate::Open
    }

    /// The next whole request, if there is one.
    ///
    /// # Errors
    /// What to refuse it with; the connection is of no use then.
    pub(super) fn next_request(&mut self, limits: &Limits) -> Result<Option<Request>, ErrorInfo> {
        if self.phase != Phase::Receiving || self.has_output() {
            return Ok(None);
        }
        if self.descriptors_lost || self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(refuse(
                ErrorCode::BadRequest,
                format!("more than {MAX_DESCRIPTORS} file descriptors for one request"),
            ));
        }
        if self.head.is_none() {
            let Some((head, length)) = request::parse(&self.input, limits)? else {
                return Ok(None);
            };
            self.input.drain(..length);
            if head.expects_continue && self.input.len() < head.content_length {
                self.queue(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            self.head = Some(head);
        }
        let whole = |head: &mut Head| self.input.len() >= head.content_length;
        let Some(head) = self.head.take_if(whole) else {
            return Ok(None);
        };
        let body = self.input.drain(..head.content_length).collect();
        self.keep_alive = head.keep_alive;
        Ok(Some(Request {
            head,
            body,
            descriptors: std::mem::take(&mut self.descriptors),
        }))
    }

    /// Answers the request that [`Self::next_request`] gave.
    pub(super) fn respond(&mut self, response: &Response, now: Instant) -> Fate {
        let mut bytes = Vec::new();
        response.encode(self.keep_alive, &mut bytes);
        self.queue(&bytes);
        self.phase = if self.keep_alive {
            Phase::Receiving
        } else {
            Phase::Finishing
        };
        self.since = now;
        self.flush(now)
    }

    /// Answers with an error and ends the connection.
    pub(super) fn refuse(&mut self, error: ErrorInfo, now: Instant) -> Fate {
        self.keep_alive = false;
        self.respond(&Response::error(error), now)
    }

    /// Turns the connection into a stream that starts with `events`.
    pub(super) fn start_stream<'e>(
        &mut self,
        events: impl Iterator<Item = &'e Event>,
        now: Instant,
    ) -> Fate {
        self.phase = Phase::Streaming;
        self.queue(stream::HEAD);
        events.for_each(|event| stream::encode(event, &mut self.output));
        self.flush(now)
    }

    /// Adds an event to the stream; `lagged` ends it if too much is waiting already.
    pub(super) fn stream(
        &mut self,
        event: &Event,
        lagged: &Event,
        limits: &Limits,
        now: Instant,
    ) -> Fate {
        if self.output.len() - self.sent > limits.stream_bytes {
            stream::encode(lagged, &mut self.output);
            return self.end_stream(now);
        }
        if !self.has_output() {
            self.written = now;
        }
        stream::encode(event, &mut self.output);
        self.flush(now)
    }

    /// Ends the stream.
    pub(super) fn end_stream(&mut self, now: Instant) -> Fate {
        self.queue(stream::END);
        self.phase = Phase::Finishing;
        self.since = now;
        self.flush(now)
    }

    fn queue(&mut self, bytes: &[u8]) {
        if !self.has_output() {
            self.written = Instant::now();
        }
        self.output.extend_from_slice(bytes);
    }

    /// Gives the socket what it takes.
    pub(super) fn flush(&mut self, now: Instant) -> Fate {
        while self.has_output() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(count) => {
                    self.sent += count;
                    self.written = now;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Fate::Open,
                Err(_) => return Fate::Closed,
            }
        }
        self.output.clear();
        self.sent = 0;
        if self.phase == Phase::Finishing && !self.shut {
            self.shut = true;
            self.since = now;
            if self.stream.shutdown(std::net::Shutdown::Write).is_err() {
                return Fate::Closed;
            }
        }
        Fate::Open
    }

    /// A second handle to the socket, for who takes it over. `None`: more than the request has
    /// come already, or the host has no descriptor left.
    pub(super) fn hand_over(&self) -> Option<UnixStream> {
        let clean = !self.has_begun() && !self.has_output();
        clean.then(|| self.stream.try_clone().ok()).flatten()
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
