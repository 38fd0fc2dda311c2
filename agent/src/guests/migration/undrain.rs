//! The end of a drain: guests that left for it come back.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use super::MoveRequest;
use super::drain::Left;
use crate::api::Accepted;
use crate::causes::chain;
use crate::domain::{Guest, Task, TaskKind, TaskState, TaskSubject};
use crate::guests::{GuestError, Guests};
use crate::peer::PeerError;
use crate::tasks::{Failure, TaskContext};

/// How long one question waits for the end of another node's task, in seconds.
const WAIT_S: u64 = 30;
/// How long a node that does not answer waits for the next question.
const RETRY: Duration = Duration::from_secs(1);

impl Guests {
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
            |context| async move {
                let work = guests.bring_back(&drain.guests, &context);
                guests.carry_out(&context, work).await
            },
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
        let guest = loop {
            match self.find(&uuid.to_string()).await {
                // It is leaving yet, or an agent before us has called it.
                Ok(guest) if guest.value.moving_to.is_some() => {
                    context.check().map_err(|error| Left(error.to_string()))?;
                    tokio::time::sleep(RETRY).await;
                }
                Ok(guest) if guest.value.node == *node => return Ok(()),
                Ok(guest) => break guest.value,
                Err(GuestError::NotFound(_)) => return Ok(()),
                Err(error) => return Err(Left(format!("guest {uuid}: {}", chain(&error)))),
            }
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
