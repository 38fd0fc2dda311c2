//! An answer, and its bytes (RFC 9112).

use pindah_vmm_api::{ErrorBody, ErrorInfo};
use serde::Serialize;

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    /// JSON; empty: no body.
    pub(super) body: Vec<u8>,
    /// For 405: the methods that the path takes.
    pub(super) allow: Option<String>,
}

impl Response {
    /// 204.
    pub(super) fn done() -> Self {
        Self {
            status: 204,
            body: Vec::new(),
            allow: None,
        }
    }

    /// 200 with `body` as JSON and a line end, for who reads it in a terminal.
    pub(super) fn json<T: Serialize>(body: &T) -> Self {
        Self::with_body(200, body)
    }

    /// 202 with `body` as JSON: it is being done.
    pub(super) fn accepted<T: Serialize>(body: &T) -> Self {
        Self::with_body(202, body)
    }

    /// 200 with text that is JSON already.
    pub(super) fn raw_json(body: &str) -> Self {
        Self {
            status: 200,
            body: body.as_bytes().to_vec(),
            allow: None,
        }
    }

    /// The status that goes with the error's code.
    pub(super) fn error(error: ErrorInfo) -> Self {
        Self::with_body(error.code.status(), &ErrorBody { error })
    }

    fn with_body<T: Serialize>(status: u16, body: &T) -> Self {
        let mut body = serde_json::to_vec(body).expect("wire types have string keys only");
        body.push(b'\n');
        Self {
            status,
            body,
            allow: None,
        }
    }

    /// Appends the answer's bytes to `output`.
    pub(super) fn encode(&self, keep_alive: bool, output: &mut Vec<u8>) {
        let mut lines = vec![format!("HTTP/1.1 {} {}", self.status, reason(self.status))];
        if self.status != 204 {
            lines.push("Content-Type: application/json".to_owned());
            lines.push(format!("Content-Length: {}", self.body.len()));
        }
        if let Some(allow) = &self.allow {
            lines.push(format!("Allow: {allow}"));
        }
        if !keep_alive {
            lines.push("Connection: close".to_owned());
        }
        output.extend_from_slice(lines.join("\r\n").as_bytes());
        output.extend_from_slice(b"\r\n\r\n");
        output.extend_from_slice(&self.body);
    }
}

/// Reason phrases (RFC 9110, section 15).
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}
