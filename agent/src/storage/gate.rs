//! The only way to a pool's files: a few threads a pool, and a deadline for whoever waits.
//!
//! A NAS that stalls holds up what touches it, for ever maybe. That costs the pool its own threads
//! and nobody anything else: who finds them all taken waits no longer than who has one, and once a
//! pool is known to be stalled nobody waits at all until [`super::Pool`] has seen it answer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::StorageError;
use crate::domain::PoolName;

/// Threads that may be in a pool at once, the one that looks after it not counted.
const THREADS: usize = 4;

/// The way to one pool's files.
pub(super) struct Gate {
    pool: PoolName,
    threads: Arc<Semaphore>,
    stalled_since: Mutex<Option<Instant>>,
}

impl Gate {
    pub(super) fn new(pool: PoolName) -> Self {
        Self {
            pool,
            threads: Arc::new(Semaphore::new(THREADS)),
            stalled_since: Mutex::default(),
        }
    }

    /// Does `work`, which may go on when nobody waits any more.
    ///
    /// # Errors
    /// [`StorageError::Stalled`] after `deadline`, or at once if that is known; those of `work`.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.enter(deadline, |thread| {
            tokio::task::spawn_blocking(move || {
                let done = work();
                drop(thread);
                done
            })
        })
        .await
    }

    /// The same for work that waits for a program, which is then in the place of a thread.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(super) async fn run_program<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<T, StorageError>> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.enter(deadline, |thread| {
            tokio::spawn(async move {
                let done = work.await;
                drop(thread);
                done
            })
        })
        .await
    }

    async fn enter<T>(
        &self,
        deadline: Duration,
        begin: impl FnOnce(OwnedSemaphorePermit) -> JoinHandle<Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        if let Some(waited) = self.stalled_for() {
            return Err(self.stalled(waited));
        }
        let threads = Arc::clone(&self.threads);
        let done = async {
            let Ok(thread) = threads.acquire_owned().await else {
                return Err(StorageError::Cancelled);
            };
            begin(thread).await.unwrap_or_else(|error| {
                tracing::error!("pool {}: {error}", self.pool);
                Err(StorageError::Cancelled)
            })
        };
        let done = tokio::time::timeout(deadline, done).await;
        done.unwrap_or_else(|_| Err(self.stalled(deadline)))
    }

    /// Does `work` when there is a thread for it, however long that takes, and waits for nothing.
    pub(super) fn later(&self, work: impl FnOnce() + Send + 'static) {
        // Without a runtime the agent ends.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let threads = Arc::clone(&self.threads);
        runtime.spawn(async move {
            if let Ok(thread) = threads.acquire_owned().await {
                tokio::task::spawn_blocking(move || {
                    work();
                    drop(thread);
                });
            }
        });
    }

    /// Begins `work` beside everything else: for the one that looks whether the pool answers.
    pub(super) fn begin<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        tokio::task::spawn_blocking(work)
    }

    /// Says whether it answers.
    pub(super) fn set_stalled(&self, since: Option<Instant>) {
        let stalled = self.stalled_since.lock();
        *stalled.unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// How long it has not answered.
    fn stalled_for(&self) -> Option<Duration> {
        let stalled = self.stalled_since.lock();
        let since = *stalled.unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
    }

    fn stalled(&self, waited: Duration) -> StorageError {
        StorageError::Stalled {
            pool: self.pool.clone(),
            seconds: waited.as_secs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    fn gate() -> Gate {
        Gate::new(PoolName::try_from("nas".to_owned()).unwrap())
    }

    #[tokio::test]
    async fn pool_that_stalls_takes_its_own_threads_and_no_more() {
        let gate = gate();
        let mut held = Vec::new();
        let (began, begins) = mpsc::channel();
        for _ in 0..3 * THREADS {
            let (release, wait) = mpsc::channel::<()>();
            held.push(release);
            let began = began.clone();
            let stuck = move || {
                let _ = began.send(());
                let _ = wait.recv();
                Ok(())
            };
            let before = Instant::now();
            let error = gate.run(SHORT, stuck).await.unwrap_err();
            assert!(matches!(error, StorageError::Stalled { .. }), "{error}");
            assert!(before.elapsed() < Duration::from_secs(10));
        }
        assert_eq!(begins.try_iter().count(), THREADS);
        drop(held);
        let answer = gate.run(Duration::from_secs(10), || Ok(7)).await;
        assert_eq!(answer.unwrap(), 7);
    }

    #[tokio::test]
    async fn what_is_done_later_waits_for_a_thread_and_holds_up_nobody() {
        let gate = gate();
        let (release, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let (did, done) = mpsc::channel();
        for _ in 0..3 * THREADS {
            let (wait, did) = (Arc::clone(&wait), did.clone());
            gate.later(move || {
                let _ = wait.lock().unwrap().recv();
                let _ = did.send(());
            });
        }
        // They have their threads.
        while gate.threads.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let error = gate.run(SHORT, || Ok(())).await.unwrap_err();
        assert!(matches!(error, StorageError::Stalled { .. }), "{error}");
        drop(release);
        gate.run(Duration::from_secs(10), || Ok(())).await.unwrap();
        let count = tokio::task::spawn_blocking(move || {
            let long = Duration::from_secs(10);
            (0..3 * THREADS)
                .filter(|_| done.recv_timeout(long).is_ok())
                .count()
        });
        assert_eq!(count.await.unwrap(), 3 * THREADS);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_pool_that_is_known_to_stall() {
        let gate = gate();
        gate.set_stalled(Some(Instant::now()));
        let before = Instant::now();
        let long = Duration::from_secs(60);
        let error = gate.run(long, || Ok(())).await.unwrap_err();
        assert!(error.to_string().contains("pool nas"), "{error}");
        assert!(before.elapsed() < long / 2);
        gate.set_stalled(None);
        gate.run(long, || Ok(())).await.unwrap();
    }
}
