//! Everything that lasts: a record in the store, a log in a file, and an end that always comes.
//!
//! A task runs in the agent that began it. When that agent ends the task ends with it: the next
//! one finds the record still running and marks it failed. Only an update goes on in the next agent
//! ([`Tasks::resume`]), for what it does is to restart the node.

mod context;
mod log;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use context::{Failure, TaskContext};
pub use log::LogLine;

use crate::clock::now_unix_ms;
use crate::domain::{Task, TaskKind, TaskState, TaskSubject};
use crate::events::{EventKind, Events};
use crate::store::{Collection, Store, StoreError, Stored};

/// Tasks that are kept, the oldest go first.
const KEPT: usize = 1000;
/// How often old ones are removed.
const PRUNE_PERIOD: Duration = Duration::from_secs(3600);
/// Why a task of an agent before us failed.
const INTERRUPTED: &str = "the agent ended while the task ran; look at its log, and start it again";
/// Tasks without a record that are kept.
const UNRECORDED_KEPT: usize = 100;
/// How long one wait for the majority is.
const MAJORITY_PATIENCE: Duration = Duration::from_secs(60);

/// Why a task cannot be cancelled.
#[derive(Debug, Error)]
pub enum CancelError {
    /// There is none with this id.
    #[error("there is no task {0}")]
    NotFound(Uuid),
    /// It has ended.
    #[error("task {0} has ended already")]
    Ended(Uuid),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The tasks of this node.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    node: String,
    directory: PathBuf,
    records: Collection<Task>,
    events: Events,
    /// When these tasks could first be begun, in milliseconds since the Unix epoch.
    began_unix_ms: u64,
    running: Mutex<HashMap<Uuid, Running>>,
    /// Tasks that were begun while the store took no changes: known here only.
    unrecorded: Mutex<HashMap<Uuid, Task>>,
}

struct Running {
    cancel: CancellationToken,
    /// Closes when the task has ended and its record says so.
    ended: watch::Receiver<()>,
}

impl Tasks {
    /// Those of `node`, whose logs lie in `directory`.
    pub fn new(node: &str, directory: PathBuf, store: Arc<dyn Store>, events: Events) -> Self {
        Self {
            inner: Arc::new(Inner {
                node: node.to_owned(),
                directory,
                records: Collection::new(store),
                events,
                began_unix_ms: now_unix_ms(),
                running: Mutex::default(),
                unrecorded: Mutex::default(),
            }),
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Uuid, Running>> {
        let running = self.inner.running.lock();
        running.unwrap_or_else(PoisonError::into_inner)
    }

    fn unrecorded(&self) -> MutexGuard<'_, HashMap<Uuid, Task>> {
        let unrecorded = self.inner.unrecorded.lock();
        unrecorded.unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no task runs.
    pub fn is_idle(&self) -> bool {
        self.running().is_empty()
    }

    /// Writes the task down. Without a majority those that a node may carry out alone are only
    /// kept in mind.
    async fn record(&self, task: &Task) -> Result<(), StoreError> {
        let created = self.inner.records.create(&task.id.to_string(), task).await;
        match created {
            Err(StoreError::NoMajority) if task.kind.works_alone() => {
                let mut unrecorded = self.unrecorded();
                if unrecorded.len() >= UNRECORDED_KEPT {
                    unrecorded.retain(|_, task| task.state == TaskState::Running);
                }
                unrecorded.insert(task.id, task.clone());
                Ok(())
            }
            created => created.map(|_| ()),
        }
    }

    /// Marks as failed what an agent before us did not bring to an end, but for those that go on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn recover(&self, unfinished: &[Uuid]) -> Result<(), StoreError> {
        for Stored { value: task, .. } in self.inner.records.all().await? {
            let ours = task.node == self.inner.node && !self.running().contains_key(&task.id);
            let before = task.created_unix_ms <= self.inner.began_unix_ms;
            let ended = task.state != TaskState::Running || unfinished.contains(&task.id);
            if ours && before && !ended {
                let failure = Failure::Failed(INTERRUPTED.to_owned());
                self.end(task.id, Err(failure)).await?;
            }
        }
        Ok(())
    }

    /// Removes old tasks, for ever.
    pub async fn keep_few(self) {
        let mut tick = tokio::time::interval(PRUNE_PERIOD);
        loop {
            tick.tick().await;
            if let Err(error) = self.prune(KEPT).await {
                tracing::error!("old tasks cannot be removed: {error}");
            }
        }
    }

    /// Removes the oldest records, whichever node's they are, for one that was removed does not do
    /// it; and this node's logs that have no record any more.
    async fn prune(&self, kept: usize) -> Result<(), StoreError> {
        let now = Uuid::now_v7();
        let all = self.inner.records.all().await?;
        let too_many = all.len().saturating_sub(kept);
        let mut recorded = HashSet::new();
        for (index, Stored { value: task, .. }) in all.into_iter().enumerate() {
            if index < too_many && task.state != TaskState::Running {
                self.inner.records.delete(&task.id.to_string()).await?;
            } else {
                recorded.insert(task.id);
            }
        }
        for id in log::ids(&self.inner.directory) {
            let is_known = recorded.contains(&id)
                || self.running().contains_key(&id)
                || self.unrecorded().contains_key(&id);
            // Of a task that has begun meanwhile the records that were read know nothing.
            if id < now && !is_known {
                // What has no record is found by nobody.
                let _ = std::fs::remove_file(log::path(&self.inner.directory, id));
            }
        }
        Ok(())
    }

    /// Marks as failed what a node that was removed did not bring to an end.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fail_those_of(&self, removed: &str) -> Result<(), StoreError> {
        for Stored { value: task, .. } in self.inner.records.all().await? {
            if task.node == removed && task.state == TaskState::Running {
                let reason = format!("node {removed} was removed while the task ran");
                self.end(task.id, Err(Failure::Failed(reason))).await?;
            }
        }
        Ok(())
    }

    /// Begins a task. It runs on when the caller goes away.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was begun.
    pub async fn start<F, W>(
        &self,
        kind: TaskKind,
        subject: TaskSubject,
        user: &str,
        work: W,
    ) -> Result<Task, StoreError>
    where
        W: FnOnce(TaskContext) -> F,
        F: Future<Output = Result<serde_json::Value, Failure>> + Send + 'static,
    {
        let task = Task {
            id: Uuid::now_v7(),
            kind,
            subject: subject.name,
            guest: subject.guest,
            node: self.inner.node.clone(),
            user: user.to_owned(),
            state: TaskState::Running,
            progress: None,
            created_unix_ms: now_unix_ms(),
            ended_unix_ms: None,
            error: None,
            result: None,
        };
        self.record(&task).await?;
        self.tell(&task);
        self.carry_out((task.id, task.guest), work);
        Ok(task)
    }

    /// Goes on with a task that an agent before us began. It need not be in the store yet, or any
    /// more. It is about no guest.
    pub fn resume<F, W>(&self, id: Uuid, work: W)
    where
        W: FnOnce(TaskContext) -> F,
        F: Future<Output = Result<serde_json::Value, Failure>> + Send + 'static,
    {
        self.carry_out((id, None), work);
    }

    fn carry_out<F, W>(&self, (id, guest): (Uuid, Option<Uuid>), work: W)
    where
        W: FnOnce(TaskContext) -> F,
        F: Future<Output = Result<serde_json::Value, Failure>> + Send + 'static,
    {
        let cancel = CancellationToken::new();
        let (ending, ended) = watch::channel(());
        let context = TaskContext::new(
            (id, guest),
            log::path(&self.inner.directory, id),
            (self.inner.records.clone(), self.inner.events.clone()),
            cancel.clone(),
        );
        let work = work(context.clone());
        self.running().insert(id, Running { cancel, ended });
        let tasks = self.clone();
        tokio::spawn(async move {
            let outcome = work.await;
            match &outcome {
                Ok(_) => context.log("done"),
                Err(failure) => context.log(&failure.to_string()),
            }
            while let Err(error) = tasks.end(id, outcome.clone()).await {
                tracing::error!("the end of task {id} cannot be recorded: {error}");
                if !matches!(error, StoreError::NoMajority) {
                    break;
                }
                tasks.inner.records.settled(MAJORITY_PATIENCE).await;
            }
            tasks.running().remove(&id);
            drop(ending);
        });
    }

    async fn end(
        &self,
        id: Uuid,
        outcome: Result<serde_json::Value, Failure>,
    ) -> Result<(), StoreError> {
        let (state, error, result) = match outcome {
            Ok(result) => (TaskState::Done, None, Some(result)),
            Err(Failure::Cancelled) => {
                let error = Failure::Cancelled.to_string();
                (TaskState::Cancelled, Some(error), None)
            }
            Err(Failure::Failed(error)) => (TaskState::Failed, Some(error), None),
        };
        let now = now_unix_ms();
        let alone = self.unrecorded().get_mut(&id).map(|task| {
            task.end(state, error.clone(), now);
            task.result.clone_from(&result);
            task.clone()
        });
        if let Some(task) = alone {
            self.tell(&task);
            return Ok(());
        }
        let key = id.to_string();
        let ended = self.inner.records.update(&key, |task| {
            task.end(state, error.clone(), now);
            task.result.clone_from(&result);
        });
        if let Some(Stored { value: task, .. }) = ended.await? {
            self.tell(&task);
        }
        Ok(())
    }

    fn tell(&self, task: &Task) {
        self.inner.events.tell(EventKind::Task {
            id: task.id,
            kind: task.kind,
            subject: task.subject.clone(),
            guest: task.guest,
            state: task.state,
        });
    }

    /// A task.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(&self, id: Uuid) -> Result<Option<Task>, StoreError> {
        if let Some(task) = self.unrecorded().get(&id) {
            return Ok(Some(task.clone()));
        }
        let stored = self.inner.records.get(&id.to_string()).await?;
        Ok(stored.map(|stored| stored.value))
    }

    /// A task, when it has ended or when `patience` has: whichever is first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn wait(&self, id: Uuid, patience: Duration) -> Result<Option<Task>, StoreError> {
        let ended = self.running().get(&id).map(|running| running.ended.clone());
        if let Some(mut ended) = ended {
            // An error here is the end that is waited for.
            let _ = tokio::time::timeout(patience, ended.changed()).await;
        }
        self.get(id).await
    }

    /// All tasks, the newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self) -> Result<Vec<Task>, StoreError> {
        let all = self.inner.records.all().await?;
        let mut all: Vec<Task> = all.into_iter().map(|stored| stored.value).collect();
        all.extend(self.unrecorded().values().cloned());
        all.sort_by_key(|task| std::cmp::Reverse(task.id));
        Ok(all)
    }

    /// Lines of a task's log after the first `after`.
    pub fn log(&self, id: Uuid, after: usize) -> Vec<LogLine> {
        log::read(&log::path(&self.inner.directory, id), after)
    }

    /// Asks a task to end. It does so at the next point where it can, and leaves nothing half-made.
    ///
    /// # Errors
    /// [`CancelError`].
    pub async fn cancel(&self, id: Uuid) -> Result<(), CancelError> {
        if let Some(running) = self.running().get(&id) {
            running.cancel.cancel();
            return Ok(());
        }
        match self.get(id).await? {
            Some(_) => Err(CancelError::Ended(id)),
            None => Err(CancelError::NotFound(id)),
        }
    }
}

#[cfg(test)]
mod tests;
