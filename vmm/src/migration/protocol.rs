//! The messages between the two sides.
//!
//! One control connection and one or more data connections, each a TCP connection that is opened
//! by the source, encrypted (TLS 1.3, both sides authenticated) unless plain text was asked for.
//! Every connection starts with a [`Preamble`] of fixed size; frames follow.
//!
//! ```text
//!      source                                      destination
//!        │ control: Hello (who, what machine)           │ built, parked, silent
//!        │ ───────────────────────────────────────────► │ preflight
//!        │ ◄─────────────────── Welcome (or Refuse) ─── │
//!        │ Rehearse (state of now) ───────────────────► │ dry run: MSRs, devices, queues
//!        │ ◄──────────────── Rehearsed (or Refuse) ──── │
//!        │ data: Pages …                                │
//!        │ ═══════════════════════════════════════════► │ in place
//!        │ ◄───────────────────────── Ack (bytes) … ─── │
//!        ├ quiesce disks, pause                         │
//!        │ data: Pages …, Flush ══════════════════════► │
//!        │ control: State, Commit ────────────────────► │ waits for every Flush, takes the
//!        │                                              │ ownership, restores, runs
//!        │ ◄──────────────────── Running (or Aborted) ─ │
//!        ╵ ends                                         ▼
//! ```
//! Before `Commit` is written every failure, on either side, ends with the guest running at the
//! source; the source says `Cancel` if it can. After it the source never runs the guest again
//! unless the destination says `Aborted` on this connection, or the source wins the guest's
//! ownership back.
//!
//! # Post-copy
//!
//! If the request allows it ([`Hello::may_leave_pages`]) there is one more connection, for pages
//! that somebody waits for, and the source may end precopy differently:
//!
//! ```text
//!      source                                      destination
//!        │ all that was sent is acknowledged            │
//!        │ control: Leave (pages) … ──────────────────► │ whoever touches RAM waits from now on,
//!        │ ◄────────────────────── Dropped (pages) … ── │ and what it has of these is gone
//!        ├ quiesce disks, pause                         │
//!        │ data: Flush ═══════════════════════════════► │
//!        │ control: Leave (written since), State,       │
//!        │          Commit ───────────────────────────► │ takes the ownership, restores, runs
//!        │ ◄──────────────────── Running (or Aborted) ─ │
//!        │ data: Pages … ═════════════════════════════► │ in place
//!        │ urgent: ◄────────────────────── Want (page) ─│ somebody touched one
//!        │ urgent: Pages ─────────────────────────────► │
//!        │ urgent: ◄─────────────────────── Ack (bytes) │
//!        │ urgent: ◄────────────────────────── Fetched ─│ the last one is in place, or the guest
//!        │                                              │ has ended and wants none
//!        ╵ ends                                         ▼
//! ```
//! Between `Leave` and `Commit` no page is sent. From `Commit` on pages may come, and may be
//! wanted, before `Running`. What is left behind goes without differences: there is no older
//! version of it any more.
//!
//! `Commit` decides as above, and the destination may say `Aborted` as long as it has not said
//! `Running`. After `Running` the source never runs the guest again, whatever becomes of the link
//! or the destination: a guest that ran there has done what nobody can undo. If pages cannot be
//! fetched any more the guest stands still on both sides, for good.
//!
//! # Frames
//!
//! A frame is [`FrameHeader`] and a body. Bodies of control messages are CBOR; those of
//! [`Kind::Pages`] are described in `pages`. The receiver treats every byte as hostile: a length
//! beyond [`Kind::limit`] ends the connection before anything is allocated.

use std::time::Duration;

use pindah_vmm_api::{PauseReason, VmConfig};
use serde::{Deserialize, Serialize};

/// First bytes of every connection.
pub const MAGIC: [u8; 8] = *b"PINDAHMG";

/// Version of this protocol; both sides speak the lower one of theirs.
pub const VERSION: u16 = 1;

/// Bytes of a [`Preamble`].
pub const PREAMBLE_BYTES: usize = 32;

/// Bytes of a [`FrameHeader`].
pub const HEADER_BYTES: usize = 8;

/// How long the other side may take for an answer that needs no storage.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Messages, both ways. The first connection.
    Control,
    /// Pages, to the destination.
    Data,
    /// Pages that somebody waits for, to the destination, and what is wanted, to the source.
    Urgent,
}

/// What a connection starts with.
///
/// Shape: magic (8 bytes), version (u16), channel (u8: 0 control, 1 data, 2 urgent), its number among those
/// of its kind (u8), migration id (16 bytes), four bytes of zeroes; little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// The sender's [`VERSION`].
    pub version: u16,
    /// What the connection is for.
    pub channel: Channel,
    /// Its number among those of its kind, from 0.
    pub number: u8,
    /// Random; the same on all connections of one migration.
    pub migration: [u8; 16],
}

impl Preamble {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10] = match self.channel {
            Channel::Control => 0,
            Channel::Data => 1,
            Channel::Urgent => 2,
        };
        bytes[11] = self.number;
        bytes[12..28].copy_from_slice(&self.migration);
        bytes
    }

    /// Reads what [`Self::encode`] gave; `None` if it is no preamble.
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Option<Self> {
        if bytes[..8] != MAGIC {
            return None;
        }
        let channel = match bytes[10] {
            0 => Channel::Control,
            1 => Channel::Data,
            2 => Channel::Urgent,
            _ => return None,
        };
        let mut migration = [0; 16];
        migration.copy_from_slice(&bytes[12..28]);
        Some(Self {
            version: u16::from_le_bytes([bytes[8], bytes[9]]),
            channel,
            number: bytes[11],
            migration,
        })
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`Hello`], to the destination.
    Hello = 1,
    /// [`Welcome`], to the source.
    Welcome = 2,
    /// [`Reason`], to the source: this guest cannot run here.
    Refuse = 3,
    /// An encoded `VmState`, to the destination.
    Rehearse = 4,
    /// [`Rehearsed`], to the source: the dry run went well.
    Rehearsed = 5,
    /// [`Ack`], to the source.
    Ack = 6,
    /// An encoded `VmState`, to the destination.
    State = 7,
    /// [`Commit`], to the destination: the guest is yours once all is in place.
    Commit = 8,
    /// [`Running`], to the source.
    Running = 9,
    /// [`Reason`], to the source: the guest will never run here.
    Aborted = 10,
    /// [`Reason`], to the destination: the source has changed its mind.
    Cancel = 11,
    /// Pages that are left behind, to the destination: what it has of them is out of date. The
    /// body is described in `left`.
    Leave = 12,
    /// [`Dropped`], to the source, after each [`Self::Leave`].
    Dropped = 13,
    /// GPAs of pages that somebody waits for, to the source, on the urgent connection: a u64 each,
    /// little-endian, multiples of 4096.
    Want = 14,
    /// [`Fetched`], to the source, on the urgent connection: no page is wanted any more.
    Fetched = 15,
    /// Pages, to the destination, on a data connection, or wanted ones on the urgent one.
    Pages = 32,
    /// Nothing, to the destination, on a data connection: all pages are sent.
    Flush = 33,
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refuse,
            4 => Self::Rehearse,
            5 => Self::Rehearsed,
            6 => Self::Ack,
            7 => Self::State,
            8 => Self::Commit,
            9 => Self::Running,
            10 => Self::Aborted,
            11 => Self::Cancel,
            12 => Self::Leave,
            13 => Self::Dropped,
            14 => Self::Want,
            15 => Self::Fetched,
            32 => Self::Pages,
            33 => Self::Flush,
            _ => return None,
        })
    }

    /// Longest body in bytes.
    pub fn limit(self) -> usize {
        match self {
            Self::Rehearse | Self::State => crate::vm::state::MAX_STATE_BYTES,
            Self::Hello | Self::Pages | Self::Leave => MAX_PAGES_BYTES,
            Self::Welcome | Self::Refuse | Self::Aborted | Self::Cancel => 64 << 10,
            Self::Rehearsed
            | Self::Ack
            | Self::Commit
            | Self::Running
            | Self::Dropped
            | Self::Want
            | Self::Fetched => 1 << 10,
            Self::Flush => 0,
        }
    }
}

/// Longest body of a frame of pages: 64 raw pages and what describes them, with room to spare.
pub const MAX_PAGES_BYTES: usize = 512 << 10;

/// What stands before each body.
///
/// Shape: kind (u8), three bytes of zeroes, length of the body (u32, little-endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the body holds.
    pub kind: Kind,
    /// Its length in bytes, within the kind's limit.
    pub length: usize,
}

impl FrameHeader {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let length = (self.length as u32).to_le_bytes();
        let [a, b, c, d] = length;
        [self.kind as u8, 0, 0, 0, a, b, c, d]
    }

    /// Reads what [`Self::encode`] gave; `None` for an unknown kind, a length beyond its limit, or
    /// reserved bytes in use.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Option<Self> {
        let [kind, 0, 0, 0, a, b, c, d] = bytes else {
            return None;
        };
        let kind = Kind::from_number(kind)?;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        (length <= kind.limit()).then_some(Self { kind, length })
    }
}

/// What the source is about to send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the source's VMM.
    pub vmm_version: String,
    /// What the guest was built from.
    pub config: VmConfig,
    /// Its RAM as `(GPA, bytes)`, in the order of memslots.
    pub regions: Vec<(u64, u64)>,
    /// Number of data connections.
    pub data_connections: u8,
    /// Whether [`Commit`] carries a checksum of all RAM.
    #[serde(default)]
    pub verify_memory: bool,
    /// Whether the guest may run before all of its pages are there. If so there is an urgent
    /// connection.
    #[serde(default)]
    pub may_leave_pages: bool,
}

/// The destination has what the guest needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Version of the destination's VMM.
    pub vmm_version: String,
    /// Whether it can run the guest before all of its pages are there: as
    /// [`Hello::may_leave_pages`].
    #[serde(default)]
    pub may_leave_pages: bool,
}

/// The destination can take the guest's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsed {
    /// How long that took, in microseconds.
    pub restore_us: u64,
    /// When the state came, by the destination's clock, in nanoseconds since the Unix epoch; 0:
    /// unknown.
    #[serde(default)]
    pub came_unix_ns: u64,
    /// When this left.
    #[serde(default)]
    pub answered_unix_ns: u64,
}

/// Why one side does not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// For a person.
    pub message: String,
}

/// What is in place at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Bytes of bodies and headers of [`Kind::Pages`] on all data connections that were applied
    /// since the start.
    pub bytes: u64,
}

/// What the destination has dropped since it is left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// All pages of all [`Kind::Leave`] so far, each counted once.
    pub pages: u64,
}

/// All that was left behind is in place at the destination, or is wanted no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// The guest was switched off, or has crashed, before all of it had come.
    #[serde(default)]
    pub ended: bool,
    /// From COMMIT to the last page, in microseconds.
    pub duration_us: u64,
    /// Pages that were wanted.
    pub demanded_pages: u64,
    /// How long those were waited for, in microseconds: the median.
    pub fault_median_us: u64,
    /// The longest.
    pub fault_max_us: u64,
}

/// The guest belongs to the destination once everything before this is in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// As [`Ack::bytes`], of all that was sent.
    pub bytes: u64,
    /// Pages that are left behind.
    #[serde(default)]
    pub left_pages: u64,
    /// XXH3 (64 bits) over all RAM, if [`Hello::verify_memory`] says so and no page is left
    /// behind.
    #[serde(default)]
    pub checksum: Option<u64>,
    /// The guest stood still before it moved, and is to stand there too.
    #[serde(default)]
    pub paused: bool,
    /// Why it did, if a disk failed it: it stands there for the same reason.
    #[serde(default)]
    pub failed: Option<FailedDisk>,
    /// By how much the destination's wall clock is ahead of the source's, in nanoseconds: the
    /// guest's does not gain it.
    #[serde(default)]
    pub clock_ahead_ns: i64,
}

/// A disk that could not do what the guest asked it for, as in
/// [`PauseReason::Device`](pindah_vmm_api::PauseReason::Device).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedDisk {
    /// The disk.
    pub id: String,
    /// What failed and why, in at most [`FAILED_BYTES`] bytes.
    pub message: String,
    /// Its storage is full, and nothing else failed.
    pub no_space: bool,
}

/// Longest text of each kind in a [`FailedDisk`], in bytes: the message that it is part of is short.
pub const FAILED_BYTES: usize = 256;

impl FailedDisk {
    /// The disk for which the guest stands, if it stands for one.
    pub fn of(reason: Option<PauseReason>) -> Option<Self> {
        match reason {
            Some(PauseReason::Device {
                id,
                message,
                no_space,
            }) => Some(Self {
                id: head(&id),
                message: head(&message),
                no_space,
            }),
            _ => None,
        }
    }

    /// Why the guest stands.
    pub fn into_reason(self) -> PauseReason {
        PauseReason::Device {
            id: head(&self.id),
            message: head(&self.message),
            no_space: self.no_space,
        }
    }
}

/// The first [`FAILED_BYTES`] bytes, but no part of a character.
fn head(text: &str) -> String {
    let mut end = text.len().min(FAILED_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// The guest runs at the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// From COMMIT to all pages in place, in microseconds.
    pub drain_us: u64,
    /// Ownership and the disks' metadata, in microseconds.
    pub ownership_us: u64,
    /// The state is set, in microseconds.
    pub restore_us: u64,
    /// Until the vCPUs run, in microseconds.
    pub resume_us: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn preamble_encoded_and_decoded_is_the_same() {
        let of = |channel| Preamble {
            version: 7,
            channel,
            number: 3,
            migration: *b"0123456789abcdef",
        };
        for channel in [Channel::Control, Channel::Data, Channel::Urgent] {
            assert_eq!(Preamble::decode(&of(channel).encode()), Some(of(channel)));
        }
        let preamble = of(Channel::Data);
        let mut foreign = preamble.encode();
        foreign[0] = b'Q';
        assert_eq!(Preamble::decode(&foreign), None);
    }

    #[test]
    fn frame_beyond_its_limit_is_refused() {
        for kind in (0..=u8::MAX).filter_map(Kind::from_number) {
            let limit = kind.limit();
            let header = FrameHeader {
                kind,
                length: limit,
            };
            assert_eq!(FrameHeader::decode(header.encode()), Some(header));
            let longer = FrameHeader {
                kind,
                length: limit + 1,
            };
            assert_eq!(FrameHeader::decode(longer.encode()), None);
        }
    }

    proptest! {
        #[test]
        fn any_header_decodes_to_itself_or_not_at_all(bytes: [u8; HEADER_BYTES]) {
            if let Some(header) = FrameHeader::decode(bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
