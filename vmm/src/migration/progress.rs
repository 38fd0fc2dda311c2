//! How a migration is going, for who asks and for who is told each second.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pindah_vmm_api::{MigrationPhase, MigrationStatus};

use super::wait::Cancel;

/// How often who listens is told.
const INTERVAL: Duration = Duration::from_secs(1);

/// What one migration's thread shares with the API.
pub struct Progress {
    started: Instant,
    cancel: Cancel,
    shared: Mutex<Shared>,
    listener: Box<dyn Fn(&MigrationStatus) + Send + Sync>,
}

struct Shared {
    status: MigrationStatus,
    told: Duration,
    /// Cancelling comes too late.
    committed: bool,
}

impl Progress {
    /// At the beginning. `listener` is called on the migration's thread, once a second at most.
    pub fn new(
        cancel: Cancel,
        listener: impl Fn(&MigrationStatus) + Send + Sync + 'static,
    ) -> Self {
        Self {
            started: Instant::now(),
            cancel,
            shared: Mutex::new(Shared {
                status: MigrationStatus::default(),
                told: Duration::ZERO,
                committed: false,
            }),
            listener: Box::new(listener),
        }
    }

    /// What ends the migration.
    pub fn cancellation(&self) -> &Cancel {
        &self.cancel
    }

    /// Since the request.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// How it is going now.
    pub fn status(&self) -> MigrationStatus {
        let mut status = self.shared().status.clone();
        if !matches!(
            status.phase,
            MigrationPhase::Completed | MigrationPhase::Failed | MigrationPhase::InDoubt
        ) {
            status.elapsed_ms = self.elapsed().as_millis() as u64;
        }
        status
    }

    /// Asks for the end of the migration. Returns whether that is still possible.
    pub fn cancel(&self) -> bool {
        let shared = self.shared();
        if !shared.committed {
            self.cancel.set();
        }
        !shared.committed
    }

    /// The point of no return. Returns whether nobody has cancelled before; from then on nobody
    /// can.
    pub fn commit(&self) -> bool {
        let mut shared = self.shared();
        shared.committed = !self.cancel.is_set();
        shared.committed
    }

    /// Changes the status, and tells it if a second has passed.
    pub fn update(&self, change: impl FnOnce(&mut MigrationStatus)) {
        let elapsed = self.elapsed();
        let mut shared = self.shared();
        change(&mut shared.status);
        shared.status.elapsed_ms = elapsed.as_millis() as u64;
        if elapsed < shared.told + INTERVAL {
            return;
        }
        shared.told = elapsed;
        let status = shared.status.clone();
        drop(shared);
        (self.listener)(&status);
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancel_after_the_commit_is_refused_and_the_other_way_round() {
        let early = Progress::new(Cancel::new().unwrap(), |_| {});
        assert!(early.cancel());
        assert!(!early.commit());
        let late = Progress::new(Cancel::new().unwrap(), |_| {});
        assert!(late.commit());
        assert!(!late.cancel());
        assert!(!late.cancellation().is_set());
    }
}
