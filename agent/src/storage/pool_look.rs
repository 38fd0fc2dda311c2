//! How a pool is doing: seen by looking at it again and again, for as long as that takes.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinHandle};

use super::directory::Space;
use super::gate::Gate;
use super::pool::{Inner, Place};
use super::{PoolState, StorageError};
use crate::causes::chain;

/// How often it is looked at, and how long that may take before it is taken for stalled.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
const LOOK_DEADLINE: Duration = Duration::from_secs(4);
/// The same where a look is two programs that are run.
const GROUP_LOOK_PERIOD: Duration = Duration::from_secs(10);
const GROUP_LOOK_DEADLINE: Duration = Duration::from_secs(8);
const WAITS: &str = "what uses it waits, and goes on when it is back";

/// Looks at the pool from now on, until it is dropped.
pub(super) async fn keep_looking(pool: Weak<Inner>) {
    while let Some(inner) = pool.upgrade() {
        inner.look().await;
        inner.looked.send_replace(true);
        let period = match inner.place {
            Place::Files { .. } => LOOK_PERIOD,
            Place::Volumes(_) => GROUP_LOOK_PERIOD,
        };
        drop(inner);
        tokio::time::sleep(period).await;
    }
}

impl Inner {
    /// Returns when the pool has answered, however long that takes.
    async fn look(&self) {
        if let Err(error) = self.reach().await {
            self.set(&Err(error));
            return;
        }
        let began = Instant::now();
        let deadline = match self.place {
            Place::Files { .. } => LOOK_DEADLINE,
            Place::Volumes(_) => GROUP_LOOK_DEADLINE,
        };
        let mut look = match &self.place {
            Place::Files { directory, .. } => {
                let directory = Arc::clone(directory);
                Gate::begin(move || {
                    directory.verify()?;
                    directory.space()
                })
            }
            Place::Volumes(group) => {
                let group = Arc::clone(group);
                tokio::spawn(async move { group.look().await })
            }
        };
        let looked = tokio::time::timeout(deadline, &mut look).await;
        let looked = if let Ok(looked) = looked {
            looked
        } else {
            self.stall(began);
            self.until_it_answers(&mut look).await
        };
        self.gate.set_stalled(None);
        self.set(&looked.unwrap_or(Err(StorageError::Cancelled)));
    }

    /// Mounts it, or logs in, if that is ours to do.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub(super) async fn reach(&self) -> Result<(), StorageError> {
        match &self.place {
            Place::Files { mount: None, .. } => Ok(()),
            Place::Files {
                mount: Some(mount), ..
            } => {
                let mounted = mount.ensure().await;
                mounted.map_err(|reason| StorageError::Unavailable {
                    pool: self.record.name.clone(),
                    reason,
                })
            }
            Place::Volumes(group) => group.connect().await.map(|_| ()),
        }
    }

    /// Why it does not answer; `None`: that cannot be told.
    async fn diagnose(&self) -> Option<String> {
        match &self.place {
            Place::Files { mount, .. } => Some(mount.as_ref()?.diagnose().await),
            Place::Volumes(group) => Some(group.target.diagnose().await),
        }
    }

    /// Says from time to time what is wrong.
    async fn until_it_answers<T>(&self, look: &mut JoinHandle<T>) -> Result<T, JoinError> {
        loop {
            let Some(reason) = self.diagnose().await else {
                return look.await;
            };
            self.status.send_modify(|status| {
                status.reason = Some(format!("{reason}; {WAITS}"));
            });
            if let Ok(looked) = tokio::time::timeout(LOOK_PERIOD, &mut *look).await {
                return looked;
            }
        }
    }

    /// What to know of it though it is ready.
    fn note(&self) -> Option<String> {
        match &self.place {
            Place::Files { .. } => None,
            Place::Volumes(group) => group.note(),
        }
    }

    fn stall(&self, since: Instant) {
        let name = &self.record.name;
        tracing::error!("pool {name} does not answer; what uses it waits until it is back");
        self.gate.set_stalled(Some(since));
        self.looked.send_replace(true);
        self.status.send_modify(|status| {
            status.state = PoolState::Stalled;
            status.reason = Some(format!("it does not answer; {WAITS}"));
        });
    }

    fn set(&self, looked: &Result<Space, StorageError>) {
        let name = &self.record.name;
        let before = self.status.borrow().clone();
        let (state, reason) = match looked {
            Ok(_) => (PoolState::Ready, self.note()),
            Err(StorageError::Unavailable { reason, .. }) => {
                (PoolState::Unavailable, Some(reason.clone()))
            }
            Err(error) => (PoolState::Unavailable, Some(chain(error))),
        };
        if before.state != state || before.reason != reason {
            match (state, &reason) {
                (_, None) => tracing::info!("pool {name} is ready"),
                (PoolState::Ready, Some(note)) => tracing::warn!("pool {name} is ready: {note}"),
                (_, Some(reason)) => tracing::error!("pool {name}: {reason}"),
            }
        }
        self.status.send_modify(|status| {
            status.state = state;
            status.reason = reason;
            if let Ok(space) = looked {
                status.total_mib = space.total >> 20;
                status.used_mib = space.used >> 20;
                status.free_mib = space.free >> 20;
            }
        });
    }
}
