//! The thread that migrates, and what others may know and want of it.
//!
//! It starts before the sandbox closes and waits until it is told. What a job does is given to
//! [`Migrator::spawn`]; a job reports through its [`Progress`], which also says whether somebody
//! has cancelled it.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pindah_vmm_api::{MigrationPhase, MigrationStatus};
use thiserror::Error;

use super::destination::Incoming;
use super::progress::Progress;
use super::request::Outgoing;
use super::wait::Cancel;
use crate::sandbox::{self, ThreadKind};

/// How long a guest's source may take to hear that it has ended.
const FAREWELL: Duration = Duration::from_secs(5);

/// What the thread is told to do.
#[derive(Debug)]
pub enum Job {
    /// The guest leaves.
    Send(Box<Outgoing>),
    /// A guest comes.
    Receive(Incoming),
}

/// The handle to the thread, which ends when this is dropped and no job is left.
#[derive(Debug)]
pub struct Migrator {
    jobs: Mutex<Sender<(Job, Arc<Progress>)>>,
    last: Mutex<Option<Arc<Progress>>>,
    /// The first job's: whoever starts it may not make one any more.
    first: Mutex<Option<Cancel>>,
}

/// Why a migration is not started.
#[derive(Debug, Error)]
pub enum StartError {
    /// One at a time.
    #[error("a migration is under way; DELETE /api/v1/migrate gives it up")]
    Busy,
    /// The guest runs elsewhere.
    #[error("the guest has moved to another machine")]
    Gone,
    /// The guest runs nowhere.
    #[error("the guest was lost in its last migration")]
    Lost,
    /// The host has no eventfd left.
    #[error("the host refuses an eventfd")]
    Host(#[from] io::Error),
}

/// Why a migration is not cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CancelError {
    /// There is none.
    #[error("no migration was started")]
    None,
    /// It is over, or past the point of no return.
    #[error("it is too late: the migration has ended, or the destination has been told to run")]
    TooLate,
}

impl Migrator {
    /// Starts the thread, which does each job with `work`.
    ///
    /// # Errors
    /// The host refuses a thread or an eventfd.
    pub fn spawn(work: impl FnMut(Job, &Progress) + Send + 'static) -> io::Result<Arc<Self>> {
        let (jobs, todo) = channel::<(Job, Arc<Progress>)>();
        let first = Cancel::new()?;
        let mut work = work;
        sandbox::spawn("migration", ThreadKind::Migration, move || {
            for (job, progress) in todo {
                work(job, &progress);
                progress.end();
            }
        })?;
        Ok(Arc::new(Self {
            jobs: Mutex::new(jobs),
            last: Mutex::default(),
            first: Mutex::new(Some(first)),
        }))
    }

    /// Starts a job. What becomes of it shows in [`Self::status`].
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(&self, job: Job) -> Result<(), StartError> {
        let mut last = lock(&self.last);
        if let Some(last) = &*last {
            match last.phase() {
                MigrationPhase::Failed | MigrationPhase::InDoubt if last.has_ended() => {}
                MigrationPhase::Completed if !last.is_departure() => {}
                MigrationPhase::Completed => return Err(StartError::Gone),
                MigrationPhase::Lost => return Err(StartError::Lost),
                _ => return Err(StartError::Busy),
            }
        }
        let is_departure = matches!(job, Job::Send(_));
        let cancel = lock(&self.first).take().map_or_else(Cancel::new, Ok)?;
        let progress = Arc::new(Progress::of(is_departure, cancel));
        *last = Some(Arc::clone(&progress));
        let sent = lock(&self.jobs).send((job, progress));
        assert!(sent.is_ok(), "the thread lives as long as its handle");
        Ok(())
    }

    /// How the last one is going, or went.
    pub fn status(&self) -> Option<MigrationStatus> {
        lock(&self.last).as_ref().map(|last| last.status())
    }

    /// Whether a job is being done: the guest's machine is not to be changed meanwhile. A guest
    /// that has come is its owner's at once, though the network is still being told.
    pub fn is_busy(&self) -> bool {
        let last = lock(&self.last);
        last.as_ref().is_some_and(|last| {
            let has_come = !last.is_departure() && last.phase() == MigrationPhase::Completed;
            !last.has_ended() && !has_come
        })
    }

    /// The machine has ended: no guest comes any more, and the source of one that has come hears
    /// that it needs nothing. Waits for that for a few seconds at most.
    pub fn end_arrival(&self) {
        let last = lock(&self.last).clone();
        if let Some(last) = last.filter(|last| !last.is_departure()) {
            // If it is too late to cancel, the guest has come.
            let _ = last.set_cancelled();
            last.wait_for_end(FAREWELL);
        }
    }

    /// Has the job give up; how that went shows in [`Self::status`].
    ///
    /// # Errors
    /// [`CancelError`].
    pub fn cancel(&self) -> Result<(), CancelError> {
        let last = lock(&self.last);
        last.as_ref().ok_or(CancelError::None)?.set_cancelled()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use pindah_vmm_api::MigrateRequest;

    use super::*;
    use crate::migration::tls::Identity;

    fn incoming() -> Job {
        Job::Receive(Incoming {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            identity: Identity::Plain,
            timeout: Duration::from_secs(1),
            postcopier: None,
        })
    }

    fn outgoing() -> Job {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let control = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        Job::Send(Box::new(Outgoing {
            request: MigrateRequest::default(),
            control,
            data: Vec::new(),
            urgent: None,
            keys: None,
        }))
    }

    fn wait_until(done: impl Fn() -> bool) {
        let late = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < late, "it takes too long");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn job_runs_once_at_a_time_can_be_cancelled_and_then_started_anew() {
        let migrator = Migrator::spawn(|_, progress| {
            progress.update(|status| status.phase = MigrationPhase::Precopy);
            wait_until(|| progress.cancel().is_set());
        })
        .unwrap();
        assert_eq!(migrator.cancel(), Err(CancelError::None));
        assert!(migrator.status().is_none() && !migrator.is_busy());
        for _ in 0..2 {
            migrator.start(incoming()).unwrap();
            assert!(matches!(migrator.start(incoming()), Err(StartError::Busy)));
            assert!(migrator.is_busy());
            migrator.cancel().unwrap();
            wait_until(|| !migrator.is_busy());
            let status = migrator.status().unwrap();
            assert_eq!(status.phase, MigrationPhase::Failed);
            assert_eq!(migrator.cancel(), Err(CancelError::TooLate));
        }
    }

    #[test]
    fn guest_that_has_come_may_be_changed_while_the_network_is_told() {
        let migrator = Migrator::spawn(|_, progress| {
            progress.update(|status| status.phase = MigrationPhase::Completed);
            wait_until(|| progress.cancel().is_set());
        })
        .unwrap();
        migrator.start(incoming()).unwrap();
        wait_until(|| !migrator.is_busy());
        assert!(migrator.cancel().is_ok());
    }

    #[test]
    fn guest_that_has_moved_does_not_move_again() {
        let migrator = Migrator::spawn(|_, progress| {
            progress.update(|status| status.phase = MigrationPhase::Completed);
        })
        .unwrap();
        migrator.start(outgoing()).unwrap();
        wait_until(|| !migrator.is_busy());
        assert!(matches!(
            migrator.start(outgoing()).unwrap_err(),
            StartError::Gone
        ));
    }

    #[test]
    fn guest_that_was_taken_back_after_a_migration_in_doubt_can_move() {
        let migrator = Migrator::spawn(|_, progress| {
            progress.update(|status| status.phase = MigrationPhase::InDoubt);
        })
        .unwrap();
        for _ in 0..2 {
            migrator.start(outgoing()).unwrap();
            wait_until(|| !migrator.is_busy());
        }
    }
}
