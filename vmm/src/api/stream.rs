//! The stream of events: JSON lines, one chunk each (RFC 9112, 7.1).
//!
//! Events are numbered without gaps. A client that was cut off comes back with `?after=` the last
//! number that it has; a jump in the numbers tells it that more was missed than is kept.

use std::collections::VecDeque;

use pindah_vmm_api::{Event, EventKind};

use crate::vm::events::now_unix_ms;

/// Events kept for clients that come back.
const KEPT: usize = 256;

/// What the stream starts with.
pub(super) const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Content-Type: application/x-ndjson\r\n\
    Cache-Control: no-store\r\n\
    Transfer-Encoding: chunked\r\n\r\n";

/// What it ends with.
pub(super) const END: &[u8] = b"0\r\n\r\n";

/// Appends one event as a chunk.
pub(super) fn encode(event: &Event, output: &mut Vec<u8>) {
    let mut line = serde_json::to_vec(event).expect("wire types have string keys only");
    line.push(b'\n');
    output.extend_from_slice(format!("{:x}\r\n", line.len()).as_bytes());
    output.extend_from_slice(&line);
    output.extend_from_slice(b"\r\n");
}

/// The latest events.
#[derive(Default)]
pub(super) struct History {
    events: VecDeque<Event>,
}

impl History {
    pub(super) fn push(&mut self, event: Event) {
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Those with a number above `sequence`.
    pub(super) fn after(&self, sequence: u64) -> impl Iterator<Item = &Event> {
        let later = move |event: &&Event| event.sequence > sequence;
        self.events.iter().filter(later)
    }

    /// The last line of a reader that was too slow.
    pub(super) fn lagged(&self) -> Event {
        Event {
            sequence: self.events.back().map_or(0, |event| event.sequence),
            time_unix_ms: now_unix_ms(),
            kind: EventKind::Lagged,
        }
    }
}
