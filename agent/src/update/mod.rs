//! Updates: a node has two systems, and runs one while the other is written.
//!
//! ```text
//!  take ─► check ─► write the other slot ─► guests leave ─► restart ═╦═► healthy: good, guests back
//!                                                                    ║
//!                       anything fails: nothing has changed          ╚═► not: restart ═► as before
//! ```
//!
//! What is to be done is written down ([`Pending`]) before the node restarts, and the agent that
//! comes up goes on with the same task: it says that its slot works, or goes back. A slot that says
//! nothing is started once: after the next restart, which `pindah-trial.timer` sees to, the boot
//! loader takes the other one. The guests' records and the state partition have no part in it.
//!
//! A [`Rollout`](rollout) does that with all nodes of a cluster, one after the other.

mod error;
mod fetch;
mod node;
mod pending;
mod rauc;
mod rollout;
mod shelf;
mod trial;
mod version;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;
use utoipa::ToSchema;
use uuid::Uuid;

pub use error::UpdateError;
pub use rauc::Slots;
pub use rollout::{Rollout, RolloutRequest};
pub use shelf::{Bundle, Incoming};
pub use version::installed_version;

use crate::guests::Guests;
use crate::peer::Peers;
use crate::store::{Collection, Store, StoreError};
use crate::tasks::Tasks;
use pending::Pending;
use shelf::{Arrived, Shelf};

/// Where a node has what belongs to its updates, in its state directory.
const DIRECTORY: &str = "update";

/// How a node is updated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateRequest {
    /// Where the node fetches the bundle, by HTTP or HTTPS; absent: the bundle that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2048)]
    pub url: Option<String>,
    /// The node of the cluster that has the bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 63)]
    pub from: Option<String>,
    /// Take a bundle that is older than what the node runs.
    pub force: bool,
    /// Guests shut down with the node and start again after it, in the place of moving to other
    /// nodes and back.
    pub stop_guests: bool,
}

/// How a node's last update ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastUpdate {
    /// The version that the node ran before.
    pub from_version: String,
    /// The version that it was to run.
    pub version: String,
    /// When, in milliseconds since the Unix epoch.
    pub ended_unix_ms: u64,
    /// Why the node went back to what it ran before; absent: it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fell_back: Option<String>,
}

/// What updates work on.
pub struct UpdateParts {
    /// The node's name.
    pub node: String,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Its records.
    pub store: Arc<dyn Store>,
    /// Its tasks.
    pub tasks: Tasks,
    /// Its guests.
    pub guests: Guests,
    /// The other nodes, in a cluster.
    pub peers: Option<Peers>,
    /// It votes and runs no guests.
    pub witness: bool,
}

/// The updates of this node, and of its cluster if it leads them.
#[derive(Clone)]
pub struct Updates {
    inner: Arc<Inner>,
}

struct Inner {
    parts: UpdateParts,
    shelf: Shelf,
    /// What the node's slots were when they were looked at last.
    slots: Mutex<Option<Slots>>,
    /// How its last update ended.
    last: Mutex<Option<LastUpdate>>,
    /// Held by whoever changes the bundle or a slot.
    working: Arc<tokio::sync::Mutex<()>>,
}

impl std::ops::Deref for Updates {
    type Target = UpdateParts;

    fn deref(&self) -> &UpdateParts {
        &self.inner.parts
    }
}

impl Updates {
    /// Of these parts. [`Updates::resume`] is to run when the node serves.
    ///
    /// # Errors
    /// [`UpdateError::Io`].
    pub fn open(parts: UpdateParts) -> Result<Self, UpdateError> {
        let directory = parts.state_dir.join(DIRECTORY);
        std::fs::create_dir_all(&directory).map_err(UpdateError::io("create", &directory))?;
        let last = pending::last(&directory);
        Ok(Self {
            inner: Arc::new(Inner {
                shelf: Shelf::new(&parts.node, directory),
                parts,
                slots: Mutex::default(),
                last: Mutex::new(last),
                working: Arc::default(),
            }),
        })
    }

    fn shelf(&self) -> &Shelf {
        &self.inner.shelf
    }

    fn directory(&self) -> PathBuf {
        self.state_dir.join(DIRECTORY)
    }

    fn rollouts(&self) -> Collection<Rollout> {
        Collection::new(Arc::clone(&self.store))
    }

    /// The node's slots, if it is an appliance.
    pub fn slots(&self) -> Option<Slots> {
        lock(&self.inner.slots).clone()
    }

    /// How the node's last update ended.
    pub fn last(&self) -> Option<LastUpdate> {
        lock(&self.inner.last).clone()
    }

    /// Looks at the node's slots. What bundles for them are for.
    async fn look(&self) -> Result<(Slots, String), UpdateError> {
        let looked = rauc::slots(&self.node).await;
        let slots = looked.as_ref().ok().map(|(slots, _)| slots.clone());
        *lock(&self.inner.slots) = slots;
        looked
    }

    fn begin_work(&self) -> Result<OwnedMutexGuard<()>, UpdateError> {
        let working = Arc::clone(&self.inner.working).try_lock_owned();
        working.map_err(|_| UpdateError::Busy(self.node.clone()))
    }

    async fn wait_for_work(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.inner.working).lock_owned().await
    }

    /// Begins to receive a bundle of so many bytes, 0 if that is not known. The one that the node has
    /// goes.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn receive(&self, bytes: u64) -> Result<Reception, UpdateError> {
        let working = self.begin_work()?;
        self.look().await?;
        Ok(Reception {
            updates: self.clone(),
            incoming: self.shelf().receive(bytes).await?,
            _working: working,
        })
    }

    /// The bundle that the node has, and its file.
    ///
    /// # Errors
    /// [`UpdateError::NoBundle`].
    pub fn bundle(&self) -> Result<(Bundle, PathBuf), UpdateError> {
        Ok((self.shelf().bundle()?, self.shelf().path()))
    }

    /// Looks at what has come, and keeps it if it is a bundle for this node.
    async fn take_in(&self, arrived: Arrived) -> Result<Bundle, UpdateError> {
        let taken = async {
            let bundle = Bundle {
                version: self.check(arrived.path(), true).await?,
                bytes: arrived.bytes,
                sha256: arrived.sha256.clone(),
            };
            self.shelf().keep(&arrived, &bundle)?;
            Ok(bundle)
        };
        let taken = taken.await;
        if taken.is_err() {
            self.shelf().clear();
        }
        taken
    }

    /// Refuses what is no bundle for this node. `force`: it may be older than what runs. Its version.
    async fn check(&self, path: &Path, force: bool) -> Result<String, UpdateError> {
        let (_, wanted) = self.look().await?;
        let description = rauc::describe(&self.node, path).await?;
        if description.compatible != wanted {
            return Err(UpdateError::Incompatible {
                node: self.node.clone(),
                found: description.compatible,
                wanted,
            });
        }
        let found = description.version.unwrap_or_default();
        if version::is_older(&found, installed_version())? && !force {
            return Err(UpdateError::Older {
                node: self.node.clone(),
                found,
                installed: installed_version().to_owned(),
            });
        }
        Ok(found)
    }
}

/// Held for moments.
fn lock<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bundle that comes from who asks for the update.
pub struct Reception {
    updates: Updates,
    incoming: Incoming,
    _working: OwnedMutexGuard<()>,
}

impl Reception {
    /// The next piece.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), UpdateError> {
        self.incoming.write(piece).await
    }

    /// Looks at the whole, and keeps it.
    ///
    /// # Errors
    /// [`UpdateError`]; nothing is kept.
    pub async fn finish(self) -> Result<Bundle, UpdateError> {
        let arrived = self.incoming.finish().await?;
        self.updates.take_in(arrived).await
    }
}

/// Tasks of this node that go on although the agent that began them has ended.
///
/// # Errors
/// [`StoreError`].
pub async fn unfinished(
    node: &str,
    state_dir: &Path,
    store: &Arc<dyn Store>,
) -> Result<Vec<Uuid>, StoreError> {
    let pending = Pending::load(&state_dir.join(DIRECTORY));
    let rollout = rollout::led_by(node, store).await?;
    Ok(pending
        .map(|pending| pending.task)
        .into_iter()
        .chain(rollout)
        .collect())
}
