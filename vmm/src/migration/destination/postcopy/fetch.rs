//! Fetching: faults become wishes, and pages that come are put where they belong.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Ending, Failure, Gate, Missing, Waiting};
use crate::memory::{GuestMemory, GuestRegion, PAGE_SIZE};
use crate::migration::connection::{Connection, ConnectionError};
use crate::migration::pages::{DecodeError, Decoder};
use crate::migration::protocol::{Ack, Fetched, HEADER_BYTES, Kind};
use crate::migration::wait::{Cancel, Ended, wait};

/// So long the source may send nothing: whoever waits for a page loses nothing by it, and
/// everything if it is given up.
const LINK_PATIENCE: Duration = Duration::from_secs(300);
/// Frames that nobody waits for are put in place before faults are looked for again.
const FRAMES_AT_ONCE: usize = 4;
/// Acknowledge at least each so many bytes.
const ACK_BYTES: u64 = 256 << 10;
/// How long faults are remembered, in numbers: enough for a median.
const FAULTS_MAX: usize = 1 << 16;
/// So long the source may take to hear that all pages are here.
const FAREWELL: Duration = Duration::from_secs(2);
/// How often to look whether the failure was noticed.
const POLL: Duration = Duration::from_millis(20);

/// What the thread begins with.
pub struct Job {
    pub missing: Missing,
    pub decoder: Decoder,
    pub data: Vec<Connection>,
    pub urgent: Connection,
    /// Bytes of pages that are in place, and that the source knows of.
    pub in_place: u64,
    pub acknowledged: u64,
    /// When COMMIT came.
    pub committed: Instant,
}

/// Why pages do not come.
#[derive(Debug, Error)]
enum FetchError {
    #[error("the connection to the source")]
    Connection(#[from] ConnectionError),
    #[error("the source's pages")]
    Pages(#[from] DecodeError),
    #[error("the source sent {0}")]
    Unexpected(&'static str),
    #[error("the source has sent nothing for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("userfaultfd")]
    Host(#[from] io::Error),
    #[error("the guest will not run here")]
    Abandoned,
}

/// Pages on their way, on the thread that fetches them.
pub struct Fetcher {
    pages: Pages,
    decoder: Decoder,
    data: Vec<Connection>,
    urgent: Connection,
    in_place: u64,
    acknowledged: u64,
    committed: Instant,
    heard: Instant,
    gate: Arc<Gate>,
    remaining: Arc<AtomicU64>,
    report: Sender<Result<Fetched, Failure>>,
    ending: Ending,
}

impl Fetcher {
    pub(super) fn new(
        job: Job,
        gate: Arc<Gate>,
        remaining: Arc<AtomicU64>,
        report: Sender<Result<Fetched, Failure>>,
        ending: Ending,
    ) -> Self {
        let Job {
            missing,
            decoder,
            mut data,
            mut urgent,
            in_place,
            acknowledged,
            committed,
        } = job;
        for connection in data.iter_mut().chain([&mut urgent]) {
            connection.ignore_cancel();
        }
        Self {
            pages: Pages {
                missing,
                asked: BTreeMap::new(),
                demanded: 0,
                waits_us: Vec::new(),
                longest_us: 0,
            },
            decoder,
            data,
            urgent,
            in_place,
            acknowledged,
            committed,
            heard: Instant::now(),
            gate,
            remaining,
            report,
            ending,
        }
    }

    /// Fetches all pages until the guest has ended, or says why they do not come.
    pub(super) fn run(mut self) {
        let outcome = self.fetch();
        let Self {
            pages,
            urgent,
            gate,
            report,
            ending: Ending { stop, .. },
            ..
        } = self;
        let outcome = outcome.map_err(|error| Failure {
            reason: crate::causes::chain(&error),
            waiting: None,
        });
        let outcome = match outcome {
            Err(failure) if !stop.is_set() && gate.fail(&failure.reason) => {
                pages.answer_with_zeroes(&stop);
                drop(pages);
                Err(failure)
            }
            Err(failure) => Err(Failure {
                waiting: Some(Waiting::new(pages.missing.userfault)),
                ..failure
            }),
            Ok(fetched) => {
                if fetched.ended {
                    // A request that still waits for a page must not find zeroes, and write them.
                    mem::forget(pages.missing.userfault);
                }
                Ok(fetched)
            }
        };
        let has_all = outcome.is_ok();
        let _ = report.send(outcome);
        if has_all {
            // The last word arrives.
            urgent.close(Instant::now() + FAREWELL);
        }
    }

    fn fetch(&mut self) -> Result<Fetched, FetchError> {
        while self.pages.missing.count() > 0 {
            let ready = match self.wait() {
                Err(FetchError::Abandoned) if self.ending.guest_ended.load(Ordering::Acquire) => {
                    return Ok(self.farewell(true));
                }
                ready => ready?,
            };
            if ready & 1 != 0 {
                self.take_faults()?;
            }
            if ready & 2 != 0 {
                self.take_urgent()?;
            }
            for index in 0..self.data.len() {
                if ready & 4 << index != 0 {
                    self.take_pages(index)?;
                }
            }
            self.acknowledge(1)?;
            let count = self.pages.missing.count();
            self.remaining.store(count, Ordering::Relaxed);
        }
        let Missing {
            userfault, memory, ..
        } = &self.pages.missing;
        if let Err(error) = userfault.unregister(memory) {
            // With the descriptor, which is closed next, all of it goes.
            tracing::debug!("{}", crate::causes::chain(&error));
        }
        Ok(self.farewell(false))
    }

    /// Tells the source that no page is wanted any more.
    fn farewell(&mut self, ended: bool) -> Fetched {
        let fetched = Fetched {
            ended,
            ..self.pages.fetched(self.committed)
        };
        let soon = Instant::now() + Duration::from_secs(10);
        if let Err(error) = self.urgent.send_message(Kind::Fetched, &fetched, soon) {
            tracing::warn!("the source was not told that no page is wanted any more: {error}");
        }
        fetched
    }

    /// What there is to do: bit 0 for faults, 1 for the urgent connection, then those for data.
    fn wait(&self) -> Result<u32, FetchError> {
        let mut buffered = 0;
        let mut asked = vec![(self.pages.missing.userfault.as_fd(), PollFlags::IN)];
        for (index, connection) in std::iter::once(&self.urgent).chain(&self.data).enumerate() {
            asked.push((connection.as_fd(), PollFlags::IN));
            buffered |= u32::from(connection.has_buffered()) << (index + 1);
        }
        let deadline = match buffered {
            0 => self.heard + LINK_PATIENCE,
            _ => Instant::now(),
        };
        match wait(&asked, deadline, Some(&self.ending.stop)) {
            Ok(ready) => Ok(ready | buffered),
            Err(Ended::Late) if buffered != 0 => Ok(buffered),
            Err(Ended::Late) => Err(FetchError::Silent(LINK_PATIENCE)),
            Err(Ended::Cancelled) => Err(FetchError::Abandoned),
            Err(Ended::Host(error)) => Err(error.into()),
        }
    }

    fn take_faults(&mut self) -> Result<(), FetchError> {
        let wanted = self.pages.take_faults()?;
        // As many as a message takes at most.
        for part in wanted.chunks(64) {
            let body: Vec<u8> = part.iter().flat_map(|gpa| gpa.to_le_bytes()).collect();
            let deadline = Instant::now() + LINK_PATIENCE;
            self.urgent.send_frame(Kind::Want, &body, deadline)?;
        }
        Ok(())
    }

    fn take_urgent(&mut self) -> Result<(), FetchError> {
        while let Some(frame) = self.urgent.try_receive()? {
            if frame.kind != Kind::Pages {
                return Err(FetchError::Unexpected("no page that was wanted"));
            }
            self.pages.put(&mut self.decoder, frame.body)?;
            self.in_place += (HEADER_BYTES + frame.body.len()) as u64;
            self.heard = Instant::now();
        }
        Ok(())
    }

    fn take_pages(&mut self, index: usize) -> Result<(), FetchError> {
        for _ in 0..FRAMES_AT_ONCE {
            let Some(frame) = self.data[index].try_receive()? else {
                break;
            };
            if frame.kind != Kind::Pages {
                return Err(FetchError::Unexpected("no pages where they belong"));
            }
            self.pages.put(&mut self.decoder, frame.body)?;
            self.in_place += (HEADER_BYTES + frame.body.len()) as u64;
            self.heard = Instant::now();
            self.acknowledge(ACK_BYTES)?;
        }
        Ok(())
    }

    /// Tells the source what is in place if that is news of so many bytes.
    fn acknowledge(&mut self, news: u64) -> Result<(), FetchError> {
        if self.in_place - self.acknowledged < news {
            return Ok(());
        }
        self.acknowledged = self.in_place;
        let ack = Ack {
            bytes: self.in_place,
        };
        let deadline = Instant::now() + LINK_PATIENCE;
        Ok(self.urgent.send_message(Kind::Ack, &ack, deadline)?)
    }
}

/// RAM, and who waits for it.
struct Pages {
    missing: Missing,
    /// Pages that were asked for, and since when.
    asked: BTreeMap<u64, Instant>,
    demanded: u64,
    waits_us: Vec<u64>,
    longest_us: u64,
}

impl Pages {
    /// Sees who waits for what. Pages that were never sent are zeroes; returns the others that
    /// were not asked for yet.
    fn take_faults(&mut self) -> io::Result<Vec<u64>> {
        let mut wanted = Vec::new();
        let mut addresses = [0; 16];
        loop {
            let count = self.missing.userfault.faults(&mut addresses)?;
            if count == 0 {
                return Ok(wanted);
            }
            let memory = Arc::clone(&self.missing.memory);
            for &address in &addresses[..count] {
                let Some((region, offset)) = at_host(&memory, address) else {
                    continue;
                };
                let gpa = region.start_addr().0 + offset;
                if !self.missing.pages.contains(gpa) {
                    self.missing.userfault.zero(region, offset, PAGE_SIZE)?;
                } else if let Entry::Vacant(entry) = self.asked.entry(gpa) {
                    entry.insert(Instant::now());
                    self.demanded += 1;
                    wanted.push(gpa);
                }
            }
        }
    }

    /// Puts the pages of a frame in place. Those that are there already are not written: they are
    /// the guest's, and newer.
    fn put(&mut self, decoder: &mut Decoder, body: &[u8]) -> Result<(), FetchError> {
        let memory = Arc::clone(&self.missing.memory);
        decoder.unpack(body, |first_gpa, pages, content| {
            let not_ram = DecodeError::Address { first_gpa, pages };
            let Some(region) = memory.find_region(GuestAddress(first_gpa)) else {
                return Err(FetchError::from(not_ram));
            };
            let offset = first_gpa - region.start_addr().0;
            if offset + pages * PAGE_SIZE > region.len() {
                return Err(not_ram.into());
            }
            let mut page = 0;
            while page < pages {
                let missing =
                    |page: &u64| self.missing.pages.contains(first_gpa + page * PAGE_SIZE);
                let run = (page..pages).take_while(missing).count() as u64;
                if run > 0 {
                    let at = offset + page * PAGE_SIZE;
                    self.fill(region, at, run, content, page)?;
                }
                page += run + 1;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Fills a run of pages that are all missing. `page` is the number of the first one in
    /// `content`.
    fn fill(
        &mut self,
        region: &GuestRegion,
        offset: u64,
        pages: u64,
        content: Option<&[u8]>,
        page: u64,
    ) -> io::Result<()> {
        let bytes = pages * PAGE_SIZE;
        match content {
            None => self.missing.userfault.zero(region, offset, bytes)?,
            Some(content) => {
                let start = (page * PAGE_SIZE) as usize;
                let content = &content[start..start + bytes as usize];
                self.missing.userfault.copy(region, offset, content)?;
            }
        }
        for page in 0..pages {
            let gpa = region.start_addr().0 + offset + page * PAGE_SIZE;
            self.missing.take(gpa);
            if let Some(since) = self.asked.remove(&gpa) {
                self.count_wait(since.elapsed());
            }
        }
        Ok(())
    }

    fn count_wait(&mut self, time: Duration) {
        let us = time.as_micros() as u64;
        self.longest_us = self.longest_us.max(us);
        if self.waits_us.len() < FAULTS_MAX {
            self.waits_us.push(us);
        }
    }

    fn fetched(&mut self, committed: Instant) -> Fetched {
        self.waits_us.sort_unstable();
        Fetched {
            ended: false,
            duration_us: committed.elapsed().as_micros() as u64,
            demanded_pages: self.demanded,
            fault_median_us: self
                .waits_us
                .get(self.waits_us.len() / 2)
                .copied()
                .unwrap_or(0),
            fault_max_us: self.longest_us,
        }
    }

    /// The guest will never run: lets the migration's thread, which restores it, go on to find
    /// that out. Returns when it has.
    fn answer_with_zeroes(&self, stop: &Cancel) {
        for &gpa in self.asked.keys() {
            if let Some(region) = self.missing.memory.find_region(GuestAddress(gpa)) {
                let offset = gpa - region.start_addr().0;
                let _ = self.missing.userfault.zero(region, offset, PAGE_SIZE);
            }
        }
        let mut addresses = [0; 16];
        while !stop.is_set() {
            while let Ok(count @ 1..) = self.missing.userfault.faults(&mut addresses) {
                for &address in &addresses[..count] {
                    if let Some((region, offset)) = at_host(&self.missing.memory, address) {
                        let _ = self.missing.userfault.zero(region, offset, PAGE_SIZE);
                    }
                }
            }
            let asked = [(self.missing.userfault.as_fd(), PollFlags::IN)];
            let _ = wait(&asked, Instant::now() + POLL, Some(stop));
        }
    }
}

/// Where a host address lies in guest RAM.
fn at_host(memory: &GuestMemory, address: u64) -> Option<(&GuestRegion, u64)> {
    memory.iter().find_map(|region| {
        let offset = address.checked_sub(region.as_ptr() as u64)?;
        (offset < region.len()).then_some((region, offset))
    })
}
