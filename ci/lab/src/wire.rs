//! Frames between the harness and the agent in a server.
//!
//! ```text
//!  0      4     5        9
//!  | id   |kind | length | payload …      (little endian)
//! ```
//!
//! `id` names a command; the harness chooses it. Many commands share the one
//! virtio-serial port.
//!
//! ```text
//!  harness                          agent
//!                         ◄──────── Hello
//!  Start{argv} ───────────────────►
//!  Stdin … CloseStdin ────────────►
//!                         ◄──────── Stdout …, Stderr …
//!  Signal ────────────────────────►
//!                         ◄──────── Exited | Failed   (last frame of the id)
//! ```

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Payloads are never larger than this.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Name of the virtio-serial port that carries the frames.
pub const PORT: &str = "pindah-lab";

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Harness: start a command; payload is [`Start`] as JSON.
    Start = 1,
    /// Harness: bytes for the command's standard input.
    Stdin = 2,
    /// Harness: no more standard input.
    CloseStdin = 3,
    /// Harness: send a signal to the command's process group; payload is an `i32`.
    Signal = 4,
    /// Agent: it is up. Without an id.
    Hello = 16,
    /// Agent: bytes of the command's standard output.
    Stdout = 17,
    /// Agent: bytes of the command's standard error.
    Stderr = 18,
    /// Agent: the command ended and its output is complete; payload is an `i32`:
    /// the exit status, or 128 + the signal that killed it.
    Exited = 19,
    /// Agent: the command could not be started; payload says why.
    Failed = 20,
}

impl TryFrom<u8> for Kind {
    type Error = io::Error;

    fn try_from(byte: u8) -> io::Result<Self> {
        Ok(match byte {
            1 => Self::Start,
            2 => Self::Stdin,
            3 => Self::CloseStdin,
            4 => Self::Signal,
            16 => Self::Hello,
            17 => Self::Stdout,
            18 => Self::Stderr,
            19 => Self::Exited,
            20 => Self::Failed,
            other => return Err(invalid(format!("frame of unknown kind {other}"))),
        })
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which command.
    pub id: u32,
    /// What it says.
    pub kind: Kind,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Payload of [`Kind::Start`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Program and arguments.
    pub argv: Vec<String>,
}

/// Writes one frame and flushes.
///
/// # Errors
/// If the writer fails, or the payload is larger than [`MAX_PAYLOAD`].
pub fn write(to: &mut impl Write, id: u32, kind: Kind, payload: &[u8]) -> io::Result<()> {
    if payload.len() > MAX_PAYLOAD {
        return Err(invalid(format!("payload of {} bytes", payload.len())));
    }
    let mut frame = Vec::with_capacity(9 + payload.len());
    frame.extend_from_slice(&id.to_le_bytes());
    frame.push(kind as u8);
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(payload);
    to.write_all(&frame)?;
    to.flush()
}

/// Reads one frame; an end of file inside or before it is an error.
///
/// # Errors
/// If the reader fails or the bytes are not a frame.
pub fn read(from: &mut impl Read) -> io::Result<Frame> {
    let mut header = [0; 9];
    from.read_exact(&mut header)?;
    let [i0, i1, i2, i3, kind, l0, l1, l2, l3] = header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > MAX_PAYLOAD {
        return Err(invalid(format!("frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    Ok(Frame {
        id: u32::from_le_bytes([i0, i1, i2, i3]),
        kind: kind.try_into()?,
        payload,
    })
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_written_then_read_is_the_same() {
        let mut bytes = Vec::new();
        write(&mut bytes, 7, Kind::Stdout, b"\x00\xffabc").unwrap();
        let frame = read(&mut bytes.as_slice()).unwrap();
        assert_eq!(
            (frame.id, frame.kind, frame.payload.as_slice()),
            (7, Kind::Stdout, b"\x00\xffabc".as_slice())
        );
    }

    #[test]
    fn frame_too_long_or_of_unknown_kind_is_refused() {
        assert!(write(&mut Vec::new(), 1, Kind::Stdin, &vec![0; MAX_PAYLOAD + 1]).is_err());
        assert!(read(&mut [0, 0, 0, 0, 99, 0, 0, 0, 0].as_slice()).is_err());
        assert!(read(&mut [0, 0, 0, 0, 1, 0, 0, 0, 0x7f].as_slice()).is_err());
    }
}
