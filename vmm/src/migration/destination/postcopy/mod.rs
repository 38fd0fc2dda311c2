//! Post-copy at the destination: the guest runs, and its pages come.
//!
//! ```text
//!  migration thread                            post-copy thread
//!  Missing::leave … (drops pages)
//!  COMMIT ── Postcopier::begin ──────────────► faults, pages ⟲
//!  take, restore (may touch what is not here) ◄── answers
//!  Gate::open ─► start, RUNNING
//!  announce, wait ◄─────────────────────────── fetched, or why not
//! ```
//! The thread is there before the sandbox closes, with what the kernel gives for
//! `/dev/userfaultfd`, and has nothing to do until pages are left behind. It serves whoever touches
//! RAM: vCPUs, devices' threads, the kernel on behalf of KVM, vhost-net and io_uring, and the
//! migration's own thread as it restores the guest.
//!
//! If pages cannot come any more, what happens depends on whether the guest has begun to run,
//! which [`Gate`] decides once: before that, zeroes let the migration's thread go on to find that
//! it failed; after that nobody is let go on, for good, since nothing but the right content may
//! be seen.

mod fetch;
mod missing;

use std::fmt::{Debug, Formatter};
use std::io;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::memory::userfault::{Userfault, UserfaultError};
use crate::migration::protocol::Fetched;
use crate::migration::wait::Cancel;
use crate::sandbox::{self, ThreadKind};
pub(super) use fetch::Fetcher;
pub(super) use missing::Missing;

/// The thread that fetches pages, and what it answers faults with.
pub struct Postcopier {
    jobs: Sender<Fetcher>,
    userfault: Result<Userfault, String>,
    stop: Cancel,
}

impl Postcopier {
    /// Starts the thread. Without `userfault` it is there to say why.
    ///
    /// # Errors
    /// The host refuses a thread or an eventfd.
    pub fn spawn(userfault: Result<Userfault, UserfaultError>) -> io::Result<Self> {
        let (jobs, todo) = channel::<Fetcher>();
        sandbox::spawn("postcopy", ThreadKind::Postcopy, move || {
            todo.into_iter().for_each(Fetcher::run);
        })?;
        Ok(Self {
            jobs,
            userfault: userfault.map_err(|error| crate::causes::chain(&error)),
            stop: Cancel::new()?,
        })
    }

    /// What faults are answered with, and what ends it.
    pub(super) fn into_parts(self) -> (Result<Userfault, String>, Starter) {
        let Self {
            jobs,
            userfault,
            stop,
        } = self;
        (userfault, Starter { jobs, stop })
    }
}

impl Debug for Postcopier {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postcopier")
            .field("userfault", &self.userfault)
            .finish_non_exhaustive()
    }
}

/// Gives the thread its work.
pub(super) struct Starter {
    jobs: Sender<Fetcher>,
    stop: Cancel,
}

impl Starter {
    /// Begins to fetch.
    pub fn begin(self, job: fetch::Job) -> Fetching {
        let (reporter, report) = channel();
        let guest_ended = Arc::new(AtomicBool::new(false));
        let gate = Arc::new(Gate::default());
        let remaining = Arc::new(AtomicU64::new(job.missing.count()));
        let fetching = Fetching {
            gate: Arc::clone(&gate),
            remaining: Arc::clone(&remaining),
            report,
            stop: self.stop.clone(),
            guest_ended: Arc::clone(&guest_ended),
        };
        let ending = Ending {
            stop: self.stop,
            guest_ended,
        };
        let fetcher = Fetcher::new(job, gate, remaining, reporter, ending);
        let sent = self.jobs.send(fetcher);
        assert!(sent.is_ok(), "the thread lives as long as its handle");
        fetching
    }
}

pub(super) use fetch::Job;

/// Pages on their way, as the migration's thread sees it.
pub(super) struct Fetching {
    gate: Arc<Gate>,
    remaining: Arc<AtomicU64>,
    report: Receiver<Result<Fetched, Failure>>,
    stop: Cancel,
    guest_ended: Arc<AtomicBool>,
}

/// What ends the thread's work before all pages are here.
struct Ending {
    stop: Cancel,
    /// It ran, and wants no more pages. Otherwise it never will.
    guest_ended: Arc<AtomicBool>,
}

impl Fetching {
    /// The guest is about to run.
    ///
    /// # Errors
    /// Why it must not: pages cannot come any more, and some that it would see are not its own.
    pub fn open_gate(&self) -> Result<(), String> {
        self.gate.open()
    }

    /// Pages that have not come yet.
    pub fn remaining(&self) -> u64 {
        self.remaining.load(Ordering::Relaxed)
    }

    /// How it ended, if it does within `time`; why pages do not come if they do not. Whoever waits
    /// for one then waits until the process ends.
    pub fn wait(&self, time: Duration) -> Option<Result<Fetched, String>> {
        match self.report.recv_timeout(time) {
            Ok(ended) => Some(ended.map_err(|failure| failure.reason)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err("its thread has gone".to_owned())),
        }
    }

    /// The guest, which ran, has ended: nothing is fetched any more, and the source is told.
    pub fn end(&self) {
        self.guest_ended.store(true, Ordering::Release);
        self.stop.set();
    }

    /// The guest will not run here: nothing is fetched any more. Returns when RAM is as any other.
    pub fn abandon(self) {
        self.stop.set();
        if let Ok(Err(Failure {
            waiting: Some(waiting),
            ..
        })) = self.report.recv()
        {
            waiting.end();
        }
    }
}

/// Why pages do not come, and who waits for them.
struct Failure {
    reason: String,
    waiting: Option<Waiting>,
}

/// Those who wait for pages that never come. A guest that runs must not see a page that is not its
/// own: unless this is ended they wait for as long as the process lives.
struct Waiting(ManuallyDrop<Userfault>);

impl Waiting {
    fn new(userfault: Userfault) -> Self {
        Self(ManuallyDrop::new(userfault))
    }

    /// The guest has never run: they find zeroes.
    fn end(self) {
        drop(ManuallyDrop::into_inner(self.0));
    }
}

/// Whether the guest runs, or pages cannot come: whichever is first.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Passed>);

#[derive(Debug, Default)]
enum Passed {
    #[default]
    Nobody,
    Guest,
    Failure(String),
}

impl Gate {
    fn open(&self) -> Result<(), String> {
        let mut passed = self.lock();
        match &*passed {
            Passed::Failure(reason) => Err(reason.clone()),
            Passed::Nobody | Passed::Guest => {
                *passed = Passed::Guest;
                Ok(())
            }
        }
    }

    /// Pages cannot come. Returns whether the guest has not begun to run, and never will.
    fn fail(&self, reason: &str) -> bool {
        let mut passed = self.lock();
        match *passed {
            Passed::Guest => false,
            Passed::Nobody | Passed::Failure(_) => {
                *passed = Passed::Failure(reason.to_owned());
                true
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Passed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_failure_do_not_both_pass_the_gate() {
        let gate = Gate::default();
        assert!(gate.open().is_ok());
        assert!(!gate.fail("late"));
        assert!(gate.open().is_ok());

        let gate = Gate::default();
        assert!(gate.fail("early"));
        assert_eq!(gate.open(), Err("early".to_owned()));
        assert!(gate.fail("again"));
    }
}
