//! What happens on this node, for who listens now. Nothing is kept.

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::clock::now_unix_ms;
use crate::domain::{TaskKind, TaskState};
use crate::guests::GuestState;

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
}

impl EventKind {
    /// The guest that it is about, if it is about one.
    pub fn guest(&self) -> Option<Uuid> {
        match self {
            Self::GuestState { uuid, .. }
            | Self::GuestChanged { uuid, .. }
            | Self::GuestDeleted { uuid, .. } => Some(*uuid),
            Self::Task { guest, .. } => *guest,
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
