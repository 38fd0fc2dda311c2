//! The update of a whole cluster: node after node, each as [`Updates::begin`] does it.
//!
//! The node that was asked leads. It has the bundle, from which the others fetch it, and is itself
//! the last one. What is wanted and how far it is stands in the store, so that the leader's agent
//! goes on after it has ended, its own restart included. The first node that fails ends it: those
//! before it run the new version, those after it the old one.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use super::fetch::require_url;
use super::{Bundle, UpdateError, UpdateRequest, Updates};
use crate::api::Accepted;
use crate::causes::chain;
use crate::domain::{Task, TaskKind, TaskState, TaskSubject};
use crate::peer::{PeerError, Peers};
use crate::store::{Collection, Outcome, Record, Store, StoreError};
use crate::tasks::{Failure, TaskContext};

/// There is one cluster.
const ID: &str = "cluster";
/// How often the node's task is looked at.
const POLL: Duration = Duration::from_secs(1);
/// How long all nodes have until they are there, before one of them restarts.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// How long a node may be away: an old server takes its time, and the way back takes three starts.
const RETURN_PATIENCE: Duration = Duration::from_secs(2700);
/// How long one wait for the majority is.
const MAJORITY_PATIENCE: Duration = Duration::from_secs(60);

/// How a cluster is updated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutRequest {
    /// Where the node that leads fetches the bundle, by HTTP or HTTPS; absent: the bundle that it
    /// has.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2048)]
    pub url: Option<String>,
    /// Take a bundle that is older than what nodes run.
    pub force: bool,
}

/// An update of the cluster that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The node that leads it, and has the bundle.
    leader: String,
    /// The leader's task.
    task: Uuid,
    /// Who asked for it.
    user: String,
    /// How.
    request: RolloutRequest,
    /// What all get; `None`: it is not there yet.
    bundle: Option<Bundle>,
    /// Nodes that are done.
    done: Vec<String>,
    /// The node that is being updated.
    current: Option<Step>,
}

/// A node's turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Step {
    node: String,
    /// Its task; `None`: it has not said so.
    task: Option<Uuid>,
}

impl Record for Rollout {
    const KIND: &'static str = "rollouts";
    const SCHEMA: u32 = 1;
}

/// The task of the rollout that this node leads, if there is one.
pub(super) async fn led_by(node: &str, store: &Arc<dyn Store>) -> Result<Option<Uuid>, StoreError> {
    let rollout = Collection::<Rollout>::new(Arc::clone(store))
        .get(ID)
        .await?;
    let ours = rollout.filter(|rollout| rollout.value.leader == node);
    Ok(ours.map(|rollout| rollout.value.task))
}

/// Whose turn it is among `nodes`: the leader's is the last.
fn next(nodes: &[String], leader: &str, done: &[String]) -> Option<String> {
    let mut left: Vec<&String> = nodes.iter().filter(|node| !done.contains(node)).collect();
    left.sort_by_key(|node| (*node == leader, *node));
    left.first().map(|node| (*node).clone())
}

impl Updates {
    fn require_peers(&self) -> Result<&Peers, UpdateError> {
        let peers = self.peers.as_ref();
        peers.ok_or_else(|| UpdateError::NotIn(self.node.clone()))
    }

    /// Begins to update all nodes of the cluster; this one leads.
    ///
    /// # Errors
    /// [`UpdateError`]: what can be told before anything is done.
    pub async fn begin_rollout(
        &self,
        request: RolloutRequest,
        user: &str,
    ) -> Result<Task, UpdateError> {
        self.require_peers()?;
        let working = self.begin_work()?;
        self.look().await?;
        self.require_no_rollout().await?;
        if let Some(url) = &request.url {
            require_url(url)?;
        } else {
            let (_, path) = self.bundle()?;
            self.check(&path, request.force).await?;
        }
        drop(working);
        let (updates, user_of_all) = (self.clone(), user.to_owned());
        let task = self.tasks.start(
            TaskKind::UpdateCluster,
            TaskSubject::nodes(),
            user,
            |context| async move {
                let rollout = Rollout {
                    leader: updates.node.clone(),
                    task: context.id(),
                    user: user_of_all,
                    request,
                    bundle: None,
                    done: Vec::new(),
                    current: None,
                };
                let created = updates.rollouts().create(ID, &rollout).await;
                match created.map_err(UpdateError::from)? {
                    Outcome::Committed(_) => updates.lead(&context).await,
                    // Somebody else was quicker.
                    Outcome::Conflict => {
                        updates.require_no_rollout().await?;
                        let why = "another one has just ended; say it again".to_owned();
                        Err(Failure::Failed(why))
                    }
                }
            },
        );
        Ok(task.await?)
    }

    /// One whose task has ended was left by a node that is gone.
    async fn require_no_rollout(&self) -> Result<(), UpdateError> {
        let Some(rollout) = self.rollouts().get(ID).await? else {
            return Ok(());
        };
        let task = self.tasks.get(rollout.value.task).await?;
        if task.is_some_and(|task| task.state == TaskState::Running) {
            return Err(UpdateError::RolloutRuns(rollout.value.leader));
        }
        Ok(self.rollouts().delete(ID).await?)
    }

    /// Goes on with the rollout that an agent of this node before us led.
    pub(super) async fn resume_rollout(&self) {
        if self.peers.is_none() {
            return;
        }
        while !self.store.settled(MAJORITY_PATIENCE).await {}
        match led_by(&self.node, &self.store).await {
            Ok(Some(task)) => {
                let updates = self.clone();
                self.tasks.resume(task, |context| async move {
                    context.log("the agent has ended meanwhile, and goes on");
                    updates.lead(&context).await
                });
            }
            Ok(None) => {}
            Err(error) => tracing::error!("cannot go on with the cluster's update: {error}"),
        }
    }

    /// Has node after node updated. Nothing of it is left then.
    async fn lead(&self, context: &TaskContext) -> Result<Value, Failure> {
        let led = self.lead_all(context).await;
        if let Err(error) = self.rollouts().delete(ID).await {
            context.log(&format!("the rollout's end cannot be recorded: {error}"));
        }
        self.shelf().clear();
        led
    }

    async fn rollout(&self) -> Result<Rollout, Failure> {
        loop {
            match self.rollouts().get(ID).await {
                Ok(Some(rollout)) => return Ok(rollout.value),
                Ok(None) => return Err(Failure::Failed("its record is gone".to_owned())),
                Err(StoreError::NoMajority) => {
                    self.store.settled(MAJORITY_PATIENCE).await;
                }
                Err(error) => return Err(UpdateError::from(error).into()),
            }
        }
    }

    async fn note(&self, change: impl Fn(&mut Rollout) + Send + Sync) -> Result<(), Failure> {
        loop {
            match self.rollouts().update(ID, &change).await {
                Ok(_) => return Ok(()),
                Err(StoreError::NoMajority) => {
                    self.store.settled(MAJORITY_PATIENCE).await;
                }
                Err(error) => return Err(UpdateError::from(error).into()),
            }
        }
    }

    async fn lead_all(&self, context: &TaskContext) -> Result<Value, Failure> {
        let bundle = self.take_for_all(context).await?;
        loop {
            let rollout = self.rollout().await?;
            let nodes = self.names().await?;
            let step = if let Some(step) = rollout.current {
                step
            } else {
                let Some(node) = next(&nodes, &self.node, &rollout.done) else {
                    let done = rollout.done;
                    return Ok(json!({ "version": bundle.version, "nodes": done }));
                };
                context.check()?;
                self.require_ready(&nodes, &node, context).await?;
                let step = Step { node, task: None };
                let new = step.clone();
                self.note(move |rollout| rollout.current = Some(new.clone()))
                    .await?;
                step
            };
            let (done, total) = (rollout.done.len(), nodes.len().max(1));
            let text = format!("node {}, {} of {total}", step.node, done + 1);
            context.progress((done * 100 / total) as u8, &text);
            let node = step.node.clone();
            if let Err(error) = self.take_turn(step, &rollout.request, context).await {
                let left = total.saturating_sub(done + 1);
                return Err(Failure::Failed(format!(
                    "node {node}: {error}; {done} nodes run {}, and {left} were not touched",
                    bundle.version
                )));
            }
            context.log(&format!("node {node} runs version {}", bundle.version));
            self.note(move |rollout| {
                rollout.current = None;
                rollout.done.retain(|done| *done != node);
                rollout.done.push(node.clone());
            })
            .await?;
        }
    }

    async fn take_for_all(&self, context: &TaskContext) -> Result<Bundle, Failure> {
        let rollout = self.rollout().await?;
        if let Some(bundle) = rollout.bundle {
            return Ok(bundle);
        }
        let bundle = match &rollout.request.url {
            Some(url) => {
                let _working = self.begin_work()?;
                self.fetch(url, context).await?
            }
            None => self.shelf().bundle()?,
        };
        self.check(&self.shelf().path(), rollout.request.force)
            .await?;
        let new = bundle.clone();
        self.note(move |rollout| rollout.bundle = Some(new.clone()))
            .await?;
        Ok(bundle)
    }

    async fn names(&self) -> Result<Vec<String>, Failure> {
        let all = self.require_peers()?.all().await;
        let all = all.map_err(UpdateError::from)?;
        Ok(all.into_iter().map(|record| record.name).collect())
    }

    /// All others are there, so that one may go without the majority going with it.
    async fn require_ready(
        &self,
        nodes: &[String],
        node: &str,
        context: &TaskContext,
    ) -> Result<(), Failure> {
        if nodes.len() < 3 {
            let count = nodes.len();
            context.log(&format!(
                "the cluster has {count} nodes: nothing can be changed in it while one restarts"
            ));
        }
        let end = Instant::now() + READY_PATIENCE;
        let peers = self.require_peers()?;
        loop {
            let mut away = None;
            for other in nodes.iter().filter(|other| *other != node) {
                if !peers.is_alive(other).await.map_err(UpdateError::from)? {
                    away = Some(other.clone());
                }
            }
            match away {
                None => return Ok(()),
                Some(away) if Instant::now() > end => return Err(UpdateError::Unready(away).into()),
                Some(_) => tokio::time::sleep(POLL).await,
            }
            context.check()?;
        }
    }

    /// Has the node update itself, unless it does already, and waits for the end of that.
    async fn take_turn(
        &self,
        step: Step,
        request: &RolloutRequest,
        context: &TaskContext,
    ) -> Result<(), Failure> {
        let id = if let Some(id) = step.task {
            id
        } else {
            let id = self.begin_turn(&step.node, request).await?;
            context.log(&format!("node {} updates itself: task {id}", step.node));
            id
        };
        let task = self.end_of_turn(&step.node, id).await?;
        match task.state {
            TaskState::Done => Ok(()),
            _ => Err(Failure::Failed(task.error.unwrap_or_default())),
        }
    }

    async fn begin_turn(&self, node: &str, request: &RolloutRequest) -> Result<Uuid, Failure> {
        let order = UpdateRequest {
            url: None,
            from: Some(self.node.clone()),
            force: request.force,
            stop_guests: false,
        };
        let begun = if node == self.node {
            let user = self.rollout().await?.user;
            self.begin(order, &user).await.map(|task| task.id)
        } else {
            self.ask(node, &order).await.map_err(UpdateError::from)
        };
        match begun {
            Ok(id) => Ok(id),
            // An agent of ours before us had asked it.
            Err(error) => match self.rollout().await?.current {
                Some(Step { task: Some(id), .. }) => Ok(id),
                _ => Err(error.into()),
            },
        }
    }

    async fn ask(&self, node: &str, order: &UpdateRequest) -> Result<Uuid, PeerError> {
        let peers = self.peers.as_ref();
        let peers = peers.ok_or_else(|| PeerError::Unknown(node.to_owned()))?;
        let path = format!("/nodes/{node}/update");
        let request = peers.request(node, Method::POST, &path).await?;
        let bytes = peers.bytes(node, request.json(order)).await?;
        let accepted: Accepted =
            serde_json::from_slice(&bytes).map_err(|error| PeerError::Answer {
                node: node.to_owned(),
                reason: error.to_string(),
            })?;
        Ok(accepted.task.id)
    }

    /// Notes that this node's turn has begun, if the cluster is being updated and it is.
    pub(super) async fn note_turn(&self, id: Uuid) {
        let rollouts = self.rollouts();
        let noted = rollouts.update(ID, |rollout| {
            let current = rollout.current.as_mut();
            if let Some(step) = current.filter(|step| step.node == self.node) {
                step.task = Some(id);
            }
        });
        if let Err(error) = noted.await {
            tracing::warn!("the cluster's update does not learn of task {id}: {error}");
        }
    }

    /// The node's task, when it has ended. The node restarts meanwhile, and that has an end too.
    async fn end_of_turn(&self, node: &str, id: Uuid) -> Result<Task, Failure> {
        let mut heard = Instant::now();
        loop {
            match self.tasks.get(id).await {
                Ok(Some(task)) if task.state != TaskState::Running => return Ok(task),
                Ok(Some(_)) => {}
                Ok(None) => return Err(Failure::Failed(format!("its task {id} is gone"))),
                Err(StoreError::NoMajority) => heard = Instant::now(),
                Err(error) => return Err(Failure::Failed(chain(&error))),
            }
            if self.require_peers()?.is_alive(node).await.unwrap_or(true) {
                heard = Instant::now();
            } else if heard.elapsed() > RETURN_PATIENCE {
                let minutes = RETURN_PATIENCE.as_secs() / 60;
                let why = format!("it has not come back for {minutes} minutes");
                return Err(Failure::Failed(why));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_by_name_and_the_leader_s_is_the_last() {
        let nodes = ["node2", "node1", "node3"].map(str::to_owned);
        let mut done = Vec::new();
        while let Some(node) = next(&nodes, "node1", &done) {
            done.push(node);
        }
        assert_eq!(done, ["node2", "node3", "node1"]);
    }
}
