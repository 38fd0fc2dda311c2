//! A node that is to have no guests for a while: they leave it one by one, and come back.
//!
//! The record is what is wanted: it says which task carries it out, so the agent that comes after one
//! that was killed knows that there is something left to do, and begins a task of its own.

use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::MoveRequest;
use crate::causes::chain;
use crate::domain::{Guest, Task, TaskKind, TaskSubject, Wanted};
use crate::guests::machine::Operation;
use crate::guests::{GuestError, Guests};
use crate::store::{Collection, Record, StoreError};
use crate::tasks::{Failure, TaskContext};

/// How often a guest is sent away whose move breaks.
const TRIES: u32 = 2;
/// How long a guest that is to run and does not is waited for, and how often it is looked at.
const START_PATIENCE: Duration = Duration::from_secs(30);
const START_POLL: Duration = Duration::from_millis(200);
/// How long one wait for the majority is.
const MAJORITY_PATIENCE: Duration = Duration::from_secs(60);
/// Who begins what an agent before us did not end.
const AGENT: &str = "pindahd";

/// A node that takes no guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The node.
    pub node: String,
    /// Guests that have left it for that, and come back after it.
    pub guests: Vec<Uuid>,
    /// It is over, and guests come back.
    pub over: bool,
    /// The task that moves guests for it, until that has ended.
    #[serde(default)]
    pub task: Option<Uuid>,
}

impl Record for Drain {
    const KIND: &'static str = "drains";
    const SCHEMA: u32 = 1;
}

/// A guest that did not move, and why.
pub(super) struct Left(pub(super) String);

/// What a try to send a guest away came to.
enum Departure {
    /// It is not here any more.
    Gone,
    /// It broke on the way, and another try may do.
    Broken(Left),
}

impl Guests {
    pub(super) fn drains(&self) -> Collection<Drain> {
        Collection::new(self.resources().store.clone())
    }

    /// The nodes that take no guests now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn drained_nodes(&self) -> Result<Vec<String>, StoreError> {
        let drains = self.drains().all().await?.into_iter();
        let current = drains.filter(|drain| !drain.value.over);
        Ok(current.map(|drain| drain.value.node).collect())
    }

    /// Refuses a guest that would begin to run here.
    ///
    /// # Errors
    /// [`GuestError::Drained`], [`GuestError::Store`].
    pub async fn require_undrained(&self) -> Result<(), GuestError> {
        let node = &self.resources().node;
        match self.drains().get(node).await? {
            Some(drain) if !drain.value.over => Err(GuestError::Drained(node.clone())),
            _ => Ok(()),
        }
    }

    /// Begins to move all guests of this node to others; from now on it takes none.
    ///
    /// # Errors
    /// [`GuestError::Alone`], [`GuestError::Store`].
    pub async fn drain(&self, user: &str) -> Result<Task, GuestError> {
        self.links()?;
        let node = self.resources().node.clone();
        let new = Drain {
            node: node.clone(),
            guests: Vec::new(),
            over: false,
            task: None,
        };
        self.drains().create(&node, &new).await?;
        // One that was over, or was not brought to its end, goes on.
        self.drains()
            .update(&node, |drain| drain.over = false)
            .await?;
        let guests = self.clone();
        let tasks = &self.resources().tasks;
        let task = tasks.start(
            TaskKind::DrainNode,
            TaskSubject::node(&node),
            user,
            |context| async move {
                let work = guests.empty_node(&context);
                guests.carry_out(&context, work).await
            },
        );
        Ok(task.await?)
    }

    /// The work, with a note that this task does it as long as it does.
    pub(super) async fn carry_out(
        &self,
        context: &TaskContext,
        work: impl Future<Output = Result<serde_json::Value, Failure>>,
    ) -> Result<serde_json::Value, Failure> {
        let (node, id) = (&self.resources().node, Some(context.id()));
        let drains = self.drains();
        let begun = drains.update(node, |drain| drain.task = id);
        begun.await.map_err(GuestError::from)?;
        let outcome = work.await;
        let ended = drains.update(node, |drain| {
            // Another may have begun meanwhile.
            drain.task = drain.task.filter(|_| drain.task != id);
        });
        if let Err(error) = ended.await {
            context.log(&format!("the next start of the agent looks again: {error}"));
        }
        outcome
    }

    /// Goes on with what an agent before us did not bring to its end, when there is a majority.
    pub async fn resume_drain(self) {
        while !self.records().settled(MAJORITY_PATIENCE).await {}
        let node = &self.resources().node;
        let resumed = match self.drains().get(node).await {
            Ok(Some(drain)) if drain.value.task.is_some() => {
                tracing::info!("the agent ended while guests left or came back; going on");
                if drain.value.over {
                    self.undrain(AGENT).await
                } else {
                    self.drain(AGENT).await
                }
            }
            Ok(_) => return,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = resumed {
            tracing::error!("cannot go on with the drain: {}", chain(&error));
        }
    }

    async fn empty_node(&self, context: &TaskContext) -> Result<serde_json::Value, Failure> {
        let node = &self.resources().node;
        let all = self.records().all().await.map_err(GuestError::from)?;
        let mut here: Vec<Guest> = all.into_iter().map(|stored| stored.value).collect();
        here.retain(|guest| guest.node == *node);
        here.sort_by_key(|guest| guest.autostart.order);
        let total = here.len();
        let at_once = self.links()?.turns.available_permits().max(1);
        let departures = here.into_iter().map(|guest| {
            let (guests, context) = (self.clone(), context.clone());
            async move { guests.send_away(guest, &context).await }
        });
        let mut departures = futures_util::stream::iter(departures).buffer_unordered(at_once);
        let (mut moved, mut left) = (0, Vec::new());
        while let Some(outcome) = departures.next().await {
            match outcome {
                Ok(()) => moved += 1,
                Err(Left(why)) => {
                    context.log(&why);
                    left.push(why);
                }
            }
            let done = moved + left.len();
            let text = format!("{done} of {total} guests");
            context.progress((done * 100 / total.max(1)).min(99) as u8, &text);
        }
        context.check()?;
        if left.is_empty() {
            return Ok(json!({ "node": node, "moved": moved }));
        }
        let count = left.len();
        let why = left.join("; ");
        Err(Failure::Failed(format!(
            "{moved} guests have left and {count} are still there: {why}; the node takes no others \
             until `pindah node undrain {node}`"
        )))
    }

    async fn send_away(&self, guest: Guest, context: &TaskContext) -> Result<(), Left> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_to_send_away(&guest, context).await? {
                Departure::Gone => return Ok(()),
                Departure::Broken(Left(why)) if tries < TRIES && context.check().is_ok() => {
                    context.log(&format!("{why}; trying again"));
                }
                Departure::Broken(left) => return Err(left),
            }
        }
    }

    async fn try_to_send_away(
        &self,
        guest: &Guest,
        context: &TaskContext,
    ) -> Result<Departure, Left> {
        let left = |why: String| Left(format!("guest {}: {why}", guest.name));
        let cancelled = || left("the drain was cancelled".to_owned());
        let machine = self.machine(guest.uuid);
        let _operation = tokio::select! {
            operation = self.operate_when_settled(guest.uuid) => operation,
            () = context.cancelled() => return Err(cancelled()),
        };
        context.check().map_err(|_| cancelled())?;
        // It may have been deleted or stopped while others moved.
        let now = match self.find(&guest.uuid.to_string()).await {
            Ok(now) => now.value,
            Err(GuestError::NotFound(_)) => return Ok(Departure::Gone),
            Err(error) => return Err(left(chain(&error))),
        };
        // An agent before us may have begun to move it.
        let is_here = now.node == self.resources().node;
        if !(is_here && self.finish_move_of(&now).await) {
            return Ok(Departure::Gone);
        }
        if self.require_undrained().await.is_ok() {
            return Err(left("the drain was ended meanwhile".to_owned()));
        }
        if self.wanted(&now) == Wanted::Running && !machine.status().state.has_process() {
            return Err(left("it is to run and does not".to_owned()));
        }
        let request = MoveRequest::default();
        let plan = self.plan_move(&now, &request).await;
        let plan = plan.map_err(|error| left(chain(&error)))?;
        context.log(&format!("guest {} moves to {}", now.name, plan.to));
        // Before it goes: an agent that ends on the way leaves it to the next one to bring it back.
        self.remember_departure(&now, true, context).await;
        let moved = self.move_now(now.uuid, &plan, &request, context).await;
        if let Err(error) = moved {
            self.remember_departure(&now, false, context).await;
            return Ok(Departure::Broken(left(error.to_string())));
        }
        Ok(Departure::Gone)
    }

    /// The guest's operation, when its VMM answers if it is to run: one that was about to start would
    /// be moved as one that is off, and the end of a VMM that was killed is noticed a little later.
    /// Not for ever.
    async fn operate_when_settled(&self, uuid: Uuid) -> Operation {
        let machine = self.machine(uuid);
        let end = Instant::now() + START_PATIENCE;
        loop {
            let operation = machine.operate().await;
            let starts = match self.find(&uuid.to_string()).await {
                Ok(now) => {
                    let now = now.value;
                    let ours = now.node == self.resources().node && now.moving_to.is_none();
                    ours && self.wanted(&now) == Wanted::Running
                }
                Err(_) => false,
            };
            if !starts || self.client(uuid).info().await.is_ok() || Instant::now() > end {
                return operation;
            }
            drop(operation);
            tokio::time::sleep(START_POLL).await;
        }
    }

    /// Whether the guest comes back after the drain.
    async fn remember_departure(&self, guest: &Guest, gone: bool, context: &TaskContext) {
        let drains = self.drains();
        let remembered = drains.update(&self.resources().node, |drain| {
            drain.guests.retain(|other| *other != guest.uuid);
            drain.guests.extend(gone.then_some(guest.uuid));
        });
        if let Err(error) = remembered.await
            && gone
        {
            context.log(&format!(
                "guest {} will not come back by itself: {error}",
                guest.name
            ));
        }
    }
}
