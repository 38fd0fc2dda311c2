//! A VMM's control socket, as both QMP and our API need it: bytes and descriptors go out, JSON
//! objects come back, one a line.

use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::Value;

use crate::interrupt;

/// A VMM's socket appears a moment after its process.
const APPEARS: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(5);

/// One connection.
pub struct ControlSocket {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl ControlSocket {
    /// Connects, as soon as somebody listens.
    ///
    /// # Errors
    /// If nobody does.
    pub fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + APPEARS;
        loop {
            interrupt::check()?;
            match UnixStream::connect(path) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(interrupt::SLICE))?;
                    let stream = BufReader::new(stream);
                    let line = Vec::new();
                    return Ok(Self { stream, line });
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| path.display().to_string());
                }
                Err(_) => thread::sleep(RETRY),
            }
        }
    }

    /// Sends `bytes`, and `descriptors` with the first of them (unix(7), `SCM_RIGHTS`).
    ///
    /// # Errors
    /// If the VMM is gone.
    pub fn send(&mut self, bytes: &[u8], descriptors: &[RawFd]) -> Result<()> {
        use std::os::fd::AsRawFd;
        let socket = self.stream.get_ref().as_raw_fd();
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() {
            &[][..]
        } else {
            &rights[..]
        };
        let data = [IoSlice::new(bytes)];
        let sent = sendmsg::<()>(socket, &data, control, MsgFlags::MSG_NOSIGNAL, None)
            .context("sending to the VMM")?;
        self.stream.get_mut().write_all(&bytes[sent..])?;
        Ok(())
    }

    /// The next line, without its end; `None` after `deadline`.
    ///
    /// # Errors
    /// If the VMM closes the connection.
    pub fn line(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        loop {
            interrupt::check()?;
            match self.stream.read_until(b'\n', &mut self.line) {
                // The end of the connection is the end of a line, too.
                Ok(_) if !self.line.is_empty() => {
                    let line = std::mem::take(&mut self.line);
                    return Ok(Some(line.trim_ascii_end().to_vec()));
                }
                Ok(_) => bail!("the VMM has closed its control socket"),
                Err(error) if is_timeout(&error) => {
                    if Instant::now() > deadline {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error).context("reading from the VMM"),
            }
        }
    }

    /// The next line that is a JSON object; all others are headers and chunk sizes of HTTP.
    ///
    /// # Errors
    /// As `line`.
    pub fn object(&mut self, deadline: Instant) -> Result<Option<Value>> {
        while let Some(line) = self.line(deadline)? {
            if line.starts_with(b"{") {
                let text = String::from_utf8_lossy(&line);
                let value = serde_json::from_str(&text);
                return value.with_context(|| format!("not JSON: {text}")).map(Some);
            }
        }
        Ok(None)
    }
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, ControlSocket) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        let stream = BufReader::new(ours);
        let line = Vec::new();
        (theirs, ControlSocket { stream, line })
    }

    #[test]
    fn object_skips_what_is_not_json_and_waits_for_the_end_of_a_line() {
        let (mut theirs, mut socket) = pair();
        theirs
            .write_all(b"HTTP/1.1 200 OK\r\n\r\n9\r\n{\"a\":1}\n\r\n{\"b\"")
            .unwrap();
        let now = Instant::now();
        assert_eq!(socket.object(now).unwrap().unwrap()["a"], 1);
        assert_eq!(socket.object(now).unwrap(), None);
        theirs.write_all(b":2}\n").unwrap();
        assert_eq!(socket.object(now).unwrap().unwrap()["b"], 2);
        theirs.write_all(b"{\"c\":3}").unwrap();
        drop(theirs);
        assert_eq!(socket.object(now).unwrap().unwrap()["c"], 3);
        assert!(socket.object(now).is_err());
    }
}
