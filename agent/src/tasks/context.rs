//! What the work of a task sees of it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::log;
use crate::causes::chain;
use crate::domain::{MoveProgress, Progress, Task};
use crate::events::{EventKind, Events};
use crate::store::Collection;

/// How often progress is written down.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

/// Why a task did not do what it was to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// Something stood in the way: one sentence.
    #[error("{0}")]
    Failed(String),
    /// Somebody cancelled it.
    #[error("it was cancelled")]
    Cancelled,
}

impl Failure {
    /// An error with its causes.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Failed(chain(error))
    }
}

/// A task, as its work sees it.
#[derive(Clone)]
pub struct TaskContext {
    id: Uuid,
    guest: Option<Uuid>,
    log: PathBuf,
    records: Collection<Task>,
    events: Events,
    cancel: CancellationToken,
    reported: Arc<Mutex<Option<Instant>>>,
}

impl TaskContext {
    pub(super) fn new(
        (id, guest): (Uuid, Option<Uuid>),
        log: PathBuf,
        (records, events): (Collection<Task>, Events),
        cancel: CancellationToken,
    ) -> Self {
        Self {
            id,
            guest,
            log,
            records,
            events,
            cancel,
            reported: Arc::default(),
        }
    }

    /// The task.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Adds a line to the log.
    pub fn log(&self, text: &str) {
        match log::append(&self.log, text) {
            Ok(line) => self.events.tell(EventKind::TaskLog {
                id: self.id,
                guest: self.guest,
                line,
            }),
            Err(error) => tracing::warn!("log of task {}: {error}", self.id),
        }
    }

    /// Says how far it is, without waiting for the store. What comes within half a second of the
    /// last is left out, but the end.
    pub fn progress(&self, percent: u8, text: &str) {
        {
            let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            let soon = reported.is_some_and(|last| last.elapsed() < PROGRESS_PERIOD);
            if soon && percent < 100 {
                return;
            }
            *reported = Some(Instant::now());
        }
        let progress = Progress {
            percent,
            text: text.to_owned(),
        };
        self.events.tell(EventKind::TaskProgress {
            id: self.id,
            guest: self.guest,
            progress: progress.clone(),
        });
        let (id, records) = (self.id, self.records.clone());
        tokio::spawn(async move {
            let key = id.to_string();
            let updated = records.update(&key, |task| task.progress = Some(progress.clone()));
            if let Err(error) = updated.await {
                tracing::warn!("progress of task {id}: {error}");
            }
        });
    }

    /// Says how the move is going that the task makes.
    pub fn tell_move(&self, progress: MoveProgress) {
        self.events.tell(EventKind::Move {
            id: self.id,
            guest: self.guest,
            progress,
        });
    }

    /// Ends when the task is cancelled.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Whether it is cancelled.
    ///
    /// # Errors
    /// [`Failure::Cancelled`], to be handed up.
    pub fn check(&self) -> Result<(), Failure> {
        if self.cancel.is_cancelled() {
            Err(Failure::Cancelled)
        } else {
            Ok(())
        }
    }
}
