//! A guest's runtime side: what it does now, and who may change that.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, watch};
use utoipa::ToSchema;

use crate::clock::now_unix_ms;

/// What a guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuestState {
    /// It is off.
    #[default]
    Stopped,
    /// Its process starts.
    Starting,
    /// It runs.
    Running,
    /// It stands still and can go on.
    Paused,
    /// It is on its way here, and still another node's.
    Arriving,
    /// It was asked to shut down.
    Stopping,
    /// Its process has ended and should not have.
    Crashed,
    /// Its node has not been heard of.
    Unknown,
}

impl GuestState {
    /// Whether there is a process.
    pub fn has_process(self) -> bool {
        !matches!(self, Self::Stopped | Self::Crashed)
    }
}

impl std::fmt::Display for GuestState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Arriving => "arriving",
            Self::Stopping => "stopping",
            Self::Crashed => "crashed",
            Self::Unknown => "unknown",
        })
    }
}

/// How a guest is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it does.
    pub state: GuestState,
    /// Why, if there is something to say.
    pub reason: Option<String>,
    /// Since when, in milliseconds since the Unix epoch; 0: since before the agent started.
    pub since_unix_ms: u64,
    /// Its process.
    pub pid: Option<u32>,
    /// How often it has crashed since somebody started it.
    pub crashes: u32,
    /// Why its CPU limits are not applied, while it runs and they are not.
    #[serde(default)]
    pub limits_error: Option<String>,
}

/// A guest's runtime side.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// Written by who changes it, read by those who only read its disks.
    operation: Arc<tokio::sync::RwLock<()>>,
    /// Taken after `operation`, if both are.
    intent: tokio::sync::Mutex<()>,
    /// Of those who apply limits the one who read the record last does it last. Taken alone.
    limits: tokio::sync::Mutex<()>,
    status: watch::Sender<Status>,
}

/// The right to change what a guest does.
pub(super) type Operation = OwnedRwLockWriteGuard<()>;
/// The right to read its disks: nobody changes what it does meanwhile.
pub(super) type Reading = OwnedRwLockReadGuard<()>;

impl Machine {
    pub(super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The right to change it; `None`: somebody has it.
    pub(super) fn try_operate(&self) -> Option<Operation> {
        Arc::clone(&self.operation).try_write_owned().ok()
    }

    /// The right to read its disks; `None`: somebody changes it.
    pub(super) fn try_read(&self) -> Option<Reading> {
        Arc::clone(&self.operation).try_read_owned().ok()
    }

    /// The right to change it, when it is free.
    pub(super) async fn operate(&self) -> Operation {
        Arc::clone(&self.operation).write_owned().await
    }

    /// The right to say what is wanted of it: in its record, and in what is remembered for later.
    pub(super) async fn intent(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.intent.lock().await
    }

    /// The right to apply the limits of its record.
    pub(super) async fn limits(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.limits.lock().await
    }

    pub(super) fn set_limits_error(&self, error: Option<String>) {
        self.status
            .send_modify(|status| status.limits_error = error);
    }

    /// Returns whether that is something new.
    pub(super) fn set(&self, state: GuestState, reason: Option<&str>) -> bool {
        self.status.send_if_modified(|status| {
            let same = status.state == state && status.reason.as_deref() == reason;
            if same {
                return false;
            }
            status.state = state;
            status.reason = reason.map(str::to_owned);
            status.since_unix_ms = now_unix_ms();
            if !state.has_process() {
                status.pid = None;
                status.limits_error = None;
            }
            true
        })
    }

    pub(super) fn set_pid(&self, pid: u32) {
        self.status.send_modify(|status| status.pid = Some(pid));
    }

    pub(super) fn set_crashes(&self, crashes: u32) {
        self.status.send_modify(|status| status.crashes = crashes);
    }
}
