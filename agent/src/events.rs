//! What happens on this node, for who listens now. Nothing is kept.

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::clock::now_unix_ms;
use crate::domain::{MoveProgress, Progress, TaskKind, TaskState};
use crate::guests::GuestState;
use crate::metrics::{GuestUsage, NodeUsage};
use crate::tasks::LogLine;

/// Events that a listener may lag behind.
const LAG: usize = 1024;

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When, in milliseconds since the Unix epoch.
    pub time_unix_ms: u64,
    /// The node that it happened on.
    pub node: String,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventKind {
    /// A guest does something else now.
    GuestState {
        /// The guest.
        uuid: Uuid,
        /// Its name.
        name: String,
        /// What it does.
        state: GuestState,
        /// Why, if there is something to say.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A guest's record was created or changed.
    GuestChanged {
        /// The guest.
        uuid: Uuid,
        /// Its name.
        name: String,
    },
    /// A guest is no more.
    GuestDeleted {
        /// The guest.
        uuid: Uuid,
        /// Its name.
        name: String,
    },
    /// A task began, or ended.
    Task {
        /// The task.
        id: Uuid,
        /// What it does.
        kind: TaskKind,
        /// To what.
        subject: String,
        /// The guest, if it is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guest: Option<Uuid>,
        /// How it is doing.
        state: TaskState,
    },
    /// A task is further than it was. A detail.
    TaskProgress {
        /// The task.
        id: Uuid,
        /// The guest, if it is about one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guest: Option<Uuid>,
        /// How far.
        progress: Progress,
    },
    /// A guest is further on its way to another node, every second. A detail.
    Move {
        /// The task that moves it.
        id: Uuid,
        /// The guest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guest: Option<Uuid>,
        /// How far.
        progress: MoveProgress,
    },
    /// A task has a new line in its log. A detail.
    TaskLog {
        /// The task.
        id: Uuid,
        /// The guest, if it is about one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guest: Option<Uuid>,
        /// The line.
        line: LogLine,
    },
    /// What a guest takes, every 10 seconds. A detail.
    GuestUsage {
        /// The guest.
        uuid: Uuid,
        /// What it takes.
        usage: GuestUsage,
    },
    /// What the node takes, every 10 seconds. A detail.
    NodeUsage {
        /// What it takes.
        usage: NodeUsage,
    },
    /// Something was made, changed or removed that has no event of its own.
    Changed {
        /// What.
        what: Changed,
    },
}

/// What has no event of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Changed {
    /// A pool.
    Pools,
    /// A network.
    Networks,
    /// An image.
    Images,
    /// A node's place in the cluster.
    Nodes,
    /// A user or token, or what it may do.
    Accounts,
}

impl EventKind {
    /// The guest that it is about, if it is about one.
    pub fn guest(&self) -> Option<Uuid> {
        match self {
            Self::GuestState { uuid, .. }
            | Self::GuestChanged { uuid, .. }
            | Self::GuestDeleted { uuid, .. }
            | Self::GuestUsage { uuid, .. } => Some(*uuid),
            Self::Task { guest, .. }
            | Self::TaskProgress { guest, .. }
            | Self::Move { guest, .. }
            | Self::TaskLog { guest, .. } => *guest,
            Self::NodeUsage { .. } | Self::Changed { .. } => None,
        }
    }

    /// Whether it is told only to who asks for details: what comes again and again.
    pub fn is_detail(&self) -> bool {
        matches!(
            self,
            Self::TaskProgress { .. }
                | Self::Move { .. }
                | Self::TaskLog { .. }
                | Self::GuestUsage { .. }
                | Self::NodeUsage { .. }
        )
    }
}

impl Changed {
    /// What a request to this path has changed that was carried out.
    pub fn by(path: &str) -> Option<Self> {
        match path.strip_prefix("/api/v1/")?.split('/').next()? {
            "pools" => Some(Self::Pools),
            "networks" => Some(Self::Networks),
            "images" => Some(Self::Images),
            "nodes" | "cluster" => Some(Self::Nodes),
            "users" | "tokens" => Some(Self::Accounts),
            _ => None,
        }
    }
}

/// Where events are told and heard.
#[derive(Clone, Debug)]
pub struct Events {
    node: String,
    sender: broadcast::Sender<Event>,
}

impl Events {
    /// Those of this node.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            sender: broadcast::channel(LAG).0,
        }
    }

    /// Tells who listens.
    pub fn tell(&self, kind: EventKind) {
        let event = Event {
            time_unix_ms: now_unix_ms(),
            node: self.node.clone(),
            kind,
        };
        // Nobody need listen.
        let _ = self.sender.send(event);
    }

    /// All from now on.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}
