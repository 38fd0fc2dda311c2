//! The API: HTTP/1.1 with JSON on a Unix socket, to one machine.
//!
//! ```text
//! client ─► connection ─ request ─► route ─► handler ─┬─ at once ──────────────► response
//!            (buffers,                                ├─ job ─► worker thread ─► response
//!             deadlines)                              ├─ events: the stream stays open
//!                                                     └─ attach: the socket becomes the console
//! ```
//!
//! One thread serves all connections and never waits; what may take long (pausing, a snapshot)
//! goes one at a time to a second thread, so that state can be read meanwhile. A client that
//! hangs costs a buffer and is dropped at its deadline. File descriptors that come with a
//! request (`SCM_RIGHTS`) belong to it: the VMM itself opens nothing by path.
//!
//! `openapi.json` of `pindah-vmm-api` describes every path; a test holds it to [`routes`].

pub mod client;
mod connection;
mod handler;
mod request;
mod response;
pub mod routes;
mod server;
mod socket;
mod stream;
mod worker;

#[cfg(test)]
mod openapi;
#[cfg(test)]
mod tests;

use std::time::Duration;

use pindah_vmm_api::{ErrorCode, ErrorInfo};

pub use server::Server;

/// What one client may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest header, request line included, in bytes.
    pub header_bytes: usize,
    /// Longest body in bytes.
    pub body_bytes: usize,
    /// Connections at a time. One more takes the place of the one that has been idle longest, or
    /// is answered 503.
    pub connections: usize,
    /// From a request's first byte to its last.
    pub request: Duration,
    /// Between requests.
    pub idle: Duration,
    /// Without any progress in taking an answer.
    pub write: Duration,
    /// Bytes that an event stream may leave untaken before it is cut.
    pub stream_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 8 << 10,
            body_bytes: 64 << 10,
            connections: 64,
            request: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            write: Duration::from_secs(10),
            stream_bytes: 256 << 10,
        }
    }
}

/// Most file descriptors with one request.
const MAX_DESCRIPTORS: usize = 9;

fn refuse(code: ErrorCode, message: impl Into<String>) -> ErrorInfo {
    ErrorInfo {
        code,
        message: message.into(),
    }
}
