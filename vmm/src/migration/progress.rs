//! How a migration is going: for who asks, for who is told each second, and the way to end it.

use std::fmt::{Debug, Formatter};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use pindah_vmm_api::{MigrationPhase, MigrationStatus};

use super::wait::Cancel;
use super::worker::CancelError;

/// How often who listens is told.
const INTERVAL: Duration = Duration::from_secs(1);

type Listener = Box<dyn Fn(&MigrationStatus) + Send + Sync>;

/// One migration as others see it.
pub struct Progress {
    started: Instant,
    is_departure: bool,
    cancel: Cancel,
    inner: Mutex<Inner>,
    /// Notified once it is over.
    over: Condvar,
    listener: OnceLock<Listener>,
}

#[derive(Debug, Default)]
struct Inner {
    status: MigrationStatus,
    told: Duration,
    committed: bool,
    ended: bool,
}

impl Progress {
    /// Of a guest that begins to leave now.
    pub fn new(cancel: Cancel) -> Self {
        Self::of(true, cancel)
    }

    /// Of a guest that begins to leave now, or to come.
    pub fn of(is_departure: bool, cancel: Cancel) -> Self {
        Self {
            started: Instant::now(),
            is_departure,
            cancel,
            inner: Mutex::default(),
            over: Condvar::new(),
            listener: OnceLock::new(),
        }
    }

    /// Has `listener` called on the migration's thread, once a second at most. Only the first one
    /// is.
    pub fn tell(&self, listener: impl Fn(&MigrationStatus) + Send + Sync + 'static) {
        self.listener.get_or_init(|| Box::new(listener));
    }

    /// Whether the guest leaves.
    pub fn is_departure(&self) -> bool {
        self.is_departure
    }

    /// Since it began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Set once somebody wants it to end.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Where it is.
    pub fn phase(&self) -> MigrationPhase {
        self.inner().status.phase
    }

    /// How it is going.
    pub fn status(&self) -> MigrationStatus {
        let inner = self.inner();
        let mut status = inner.status.clone();
        if !inner.ended {
            status.elapsed_ms = self.elapsed().as_millis() as u64;
        }
        status
    }

    /// Changes what others see, the time included, and tells it if a second has passed.
    pub fn update(&self, change: impl FnOnce(&mut MigrationStatus)) {
        let elapsed = self.elapsed();
        let mut inner = self.inner();
        change(&mut inner.status);
        inner.status.elapsed_ms = elapsed.as_millis() as u64;
        if elapsed < inner.told + INTERVAL {
            return;
        }
        inner.told = elapsed;
        let status = inner.status.clone();
        drop(inner);
        if let Some(listener) = self.listener.get() {
            listener(&status);
        }
    }

    /// The point of no return: nobody can cancel from here on. Returns false if somebody has.
    #[must_use]
    pub fn commit(&self) -> bool {
        let mut inner = self.inner();
        inner.committed = !self.cancel.is_set();
        inner.committed
    }

    /// Asks for the end.
    ///
    /// # Errors
    /// [`CancelError::TooLate`].
    pub fn set_cancelled(&self) -> Result<(), CancelError> {
        let inner = self.inner();
        if inner.committed || inner.ended {
            return Err(CancelError::TooLate);
        }
        self.cancel.set();
        Ok(())
    }

    /// It is over. A job that ends without a word has failed.
    pub(super) fn end(&self) {
        use MigrationPhase::{Completed, Failed, InDoubt, Lost};
        self.update(|status| {
            if !matches!(status.phase, Completed | Failed | InDoubt | Lost) {
                status.phase = Failed;
                status
                    .reason
                    .get_or_insert_with(|| "it was given up".to_owned());
            }
        });
        self.inner().ended = true;
        self.over.notify_all();
    }

    /// Waits until it is over, for `limit` at most.
    pub(super) fn wait_for_end(&self, limit: Duration) {
        let not_over = |inner: &mut Inner| !inner.ended;
        // Whoever waits finds out by itself.
        drop(self.over.wait_timeout_while(self.inner(), limit, not_over));
    }

    /// Whether it is over.
    pub(super) fn has_ended(&self) -> bool {
        self.inner().ended
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for Progress {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        self.inner().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancel_after_the_commit_is_refused_and_the_other_way_round() {
        let early = Progress::new(Cancel::new().unwrap());
        assert_eq!(early.set_cancelled(), Ok(()));
        assert!(!early.commit());
        let late = Progress::new(Cancel::new().unwrap());
        assert!(late.commit());
        assert_eq!(late.set_cancelled(), Err(CancelError::TooLate));
        assert!(!late.cancel().is_set());
    }
}
