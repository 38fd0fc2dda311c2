//! As much of HTTP as a test needs to speak with the API socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::harness::DEADLINE;

/// One request and its answer: status and body.
pub fn request(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).expect("the API listens");
    stream
        .set_read_timeout(Some(DEADLINE))
        .expect("a socket has a timeout");
    let body = body.map(Value::to_string).unwrap_or_default();
    let kind = if body.is_empty() {
        String::new()
    } else {
        format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        )
    };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: vmm\r\nConnection: close\r\n{kind}\r\n{body}"
    )
    .expect("the API reads");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .expect("the API answers in time");
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .expect("an answer has a head and a body");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("an answer has a status");
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}
