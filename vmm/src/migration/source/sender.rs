//! Pages on their way: encoded, paced, acknowledged.

mod urgent;

use std::mem;
use std::ops::Range;
use std::time::{Duration, Instant};

use pindah_vmm_api::PageStatistics;

use super::MigrationError;
use super::encoding::{Encoding, Settings};
use super::throttle::Throttle;
use crate::memory::PAGE_SIZE;
use crate::migration::cap::Cap;
use crate::migration::connection::{Connection, ConnectionError, wait_readable};
use crate::migration::pending::Run;
use crate::migration::priority::{LowPriority, Priority};
use crate::migration::progress::Progress;
use crate::migration::protocol::{Ack, FrameHeader, HEADER_BYTES, Kind, Reason};
use crate::migration::window::Window;
pub use urgent::Urgent;

/// The destination must acknowledge something at least this often while something is on its way.
const STALL: Duration = Duration::from_secs(30);
/// Pages that are encoded at once. What a batch costs beside its pages (a record, a system call or
/// two, the other side's wake-up) is the same for one page and for many.
const BATCH_PAGES: u32 = 64;
/// Batches that are encoded while one is sent.
const AHEAD: usize = 1;
/// How long to wait for the destination before looking at the clock again.
const TICK: Duration = Duration::from_millis(50);

/// The connections of a migration.
pub struct Connections {
    /// Messages.
    pub control: Connection,
    /// Pages.
    pub data: Vec<Connection>,
    /// Pages that somebody waits for, if the guest may leave some behind.
    pub urgent: Option<Connection>,
}

/// What the source sends with.
pub struct Sender<'a> {
    pub control: Connection,
    data: Vec<Connection>,
    urgent: Option<Connection>,
    next: usize,
    encoding: Encoding,
    window: Window,
    /// What the kernel was told last.
    pace: Option<u64>,
    cap: Option<Cap>,
    low_priority: LowPriority,
    throttle: Throttle<'a>,
    progress: &'a Progress,
    buffer: Vec<u8>,
    /// What is in the buffer and waits for its turn.
    unsent: Range<usize>,
    sent: u64,
    last_ack: Instant,
    /// For the destination, for a cap or for the guest to write.
    waited: Duration,
    /// How long the destination may take nothing.
    patience: Duration,
}

impl<'a> Sender<'a> {
    /// On connections that are agreed on. From now on the calling thread and the one that encodes
    /// leave the processor to others.
    pub fn new(
        connections: Connections,
        encoding: Encoding,
        bandwidth_bytes_per_s: Option<u64>,
        priority: Priority,
        throttle: Throttle<'a>,
        progress: &'a Progress,
    ) -> Self {
        let now = progress.elapsed();
        Self {
            control: connections.control,
            data: connections.data,
            urgent: connections.urgent,
            next: 0,
            encoding,
            window: Window::new(now),
            pace: None,
            cap: bandwidth_bytes_per_s.map(|bytes_per_s| Cap::new(now, bytes_per_s)),
            low_priority: LowPriority::begin(priority),
            throttle,
            progress,
            buffer: Vec::new(),
            unsent: 0..0,
            sent: 0,
            last_ack: Instant::now(),
            waited: Duration::ZERO,
            patience: STALL,
        }
    }

    /// Looks whether guests leave this thread and the one that encodes enough of the processor.
    pub fn mind_share(&mut self) {
        self.low_priority.mind(self.waited, self.encoding.used());
    }

    /// They are as any other from now on.
    pub fn end_low_priority(&mut self) {
        self.low_priority.end();
    }

    /// Bytes of page frames so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Pages that were given to [`Self::send`] and are still being encoded.
    pub fn pages_ahead(&self) -> u64 {
        self.encoding.pages_ahead()
    }

    /// Bytes on the wire so far, all connections together.
    pub fn wire_bytes(&self) -> u64 {
        let pages = self.data.iter().chain(&self.urgent);
        let pages: u64 = pages.map(Connection::wire_bytes).sum();
        pages + self.control.wire_bytes()
    }

    /// Sent and not acknowledged, in bytes.
    pub fn in_flight(&self) -> u64 {
        self.window.in_flight()
    }

    /// What became of the pages.
    pub fn statistics(&self) -> PageStatistics {
        self.encoding.encoder().statistics()
    }

    /// Counts pages that are not sent since nobody ever wrote them.
    pub fn count_untouched(&mut self, pages: u64) {
        self.encoding.encoder().count_untouched(pages);
    }

    /// Slows the guest down by so much.
    pub fn set_throttle(&mut self, percent: u8) {
        self.throttle.set(percent);
    }

    /// Sends pages at the pace of the link. The last ones go with the next call, or with
    /// [`Self::drain`].
    pub fn send(&mut self, runs: &[Run]) -> Result<(), MigrationError> {
        for batch in batches(runs) {
            self.encoding.begin(batch, self.settings());
            while self.encoding.ahead() > AHEAD {
                self.send_encoded()?;
            }
        }
        Ok(())
    }

    /// Sends the batch that was begun first.
    fn send_encoded(&mut self) -> Result<(), MigrationError> {
        self.take_encoded()?;
        let mut start = 0;
        while start < self.buffer.len() {
            let end = start + whole_frames(&self.buffer[start..], self.window.frame_bytes());
            self.wait_for_room((end - start) as u64)?;
            self.put(start..end)?;
            self.take_acks()?;
            start = end;
        }
        Ok(())
    }

    fn take_encoded(&mut self) -> Result<(), MigrationError> {
        let last = mem::take(&mut self.buffer);
        self.buffer = self.encoding.next(last)?;
        Ok(())
    }

    /// Sends pages at once: the guest waits.
    pub fn send_now(&mut self, runs: &[Run]) -> Result<(), MigrationError> {
        self.set_pace(None);
        let mut batches = batches(runs).peekable();
        while let Some(batch) = batches.next() {
            if self.encoding.ahead() == 0 && batches.peek().is_none() {
                self.encode(&batch)?;
                return self.put(0..self.buffer.len());
            }
            self.encoding.begin(batch, self.settings());
            if self.encoding.ahead() > AHEAD {
                self.take_encoded()?;
                self.put(0..self.buffer.len())?;
            }
        }
        while self.encoding.ahead() > 0 {
            self.take_encoded()?;
            self.put(0..self.buffer.len())?;
        }
        Ok(())
    }

    /// No page follows, on any connection.
    pub fn flush(&mut self) -> Result<(), MigrationError> {
        for connection in &mut self.data {
            connection.send_frame(Kind::Flush, &[], Instant::now() + STALL)?;
        }
        Ok(())
    }

    /// Waits until all that was sent is in place.
    pub fn drain(&mut self) -> Result<(), MigrationError> {
        while self.encoding.ahead() > 0 {
            self.send_encoded()?;
        }
        while self.window.in_flight() > 0 {
            self.wait_for_acks(TICK)?;
        }
        Ok(())
    }

    /// Lets the time pass.
    pub fn idle(&mut self, time: Duration) -> Result<(), MigrationError> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.wait_for_acks(left.min(TICK))?;
        }
    }

    fn encode(&mut self, runs: &[Run]) -> Result<(), MigrationError> {
        let (settings, room) = (self.settings(), mem::take(&mut self.buffer));
        self.buffer = self.encoding.encode_here(runs, settings, room)?;
        Ok(())
    }

    fn settings(&self) -> Settings {
        Settings {
            frame_bytes: self.window.frame_bytes(),
            // Until the link was full once nobody knows whether it pays to send less.
            link_rate: self.capped(self.window.link_rate()),
            is_low: self.low_priority.is_on(),
        }
    }

    /// What is acknowledged or what the cap lets through, in bytes a second.
    pub fn capped_rate(&self) -> Option<u64> {
        self.capped(self.window.rate())
    }

    fn capped(&self, rate: Option<u64>) -> Option<u64> {
        match (rate, &self.cap) {
            (Some(rate), Some(cap)) => Some(rate.min(cap.bytes_per_s())),
            (None, Some(cap)) => Some(cap.bytes_per_s()),
            (rate, None) => rate,
        }
    }

    /// Sends a part of the buffer: whole frames.
    fn put(&mut self, part: Range<usize>) -> Result<(), MigrationError> {
        if part.is_empty() {
            return Ok(());
        }
        let bytes = part.len() as u64;
        let connection = self.next % self.data.len();
        self.next += 1;
        let deadline = Instant::now() + self.patience;
        self.data[connection].send(&self.buffer[part], deadline)?;
        self.count_sent(bytes);
        Ok(())
    }

    fn count_sent(&mut self, bytes: u64) {
        if self.window.in_flight() == 0 {
            self.last_ack = Instant::now();
        }
        let now = self.progress.elapsed();
        self.sent += bytes;
        self.window.on_sent(now, bytes);
        if let Some(cap) = &mut self.cap {
            cap.on_sent(now, bytes);
        }
    }

    /// Until so many bytes may go.
    fn wait_for_room(&mut self, bytes: u64) -> Result<(), MigrationError> {
        // More than the window holds goes when nothing else is on its way.
        while self.window.in_flight() > 0 && self.window.available() < bytes {
            self.wait_for_acks(TICK)?;
        }
        while let Some(cap) = &mut self.cap {
            let wait = cap.ready_in(self.progress.elapsed(), bytes);
            if wait.is_zero() {
                break;
            }
            self.wait_for_acks(wait.min(TICK))?;
        }
        Ok(())
    }

    fn wait_for_acks(&mut self, time: Duration) -> Result<(), MigrationError> {
        let wait = self.throttle.tick(time);
        let start = Instant::now();
        let cancel = Some(self.progress.cancel());
        let ready = wait_readable(&[&self.control], start + wait, cancel);
        self.waited += start.elapsed();
        match ready {
            Ok(_) => {}
            Err(ConnectionError::TimedOut { .. }) => {
                self.check_stall()?;
            }
            Err(error) => return Err(error.into()),
        }
        self.take_acks()
    }

    fn on_ack(&mut self, bytes: u64) {
        // The word of the slowest connection.
        let links = self.data.iter().filter_map(Connection::link_time);
        if let Some(time) = links.max_by_key(|time| time.rtt) {
            self.window.on_link(time);
        }
        self.window.on_ack(self.progress.elapsed(), bytes);
        self.last_ack = Instant::now();
        self.set_pace(self.window.pace());
    }

    /// Has the kernel pace all connections together, unless that makes little difference.
    fn set_pace(&mut self, pace: Option<u64>) {
        let alike = match (pace, self.pace) {
            (Some(pace), Some(last)) => pace.abs_diff(last) < last / 16,
            (pace, last) => pace == last,
        };
        if alike {
            return;
        }
        self.pace = pace;
        for connection in &self.data {
            connection.set_pace(pace.map(|pace| pace / self.data.len() as u64));
        }
    }

    /// What the destination has said so far.
    fn take_acks(&mut self) -> Result<(), MigrationError> {
        self.throttle.tick(TICK);
        while let Some(frame) = self.control.try_receive()? {
            match frame.kind {
                Kind::Ack => {
                    let ack = frame.message()?;
                    self.take_ack(ack)?;
                }
                Kind::Aborted | Kind::Refuse => {
                    let Reason { message } = frame.message()?;
                    return Err(MigrationError::Refused(message));
                }
                _ => return Err(MigrationError::Unexpected("a message out of turn")),
            }
        }
        if self.progress.cancel().is_set() {
            return Err(MigrationError::Cancelled);
        }
        self.tell();
        Ok(())
    }

    fn take_ack(&mut self, ack: Ack) -> Result<(), MigrationError> {
        if ack.bytes > self.sent {
            return Err(MigrationError::Unexpected("an acknowledgement of nothing"));
        }
        self.on_ack(ack.bytes);
        Ok(())
    }

    fn check_stall(&self) -> Result<(), MigrationError> {
        if self.window.in_flight() > 0 && self.last_ack.elapsed() > self.patience {
            return Err(MigrationError::Stalled(self.patience));
        }
        Ok(())
    }

    fn tell(&self) {
        let (sent, rate) = (self.wire_bytes(), self.window.rate().unwrap_or(0));
        self.progress.update(|status| {
            status.sent_bytes = sent;
            status.rate_bytes_per_s = rate;
        });
    }
}

/// Length of the frames at the start of `frames` that have at most `most` bytes together; of the
/// first one in any case.
fn whole_frames(frames: &[u8], most: usize) -> usize {
    let mut end = 0;
    while let Some((header, _)) = frames[end..].split_first_chunk() {
        let Some(header) = FrameHeader::decode(*header) else {
            unreachable!("the encoder makes whole frames");
        };
        let next = end + HEADER_BYTES + header.length;
        if end > 0 && next > most {
            break;
        }
        end = next;
    }
    end
}

/// Splits `runs` so that each batch has [`BATCH_PAGES`] at most.
fn batches(runs: &[Run]) -> impl Iterator<Item = Vec<Run>> {
    let mut rest = runs.iter().copied().peekable();
    let mut cut: Option<Run> = None;
    std::iter::from_fn(move || {
        let (mut batch, mut room) = (Vec::new(), BATCH_PAGES);
        while room > 0 {
            let Some((gpa, pages)) = cut.take().or_else(|| rest.next()) else {
                break;
            };
            let taken = pages.min(room);
            batch.push((gpa, taken));
            room -= taken;
            if taken < pages {
                cut = Some((gpa + u64::from(taken) * PAGE_SIZE, pages - taken));
            }
        }
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_page_once() {
        let runs = [(0, 5), (0x10_0000, 1), (0x20_0000, 150)];
        let batches: Vec<_> = batches(&runs).collect();
        assert_eq!(
            batches,
            [
                vec![(0, 5), (0x10_0000, 1), (0x20_0000, 58)],
                vec![(0x20_0000 + 58 * 4096, 64)],
                vec![(0x20_0000 + 122 * 4096, 28)],
            ]
        );
    }

    #[test]
    fn frames_are_cut_between_and_never_within() {
        let frame = |length: usize| {
            let header = FrameHeader {
                kind: Kind::Pages,
                length,
            };
            [&header.encode()[..], &vec![0; length]].concat()
        };
        let frames = [frame(100), frame(50), frame(300)].concat();
        assert_eq!(whole_frames(&frames, 170), 166);
        assert_eq!(whole_frames(&frames, 10), 108);
        assert_eq!(whole_frames(&frames, 10_000), frames.len());
        assert_eq!(whole_frames(&[], 10), 0);
    }
}
