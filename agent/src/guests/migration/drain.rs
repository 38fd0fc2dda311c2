//! A node that is to have no guests for a while: they leave it one by one, and come back.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::MoveRequest;
use crate::api::Accepted;
use crate::causes::chain;
use crate::domain::{Guest, Task, TaskKind, TaskState, TaskSubject};
use crate::guests::{GuestError, Guests};
use crate::peer::PeerError;
use crate::store::{Collection, Record, StoreError};
use crate::tasks::{Failure, TaskContext};

/// How long one question waits for the end of another node's task, in seconds.
const WAIT_S: u64 = 30;
/// How long a node that does not answer waits for the next question.
const RETRY: Duration = Duration::from_secs(1);

/// A node that takes no guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The node.
    pub node: String,
    /// Guests that have left it for that, and come back after it.
    pub guests: Vec<Uuid>,
    /// It is over, and guests come back.
    pub over: bool,
}

impl Record for Drain {
    const KIND: &'static str = "drains";
    const SCHEMA: u32 = 1;
}

/// A guest that did not move, and why.
struct Left(String);

impl Guests {
    fn drains(&self) -> Collection<Drain> {
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
            |context| async move { guests.empty_node(&context).await },
        );
        Ok(task.await?)
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
        let left = |why: String| Left(format!("guest {}: {why}", guest.name));
        let machine = self.machine(guest.uuid);
        let _operation = tokio::select! {
            operation = machine.operate() => operation,
            () = context.cancelled() => return Err(left("the drain was cancelled".to_owned())),
        };
        context.check().map_err(|error| left(error.to_string()))?;
        // It may have been deleted or stopped while others moved.
        let now = match self.find(&guest.uuid.to_string()).await {
            Ok(now) => now.value,
            Err(GuestError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(left(chain(&error))),
        };
        if now.node != self.resources().node {
            return Ok(());
        }
        if self.require_undrained().await.is_ok() {
            return Err(left("the drain was ended meanwhile".to_owned()));
        }
        let request = MoveRequest::default();
        let plan = self.plan_move(&now, &request).await;
        let plan = plan.map_err(|error| left(chain(&error)))?;
        context.log(&format!("guest {} moves to {}", now.name, plan.to));
        let moved = self.move_now(now.uuid, &plan, &request, context).await;
        moved.map_err(|error| left(error.to_string()))?;
        let drains = self.drains();
        let remembered = drains.update(&self.resources().node, |drain| {
            if !drain.guests.contains(&now.uuid) {
                drain.guests.push(now.uuid);
            }
        });
        if let Err(error) = remembered.await {
            context.log(&format!(
                "guest {} will not come back by itself: {error}",
                now.name
            ));
        }
        Ok(())
    }

    /// Lets this node take guests again, and begins to bring back those that left it for its drain.
    ///
    /// # Errors
    /// [`GuestError::Undrained`], [`GuestError::Store`].
    pub async fn undrain(&self, user: &str) -> Result<Task, GuestError> {
        let node = self.resources().node.clone();
        let ended = self
            .drains()
            .update(&node, |drain| drain.over = true)
            .await?;
        let drain = ended
            .ok_or_else(|| GuestError::Undrained(node.clone()))?
            .value;
        let guests = self.clone();
        let tasks = &self.resources().tasks;
        let task = tasks.start(
            TaskKind::UndrainNode,
            TaskSubject::node(&node),
            user,
            |context| async move { guests.bring_back(&drain.guests, &context).await },
        );
        Ok(task.await?)
    }

    async fn bring_back(
        &self,
        uuids: &[Uuid],
        context: &TaskContext,
    ) -> Result<serde_json::Value, Failure> {
        let node = &self.resources().node;
        let (mut back, mut left) = (0, Vec::new());
        for (index, uuid) in uuids.iter().enumerate() {
            context.check()?;
            context.progress(
                (index * 100 / uuids.len()) as u8,
                &format!("{back} guests are back"),
            );
            match self.call_back(*uuid, context).await {
                Ok(()) => back += 1,
                Err(Left(why)) => {
                    context.log(&why);
                    left.push(why);
                }
            }
        }
        self.drains().delete(node).await.map_err(GuestError::from)?;
        if left.is_empty() {
            return Ok(json!({ "node": node, "moved": back }));
        }
        let (count, why) = (left.len(), left.join("; "));
        Err(Failure::Failed(format!(
            "node {node} takes guests again; {back} are back and {count} are not: {why}"
        )))
    }

    /// Has the node that has the guest now move it here.
    async fn call_back(&self, uuid: Uuid, context: &TaskContext) -> Result<(), Left> {
        let node = &self.resources().node;
        let guest = match self.find(&uuid.to_string()).await {
            Ok(guest) if guest.value.node == *node => return Ok(()),
            Ok(guest) => guest.value,
            Err(GuestError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(Left(format!("guest {uuid}: {}", chain(&error)))),
        };
        let left = |why: String| Left(format!("guest {}: {why}", guest.name));
        context.log(&format!(
            "guest {} comes back from {}",
            guest.name, guest.node
        ));
        let begun = self.begin_elsewhere(&guest).await;
        let task = begun.map_err(|error| left(chain(&error)))?;
        let task = self.await_elsewhere(&guest.node, task, context).await;
        let task = task.map_err(|error| left(error.to_string()))?;
        match (task.state, task.error) {
            (TaskState::Done, _) => Ok(()),
            (state, error) => Err(left(error.unwrap_or_else(|| state.to_string()))),
        }
    }

    async fn begin_elsewhere(&self, guest: &Guest) -> Result<Task, GuestError> {
        let peers = &self.links()?.peers;
        let path = format!("/guests/{}/migrate", guest.uuid);
        let request = peers.request(&guest.node, Method::POST, &path).await?;
        let body = MoveRequest {
            to: Some(self.resources().node.clone()),
            ..MoveRequest::default()
        };
        let bytes = peers.bytes(&guest.node, request.json(&body)).await?;
        let accepted = serde_json::from_slice::<Accepted>(&bytes);
        let accepted = accepted.map_err(|error| PeerError::Answer {
            node: guest.node.clone(),
            reason: error.to_string(),
        })?;
        Ok(accepted.task)
    }

    /// The task when it has ended. A cancelled one is cancelled there too.
    async fn await_elsewhere(
        &self,
        node: &str,
        mut task: Task,
        context: &TaskContext,
    ) -> Result<Task, Failure> {
        let peers = &self.links()?.peers;
        let path = format!("/tasks/{}", task.id);
        let waiting = format!("{path}?wait_s={WAIT_S}");
        while task.state == TaskState::Running {
            let asked = peers.ask::<(), Task>(node, Method::GET, &waiting, None);
            tokio::select! {
                asked = asked => match asked {
                    Ok(now) => task = now,
                    Err(error @ PeerError::Refused { .. }) => return Err(Failure::of(&error)),
                    Err(_) => tokio::time::sleep(RETRY).await,
                },
                () = context.cancelled() => {
                    let path = format!("{path}/cancel");
                    let request = peers.request(node, Method::POST, &path).await;
                    if let Ok(request) = request {
                        let _ = peers.bytes(node, request).await;
                    }
                    return Err(Failure::Cancelled);
                }
            }
        }
        Ok(task)
    }
}
