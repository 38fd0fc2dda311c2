//! The small client: what the command line and the tests use to talk to a VMM.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pindah_vmm_api::{ErrorBody, ErrorInfo, Event};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::handler::CONSOLE_PROTOCOL;
use super::socket;

/// Longest answer that is taken, in bytes.
const MAX_BODY: u64 = 16 << 20;
/// Longest header that is taken, in bytes.
const MAX_HEADER: u64 = 8 << 10;

/// One connection to a VMM.
pub struct Client {
    stream: BufReader<UnixStream>,
}

/// Why a request has no answer, or a bad one.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot connect to {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke: the VMM has ended.
    #[error("the connection to the VMM broke")]
    Io(#[from] io::Error),
    /// What came is not HTTP or not the JSON that the API promises.
    #[error("the answer is not what a VMM gives: {0}")]
    Protocol(String),
    /// The VMM refuses.
    #[error("{}", .0.message)]
    Refused(ErrorInfo),
}

struct Head {
    status: u16,
    content_length: u64,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self::new(stream)),
            Err(source) => Err(ClientError::Connect {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// On a connection that is there already.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// How long to wait for each part of an answer; `None`: for ever.
    ///
    /// # Errors
    /// [`ClientError::Io`] for a time of zero.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        Ok(self.stream.get_ref().set_read_timeout(timeout)?)
    }

    /// A request whose answer is JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get<R: DeserializeOwned>(&mut self, path: &str) -> Result<R, ClientError> {
        self.send("GET", path, "", b"", &[])?;
        let body = self.answer()?;
        parse(&body)
    }

    /// A command without answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn command<B: Serialize>(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&B>,
    ) -> Result<(), ClientError> {
        self.send_json(method, path, body, &[])?;
        self.answer().map(|_| ())
    }

    /// A `POST` with file descriptors, whose answer is JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post_with_descriptors<B: Serialize, R: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &B,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<R, ClientError> {
        self.send_json("POST", path, Some(body), descriptors)?;
        let body = self.answer()?;
        parse(&body)
    }

    /// The events after this one, or from now on. The iterator ends when the VMM does, or after
    /// [`pindah_vmm_api::EventKind::Lagged`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn events(
        mut self,
        after: Option<u64>,
    ) -> Result<impl Iterator<Item = Result<Event, ClientError>>, ClientError> {
        let query = after.map_or(String::new(), |number| format!("?after={number}"));
        self.send("GET", &format!("/api/v1/events{query}"), "", b"", &[])?;
        let head = self.read_head()?;
        if head.status != 200 {
            let body = self.read_body(&head)?;
            return Err(refused(&body));
        }
        Ok(std::iter::from_fn(move || self.next_event().transpose()))
    }

    fn next_event(&mut self) -> Result<Option<Event>, ClientError> {
        let mut size = String::new();
        if (&mut self.stream).take(32).read_line(&mut size)? == 0 {
            return Ok(None);
        }
        let length = u64::from_str_radix(size.trim_end(), 16)
            .map_err(|_| ClientError::Protocol(format!("chunk size {size:?}")))?;
        if length > MAX_BODY {
            return Err(ClientError::Protocol(format!("chunk of {length} bytes")));
        }
        let mut chunk = vec![0; length as usize + 2];
        self.stream.read_exact(&mut chunk)?;
        if length == 0 {
            return Ok(None);
        }
        parse(&chunk).map(Some)
    }

    /// Turns the connection into the console `id`: raw bytes both ways.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn attach_console(mut self, id: &str) -> Result<BufReader<UnixStream>, ClientError> {
        let headers = format!("Connection: Upgrade\r\nUpgrade: {CONSOLE_PROTOCOL}\r\n");
        let path = format!("/api/v1/consoles/{id}/attach");
        self.send("POST", &path, &headers, b"", &[])?;
        let head = self.read_head()?;
        if head.status == 101 {
            return Ok(self.stream);
        }
        let body = self.read_body(&head)?;
        Err(refused(&body))
    }

    fn send_json<B: Serialize>(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&B>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let Some(body) = body else {
            return self.send(method, path, "", b"", descriptors);
        };
        let body = serde_json::to_vec(body)
            .map_err(|error| ClientError::Protocol(format!("the request: {error}")))?;
        let headers = "Content-Type: application/json\r\n";
        self.send(method, path, headers, &body, descriptors)
    }

    fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let length = body.len();
        let mut bytes = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n"
        )
        .into_bytes();
        bytes.extend_from_slice(body);
        let sent = socket::send(self.stream.get_ref(), &bytes, descriptors)?;
        self.stream.get_mut().write_all(&bytes[sent..])?;
        Ok(())
    }

    fn answer(&mut self) -> Result<Vec<u8>, ClientError> {
        let head = self.read_head()?;
        let body = self.read_body(&head)?;
        match head.status {
            200..300 => Ok(body),
            _ => Err(refused(&body)),
        }
    }

    fn read_head(&mut self) -> Result<Head, ClientError> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            let left = MAX_HEADER.saturating_sub(bytes.len() as u64);
            let mut limited = (&mut self.stream).take(left);
            if limited.read_until(b'\n', &mut bytes)? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        response
            .parse(&bytes)
            .map_err(|error| ClientError::Protocol(error.to_string()))?;
        let length = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-length"))
            .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
        Ok(Head {
            status: response.code.unwrap_or_default(),
            content_length: length.unwrap_or(0),
        })
    }

    fn read_body(&mut self, head: &Head) -> Result<Vec<u8>, ClientError> {
        if head.content_length > MAX_BODY {
            let length = head.content_length;
            return Err(ClientError::Protocol(format!("body of {length} bytes")));
        }
        let mut body = vec![0; head.content_length as usize];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }
}

fn parse<R: DeserializeOwned>(body: &[u8]) -> Result<R, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Protocol(error.to_string()))
}

fn refused(body: &[u8]) -> ClientError {
    parse::<ErrorBody>(body).map_or_else(|error| error, |body| ClientError::Refused(body.error))
}
