//! Encoding beside sending: pages become frames on a thread of their own, while those before them
//! are encrypted, paced and sent.
//!
//! ```text
//!  migration thread                              encoding thread
//!  begin(batch 2) ──────────────────────────────► encode 2
//!  send 1: encrypt, wait for room, write          ⋮
//!  begin(batch 3)
//!  next() ◄────────────────────────── frames of 2
//!  send 2                                         encode 3
//! ```
//! One codec's speed is then what bounds a migration, and not the sum of all that is done with a
//! page. Frames come in the order in which their batches were begun: differences refer to versions
//! that were sent before. What is encoded ahead is as old as it takes to send one batch; that the
//! guest has written since is in the dirty log.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::MigrationError;
use crate::migration::pages::{EncodeError, Encoder};
use crate::migration::pending::Run;
use crate::migration::priority::{self, Priority};
use crate::sandbox::{self, ThreadKind};

/// The thread, which starts before the sandbox closes and waits for guests that leave.
#[derive(Debug)]
pub struct EncodingThread {
    jobs: Sender<Job>,
}

impl EncodingThread {
    /// Starts the thread, which ends when this is dropped.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub fn spawn() -> io::Result<Self> {
        let (jobs, todo) = channel::<Job>();
        sandbox::spawn("encoding", ThreadKind::Encoding, move || {
            todo.into_iter().for_each(Job::run);
        })?;
        Ok(Self { jobs })
    }

    /// Has the thread encode with `encoder` from now on, until what is returned is dropped.
    pub fn begin(&self, encoder: Encoder, priority: Priority) -> Encoding {
        let encoder = Arc::new(Mutex::new(encoder));
        let (batches, todo) = channel();
        let (made, done) = channel();
        let job = Job {
            encoder: Arc::clone(&encoder),
            priority,
            todo,
            made,
        };
        let sent = self.jobs.send(job);
        assert!(sent.is_ok(), "the thread lives as long as its handle");
        Encoding {
            encoder,
            batches,
            done,
            ahead: VecDeque::new(),
            spare: Vec::new(),
            used: Duration::ZERO,
        }
    }
}

/// How pages are encoded from now on.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The size of frames to aim at, in bytes.
    pub frame_bytes: usize,
    /// What the link carries, in bytes a second, once it is known.
    pub link_rate: Option<u64>,
    /// Whether the processor is left to others.
    pub is_low: bool,
}

impl Settings {
    fn apply(self, encoder: &mut Encoder) {
        encoder.set_frame_bytes(self.frame_bytes);
        if let Some(rate) = self.link_rate {
            encoder.set_link_rate(rate);
        }
    }
}

struct Batch {
    runs: Vec<Run>,
    settings: Settings,
    /// Where its frames go: room that was used before.
    room: Vec<u8>,
}

struct Encoded {
    frames: Result<Vec<u8>, EncodeError>,
    /// Processor time that it took.
    used: Duration,
}

/// One migration's work.
struct Job {
    encoder: Arc<Mutex<Encoder>>,
    priority: Priority,
    todo: Receiver<Batch>,
    made: Sender<Encoded>,
}

impl Job {
    fn run(self) {
        let mut is_low = false;
        let mut before = priority::used();
        for batch in self.todo {
            if batch.settings.is_low != is_low {
                is_low = batch.settings.is_low;
                if is_low {
                    self.priority.lower();
                } else {
                    self.priority.restore();
                }
            }
            let frames = encode(
                &mut lock(&self.encoder),
                &batch.runs,
                batch.settings,
                batch.room,
            );
            let now = priority::used();
            let used = now.saturating_sub(mem::replace(&mut before, now));
            if self.made.send(Encoded { frames, used }).is_err() {
                break;
            }
        }
        if is_low {
            self.priority.restore();
        }
    }
}

/// Encodes pages of one migration, ahead of their turn.
pub struct Encoding {
    encoder: Arc<Mutex<Encoder>>,
    batches: Sender<Batch>,
    done: Receiver<Encoded>,
    /// Pages of each batch that was begun and not taken.
    ahead: VecDeque<u64>,
    /// Room for frames.
    spare: Vec<Vec<u8>>,
    used: Duration,
}

impl Encoding {
    /// Begins to encode a batch, behind those that were begun before.
    pub fn begin(&mut self, runs: Vec<Run>, settings: Settings) {
        let pages = runs.iter().map(|&(_, pages)| u64::from(pages)).sum();
        let mut room = self.spare.pop().unwrap_or_default();
        room.clear();
        let batch = Batch {
            runs,
            settings,
            room,
        };
        // If the thread is gone, whoever takes the frames finds out.
        let _ = self.batches.send(batch);
        self.ahead.push_back(pages);
    }

    /// Batches that were begun and not taken.
    pub fn ahead(&self) -> usize {
        self.ahead.len()
    }

    /// Their pages.
    pub fn pages_ahead(&self) -> u64 {
        self.ahead.iter().sum()
    }

    /// The frames of the batch that was begun first, once they are there. `last` is what this
    /// returned before.
    pub fn next(&mut self, last: Vec<u8>) -> Result<Vec<u8>, MigrationError> {
        self.spare.push(last);
        let gone = MigrationError::Unexpected("the end of the thread that encodes");
        let encoded = self.done.recv().map_err(|_| gone)?;
        self.ahead.pop_front();
        self.used += encoded.used;
        Ok(encoded.frames?)
    }

    /// Encodes on this thread, which takes less time than waking another. Nothing may be ahead.
    pub fn encode_here(
        &mut self,
        runs: &[Run],
        settings: Settings,
        mut room: Vec<u8>,
    ) -> Result<Vec<u8>, MigrationError> {
        assert_eq!(self.ahead(), 0, "frames go in the order of their batches");
        room.clear();
        Ok(encode(&mut self.encoder(), runs, settings, room)?)
    }

    /// The encoder, between batches.
    pub fn encoder(&self) -> MutexGuard<'_, Encoder> {
        lock(&self.encoder)
    }

    /// Processor time that the thread has taken so far.
    pub fn used(&self) -> Duration {
        self.used
    }
}

fn encode(
    encoder: &mut Encoder,
    runs: &[Run],
    settings: Settings,
    mut room: Vec<u8>,
) -> Result<Vec<u8>, EncodeError> {
    settings.apply(encoder);
    encoder.encode_runs(runs, &mut room)?;
    Ok(room)
}

fn lock(encoder: &Mutex<Encoder>) -> MutexGuard<'_, Encoder> {
    encoder.lock().unwrap_or_else(PoisonError::into_inner)
}
