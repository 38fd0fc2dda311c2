//! A guest's group of processes: what the host accounts and limits as one.
//!
//! Where systemd is process 1 each guest is a transient scope ([`Scopes`](super::systemd::Scopes));
//! elsewhere one that is limited gets a control group of its own
//! ([`Cgroups`](super::cgroup::Cgroups)). The VMM is started by the agent in both, with the
//! descriptors, the session and the note by which the next agent finds it; it is then put into its
//! group. A scope is the transient unit that systemd makes of processes which somebody else has
//! started, as libvirt and podman use it: one way to spawn and to adopt, with and without systemd.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;
use uuid::Uuid;

use super::cgroup::Cgroups;
use super::systemd::{Scopes, is_booted};
use crate::domain::CpuLimits;

/// A guest's process, and what it may take.
#[derive(Clone, Copy, Debug)]
pub struct Contained<'a> {
    /// The guest.
    pub uuid: Uuid,
    /// Its name, for people.
    pub name: &'a str,
    /// Its VMM.
    pub pid: u32,
    /// What it may take.
    pub limits: CpuLimits,
}

/// Why a process is not in its group, or not limited.
#[derive(Debug, Error)]
pub enum ContainmentError {
    /// systemd, or the way to it.
    #[error("systemd does not {action}")]
    Systemd {
        /// What was asked of it.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<zbus::Error>,
    },
    /// The unit was not started.
    #[error("systemd says {result:?} of {unit}")]
    Job {
        /// The unit.
        unit: String,
        /// `failed`, `timeout`, …
        result: String,
    },
    /// Nobody answers in time.
    #[error("systemd does not answer")]
    Silent,
    /// The kernel's interface.
    #[error("cannot write {path}")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no cgroup for processors.
    #[error("this node has no systemd, and no control groups for processors")]
    NoController,
}

/// Keeps each guest's process in a group of its own.
#[async_trait]
pub trait Containment: Send + Sync {
    /// Puts the process into its guest's group, if it is not there yet, and limits that. May be
    /// called as often as limits change, and again by the next agent.
    ///
    /// # Errors
    /// [`ContainmentError`]; the process runs on as it did.
    async fn contain(&self, guest: &Contained<'_>) -> Result<(), ContainmentError>;

    /// Removes what is left of the group of a guest whose process has ended.
    async fn release(&self, uuid: Uuid);
}

/// What this host offers.
pub fn containment() -> Arc<dyn Containment> {
    if is_booted() {
        Arc::new(Scopes::of_host())
    } else {
        Arc::new(Cgroups::of_host())
    }
}
