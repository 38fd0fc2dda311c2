//! Why a connection fails, in words for who has to put it right.

use std::fmt::{Display, Formatter};
use std::io;

use thiserror::Error;

use crate::migration::protocol::{HEADER_BYTES, Kind};
use crate::migration::tls::TlsRefusal;
use crate::migration::wait::Ended;

/// What a connection was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Setting up the socket.
    Setup,
    /// Agreeing on encryption.
    Handshake,
    /// Saying which protocol, and which of a migration's connections.
    Greeting,
    /// Sending frames.
    Sending,
    /// Waiting for a frame.
    Receiving,
}

impl Display for Doing {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Setup => "setting up the socket",
            Self::Handshake => "agreeing on encryption",
            Self::Greeting => "exchanging the greeting",
            Self::Sending => "sending",
            Self::Receiving => "waiting for a message",
        })
    }
}

/// Why a connection fails.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// It has ended, cleanly or not.
    #[error("the other side closed the connection")]
    Closed,
    /// The deadline has passed.
    #[error("timed out {doing}")]
    TimedOut {
        /// What took so long.
        doing: Doing,
    },
    /// Somebody has cancelled the migration.
    #[error("cancelled")]
    Cancelled,
    /// The host fails.
    #[error("the connection failed {doing}")]
    Io {
        /// What was tried.
        doing: Doing,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Who is there is not who should be, or encryption fails.
    #[error("TLS: {0}")]
    Tls(TlsRefusal),
    /// A side that wants encryption met one that does not.
    #[error("the other side sends plain text, and this side expects TLS")]
    PlainText,
    /// The other way round.
    #[error("the other side speaks TLS, and this side expects plain text")]
    Encrypted,
    /// Whoever it is speaks something else.
    #[error("what is on the other side is no Pindah migration")]
    Foreign,
    /// A frame that there cannot be.
    #[error("the other side sends what is no frame: {}", describe(*header))]
    Frame {
        /// What stands where its header should.
        header: [u8; HEADER_BYTES],
    },
    /// A message that there cannot be.
    #[error("a message {kind:?} cannot be read or written: {reason}")]
    Message {
        /// Which.
        kind: Kind,
        /// Why.
        reason: String,
    },
    /// A frame of ours that the other side would refuse.
    #[error("a message {kind:?} of {length} bytes is too long; {} are allowed", kind.limit())]
    TooLong {
        /// What it is.
        kind: Kind,
        /// Its body's length in bytes.
        length: usize,
    },
    /// An earlier send was given up.
    #[error("an earlier message was sent in part only")]
    Torn,
}

impl ConnectionError {
    pub(super) fn of_io(doing: Doing, source: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        match source.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected => Self::Closed,
            _ => Self::Io { doing, source },
        }
    }

    pub(super) fn of_wait(doing: Doing, ended: Ended) -> Self {
        match ended {
            Ended::Late => Self::TimedOut { doing },
            Ended::Cancelled => Self::Cancelled,
            Ended::Host(source) => Self::Io { doing, source },
        }
    }
}

impl From<TlsRefusal> for ConnectionError {
    fn from(refusal: TlsRefusal) -> Self {
        Self::Tls(refusal)
    }
}

fn describe(header: [u8; HEADER_BYTES]) -> String {
    let [number, reserved @ .., a, b, c, d] = header;
    let length = u32::from_le_bytes([a, b, c, d]);
    match Kind::from_number(number) {
        None => format!("there is no kind {number}"),
        Some(_) if reserved != [0; HEADER_BYTES - 5] => "reserved bytes are in use".to_owned(),
        Some(kind) => format!(
            "{kind:?} with {length} bytes, of which {} are allowed",
            kind.limit()
        ),
    }
}
