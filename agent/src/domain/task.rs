//! A task: everything that lasts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Guest;
use crate::store::Record;

/// A task. Its id begins with its time, so ids sort by age.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Its id.
    pub id: Uuid,
    /// What is done.
    pub kind: TaskKind,
    /// To what: a guest's or a node's name.
    pub subject: String,
    /// The guest, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Uuid>,
    /// The node that does it.
    pub node: String,
    /// Who asked for it.
    pub user: String,
    /// How it is doing.
    pub state: TaskState,
    /// How far it is, if it can tell.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// When it was begun, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// When it ended, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub ended_unix_ms: Option<u64>,
    /// Why it failed or was cancelled: one sentence.
    #[serde(default)]
    pub error: Option<String>,
    /// What came of it.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
}

impl Record for Task {
    const KIND: &'static str = "tasks";
    const SCHEMA: u32 = 1;
}

impl Task {
    /// Ends it. Nothing happens if it has ended.
    pub fn end(&mut self, state: TaskState, error: Option<String>, now_unix_ms: u64) {
        if self.state == TaskState::Running {
            self.state = state;
            self.error = error;
            self.ended_unix_ms = Some(now_unix_ms);
        }
    }
}

/// What a task does something to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSubject {
    /// A guest's or a node's name.
    pub name: String,
    /// The guest, if it is one.
    pub guest: Option<Uuid>,
}

impl TaskSubject {
    /// A node.
    pub fn node(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            guest: None,
        }
    }

    /// All nodes of the cluster.
    pub fn nodes() -> Self {
        Self::node("nodes")
    }
}

impl From<&Guest> for TaskSubject {
    fn from(guest: &Guest) -> Self {
        Self {
            name: guest.name.to_string(),
            guest: Some(guest.uuid),
        }
    }
}

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Makes a guest and its disks.
    CreateGuest,
    /// Copies a guest and its disks.
    CloneGuest,
    /// Starts a guest.
    StartGuest,
    /// Stops a guest.
    StopGuest,
    /// Removes a guest and its disks.
    DeleteGuest,
    /// Moves a guest's disk to another pool.
    MoveDisk,
    /// Makes a guest's disk larger.
    ResizeDisk,
    /// Sends a guest's disk to who asked for it.
    ExportDisk,
    /// Moves a guest to another node.
    MigrateGuest,
    /// Moves all guests of a node to others.
    DrainNode,
    /// Brings them back.
    UndrainNode,
    /// Writes another version to a node, and restarts it.
    UpdateNode,
    /// Does so with all nodes of the cluster, one after the other.
    UpdateCluster,
}

impl TaskKind {
    /// Whether a node may do it when it cannot reach the rest of its cluster.
    pub fn works_alone(self) -> bool {
        matches!(self, Self::StartGuest | Self::StopGuest)
    }
}

impl std::fmt::Display for TaskKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::CreateGuest => "create guest",
            Self::CloneGuest => "clone guest",
            Self::StartGuest => "start guest",
            Self::StopGuest => "stop guest",
            Self::DeleteGuest => "delete guest",
            Self::MoveDisk => "move disk",
            Self::ResizeDisk => "resize disk",
            Self::ExportDisk => "export disk",
            Self::MigrateGuest => "migrate guest",
            Self::DrainNode => "drain node",
            Self::UndrainNode => "undrain node",
            Self::UpdateNode => "update node",
            Self::UpdateCluster => "update the cluster's",
        })
    }
}

/// How a task is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It has not ended.
    Running,
    /// It did what it was to do.
    Done,
    /// It did not, and says why.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl std::fmt::Display for TaskState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

/// How far a task is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// 0 to 100.
    pub percent: u8,
    /// What it is doing.
    pub text: String,
}
