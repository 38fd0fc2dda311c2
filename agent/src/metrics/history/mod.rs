//! What guests and the node took: ten seconds for an hour in memory, a minute for fifteen days and
//! an hour for a year in a file of its own.
//!
//! ```text
//! Collector ──10 s──► live ─┐
//!                └──► open minute ──► pending ──Writer──► file: minutes, hours
//!                       └──────────────┴───────────────────┴──► read
//! ```
//! Slots are of the time of day. A slot that is met again, as the clock was set back, counts both
//! times; one that is passed over is a gap. Nobody who asks or measures waits for the file: what it
//! does not take, on a full disk say, waits in memory for an hour, and a damaged one is put aside.
//! Each node keeps what it has measured, so a guest's history lies where it ran.

mod block;
mod bucket;
mod file;
mod resolution;
mod tally;
mod writer;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use uuid::Uuid;

pub use bucket::{Bucket, Figure, QUANTITIES, Quantity};
use file::{File, Minute};
pub use resolution::{Grid, Resolution};
pub use tally::Tallies;
use writer::Writer;

/// The node itself, among guests.
pub const NODE: Uuid = Uuid::nil();

/// Minutes that wait for a file that cannot be written.
const PENDING_MAX: usize = 60;
/// What the clock may be off what has gone by, and be right.
const CLOCK_TOLERATED_S: u64 = 60;
/// How long the clock must have been right before what it calls old is forgotten.
const CLOCK_TRUSTED: Duration = Duration::from_secs(3600);

/// Why the history is not known.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// The file.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// Bytes of another node that mean nothing.
    #[error("another node gave a history that cannot be read")]
    Wire,
}

/// The node's history.
#[derive(Clone)]
pub struct History {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    writer: Writer,
}

/// What is not in the file, or not yet.
#[derive(Default)]
struct State {
    /// By subject, then by slot.
    live: HashMap<Uuid, BTreeMap<u64, Bucket>>,
    open: Minute,
    pending: VecDeque<Minute>,
    clock: Option<Clock>,
}

/// Since when the clock goes as it should.
#[derive(Clone, Copy)]
struct Clock {
    since: Instant,
    since_s: u64,
    /// When what is old was forgotten last.
    forgotten: Option<Instant>,
}

impl State {
    /// Takes a sample of each subject in; whether there is something to write now.
    fn take_in(&mut self, now_s: u64, samples: Vec<(Uuid, Bucket)>) -> bool {
        self.watch_clock(now_s);
        let number = now_s / Resolution::Minute.slot_s();
        let mut closed = false;
        if number != self.open.number {
            closed = self.close();
            self.open.number = number;
        }
        let slot = now_s / Resolution::Live.slot_s();
        let kept = Resolution::Live.kept_s() / Resolution::Live.slot_s();
        for (uuid, sample) in samples {
            let minute = self.open.of.entry(uuid).or_default();
            minute.merge(&sample);
            let live = self.live.entry(uuid).or_default();
            live.entry(slot).or_default().merge(&sample);
        }
        self.live.retain(|_, slots| {
            slots.retain(|&one, _| one <= slot && one + kept > slot);
            !slots.is_empty()
        });
        closed
    }

    /// Has the open minute wait for the file.
    fn close(&mut self) -> bool {
        let minute = std::mem::take(&mut self.open);
        if minute.of.is_empty() {
            return false;
        }
        if self.pending.len() == PENDING_MAX {
            self.pending.pop_front();
        }
        self.pending.push_back(minute);
        true
    }

    fn watch_clock(&mut self, now_s: u64) {
        let right = self.clock.is_some_and(|clock| {
            let expected = clock.since_s + clock.since.elapsed().as_secs();
            expected.abs_diff(now_s) <= CLOCK_TOLERATED_S
        });
        if !right {
            self.clock = Some(Clock {
                since: Instant::now(),
                since_s: now_s,
                forgotten: None,
            });
        }
    }

    /// The time before which things are old, once in a while, and only if the clock can be trusted:
    /// one that is wrong for an hour after a start must not make everything old.
    fn time_to_forget(&mut self) -> Option<u64> {
        let clock = self.clock.as_mut()?;
        let elapsed = clock.since.elapsed();
        let due = clock
            .forgotten
            .is_none_or(|last| last.elapsed() >= CLOCK_TRUSTED);
        if elapsed < CLOCK_TRUSTED || !due {
            return None;
        }
        clock.forgotten = Some(Instant::now());
        Some(clock.since_s + elapsed.as_secs())
    }

    /// What is here of a subject in these slots.
    fn add_to(
        &self,
        found: &mut BTreeMap<u64, Bucket>,
        uuid: Uuid,
        resolution: Resolution,
        slots: &Range<u64>,
    ) {
        if resolution == Resolution::Live {
            let live = self.live.get(&uuid).into_iter();
            let live = live.flat_map(|live| live.range(slots.clone()));
            found.extend(live.map(|(slot, bucket)| (*slot, bucket.clone())));
            return;
        }
        for minute in self.pending.iter().chain([&self.open]) {
            let slot = minute.number * Resolution::Minute.slot_s() / resolution.slot_s();
            if let Some(bucket) = minute.of.get(&uuid).filter(|_| slots.contains(&slot)) {
                found.entry(slot).or_default().merge(bucket);
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl History {
    /// The history in this file, which need not be there, nor be whole.
    pub fn new(path: &Path) -> Self {
        let state = Arc::default();
        Self {
            path: path.to_owned(),
            writer: Writer::start(path, &state),
            state,
        }
    }

    /// Takes in what was measured at this time, in seconds since the Unix epoch; [`NODE`] is the node.
    pub fn take_in(&self, now_s: u64, samples: Vec<(Uuid, Bucket)>) {
        if lock(&self.state).take_in(now_s, samples) {
            self.writer.wake();
        }
    }

    /// Writes down what there is, as the agent ends.
    pub async fn close(&self) {
        lock(&self.state).close();
        self.writer.end().await;
    }

    /// What is known of a subject between two times in seconds since the Unix epoch, by slot.
    /// Blocks on the file.
    ///
    /// # Errors
    /// [`HistoryError::Read`].
    pub fn read(
        &self,
        uuid: Uuid,
        resolution: Resolution,
        times_s: &Range<u64>,
    ) -> Result<BTreeMap<u64, Bucket>, HistoryError> {
        let slots = |slot_s: u64| times_s.start / slot_s..times_s.end.div_ceil(slot_s);
        let kept = match resolution {
            Resolution::Live => Resolution::Minute,
            other => other,
        };
        let mut found = self.in_file(uuid, kept, slots(kept.slot_s()))?;
        let state = lock(&self.state);
        state.add_to(&mut found, uuid, kept, &slots(kept.slot_s()));
        if resolution != Resolution::Live {
            return Ok(found);
        }
        // Of before the agent's start there are minutes only: each stands for its slots. That in
        // which it was started may have been measured in part, and nobody knows which.
        let firsts = state.live.values();
        let begin = firsts.filter_map(|live| live.keys().next().copied()).min();
        let per_minute = Resolution::Minute.slot_s() / Resolution::Live.slot_s();
        let wanted = slots(Resolution::Live.slot_s());
        let mut all: BTreeMap<u64, Bucket> = BTreeMap::new();
        let whole = |minute: u64| begin.is_none_or(|begin| minute < begin / per_minute);
        for (minute, bucket) in found.into_iter().filter(|(minute, _)| whole(*minute)) {
            for slot in minute * per_minute..(minute + 1) * per_minute {
                if wanted.contains(&slot) {
                    all.insert(slot, bucket.clone());
                }
            }
        }
        state.add_to(&mut all, uuid, resolution, &wanted);
        Ok(all)
    }

    /// All subjects of which something is known. Blocks on the file.
    ///
    /// # Errors
    /// [`HistoryError::Read`].
    pub fn subjects(&self) -> Result<Vec<Uuid>, HistoryError> {
        let mut subjects = match self.open_to_read()? {
            Some(file) => file.subjects().map_err(self.read_error())?,
            None => Vec::new(),
        };
        let state = lock(&self.state);
        let waiting = state.pending.iter().chain([&state.open]);
        subjects.extend(waiting.flat_map(|minute| minute.of.keys().copied()));
        subjects.sort_unstable();
        subjects.dedup();
        Ok(subjects)
    }

    fn in_file(
        &self,
        uuid: Uuid,
        resolution: Resolution,
        slots: Range<u64>,
    ) -> Result<BTreeMap<u64, Bucket>, HistoryError> {
        let Some(file) = self.open_to_read()? else {
            return Ok(BTreeMap::new());
        };
        let read = file.read(uuid, resolution, slots);
        read.map_err(self.read_error())
    }

    /// `None`: nothing was written yet.
    fn open_to_read(&self) -> Result<Option<File>, HistoryError> {
        if !self.writer.has_file() {
            return Ok(None);
        }
        File::open_to_read(&self.path)
            .map(Some)
            .map_err(self.read_error())
    }

    fn read_error(&self) -> impl FnOnce(rusqlite::Error) -> HistoryError + use<> {
        let path = self.path.clone();
        move |source| HistoryError::Read { path, source }
    }
}

/// Bytes of buckets, for another node.
pub fn to_wire(buckets: &BTreeMap<u64, Bucket>, resolution: Resolution) -> Vec<u8> {
    let per_block = resolution.block_slots();
    let mut blocks: BTreeMap<u64, BTreeMap<u8, Bucket>> = BTreeMap::new();
    for (slot, bucket) in buckets {
        let block = blocks.entry(slot / per_block).or_default();
        block.insert((slot % per_block) as u8, bucket.clone());
    }
    let mut bytes = Vec::new();
    for (number, block) in blocks {
        let block = block::encode(&block);
        bytes.extend(number.to_le_bytes());
        bytes.extend((block.len() as u32).to_le_bytes());
        bytes.extend(block);
    }
    bytes
}

/// The buckets of another node's bytes.
///
/// # Errors
/// [`HistoryError::Wire`].
pub fn from_wire(
    mut bytes: &[u8],
    resolution: Resolution,
) -> Result<BTreeMap<u64, Bucket>, HistoryError> {
    let mut buckets = BTreeMap::new();
    while !bytes.is_empty() {
        let (number, rest) = bytes.split_first_chunk().ok_or(HistoryError::Wire)?;
        let (length, rest) = rest.split_first_chunk().ok_or(HistoryError::Wire)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (block, rest) = rest.split_at_checked(length).ok_or(HistoryError::Wire)?;
        let first = u64::from_le_bytes(*number).checked_mul(resolution.block_slots());
        let first = first.ok_or(HistoryError::Wire)?;
        for (slot, bucket) in block::decode(block).map_err(|_| HistoryError::Wire)? {
            let slot = first.checked_add(slot.into()).ok_or(HistoryError::Wire)?;
            buckets.insert(slot, bucket);
        }
        bytes = rest;
    }
    Ok(buckets)
}

#[cfg(test)]
mod tests;
