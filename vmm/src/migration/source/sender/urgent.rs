//! Post-copy: the same link, and pages that somebody waits for go past all others.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{BATCH_PAGES, Sender, TICK, whole_frames};
use crate::memory::PAGE_SIZE;
use crate::migration::connection::{Connection, ConnectionError, wait_readable};
use crate::migration::pending::Run;
use crate::migration::protocol::{Fetched, Kind};
use crate::migration::source::MigrationError;

/// So long a guest that runs at the destination already may wait for a link that is broken:
/// nothing can be lost by waiting any more, and everything by giving up.
const LINK_PATIENCE: Duration = Duration::from_secs(300);

/// What has come on the urgent connection.
#[derive(Debug, Default)]
pub struct Urgent {
    /// GPAs of pages that are wanted, the first one first.
    pub wanted: VecDeque<u64>,
    /// The last word.
    pub fetched: Option<Fetched>,
}

impl Sender<'_> {
    /// From now on pages go whole, and nobody cancels.
    pub fn begin_postcopy(&mut self) {
        self.encoding.encoder().forget_versions();
        self.patience = LINK_PATIENCE;
        self.last_ack = Instant::now();
        for connection in self.data.iter_mut().chain(&mut self.urgent) {
            connection.ignore_cancel();
        }
    }

    fn urgent(&mut self) -> Result<&mut Connection, MigrationError> {
        let none = MigrationError::Unexpected("no urgent connection");
        self.urgent.as_mut().ok_or(none)
    }

    /// Takes what has come on the urgent connection.
    pub fn hear(&mut self, heard: &mut Urgent) -> Result<(), MigrationError> {
        while let Some(frame) = self.urgent()?.try_receive()? {
            match frame.kind {
                Kind::Ack => {
                    let ack = frame.message()?;
                    self.take_ack(ack)?;
                }
                Kind::Want => {
                    let (gpas, rest) = frame.body.as_chunks();
                    if !rest.is_empty() {
                        return Err(MigrationError::Unexpected("a part of an address"));
                    }
                    let gpas = gpas.iter().copied().map(u64::from_le_bytes);
                    heard.wanted.extend(gpas);
                }
                // The destination may close its side at once.
                Kind::Fetched => {
                    heard.fetched = Some(frame.message()?);
                    break;
                }
                _ => return Err(MigrationError::Unexpected("a message out of turn")),
            }
        }
        self.tell();
        Ok(())
    }

    /// Sends a page that somebody waits for, past all others.
    pub fn send_wanted(&mut self, gpa: u64) -> Result<(), MigrationError> {
        let settings = self.settings();
        let frames = self
            .encoding
            .encode_here(&[(gpa, 1)], settings, Vec::new())?;
        let deadline = Instant::now() + self.patience;
        self.urgent()?.send(&frames, deadline)?;
        self.count_sent(frames.len() as u64);
        Ok(())
    }

    /// Whether [`Self::stage`] would forget something.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// How many pages are worth staging at once: a few frames, so that one that is wanted is
    /// seldom among them.
    pub fn pages_at_once(&self) -> u32 {
        let pages = self.window.frame_bytes() as u32 / PAGE_SIZE as u32;
        (2 * pages).clamp(4, BATCH_PAGES)
    }

    /// Encodes pages that are to go next.
    pub fn stage(&mut self, runs: &[Run]) -> Result<(), MigrationError> {
        self.encode(runs)?;
        self.unsent = 0..self.buffer.len();
        Ok(())
    }

    /// Sends a frame of what is staged if the link has room. Returns how long to wait, at most, for
    /// something to hear; nothing if a frame went.
    pub fn send_staged(&mut self) -> Result<Option<Duration>, MigrationError> {
        if self.unsent.is_empty() {
            return Ok(Some(TICK));
        }
        let start = self.unsent.start;
        let waiting = &self.buffer[self.unsent.clone()];
        let end = start + whole_frames(waiting, self.window.frame_bytes());
        let bytes = (end - start) as u64;
        if self.window.in_flight() > 0 && self.window.available() < bytes {
            return Ok(Some(TICK));
        }
        if let Some(wait) = self.cap_wait(bytes) {
            return Ok(Some(wait));
        }
        self.put(start..end)?;
        self.unsent.start = end;
        Ok(None)
    }

    /// Sends all that is staged at once: somebody waits for a page in it.
    pub fn send_all_staged(&mut self) -> Result<(), MigrationError> {
        let part = std::mem::take(&mut self.unsent);
        self.put(part)
    }

    /// How long the cap has so many bytes wait, at most; nothing if they may go.
    pub fn cap_wait(&self, bytes: u64) -> Option<Duration> {
        let cap = self.cap.as_ref()?;
        let wait = cap.ready_in(self.progress.elapsed(), bytes);
        (!wait.is_zero()).then_some(wait.min(TICK))
    }

    /// Waits until something can be heard, for so long at most: with `control` there too.
    pub fn listen(&self, time: Duration, control: bool) -> Result<(), MigrationError> {
        let control = control.then_some(&self.control);
        let all: Vec<_> = self.urgent.iter().chain(control).collect();
        match wait_readable(&all, Instant::now() + time, None) {
            Ok(_) => Ok(()),
            Err(ConnectionError::TimedOut { .. }) => self.check_stall(),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until something can be heard on the control connection.
    pub fn wait_for_control(&self) -> Result<(), MigrationError> {
        match wait_readable(&[&self.control], Instant::now() + TICK, None) {
            Ok(_) | Err(ConnectionError::TimedOut { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the destination has said nothing for longer than it may.
    pub fn is_silent(&self) -> bool {
        self.last_ack.elapsed() > self.patience
    }
}
