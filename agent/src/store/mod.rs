//! Where intent is kept: keys with values, changed by compare-and-swap.
//!
//! The trait has etcd's semantics, so that one node runs on SQLite with nothing to set up and a
//! cluster on etcd with the same code above. Every commit has a [`Revision`], greater than all
//! before; a key carries the revision of its last change, and that is what a swap compares.

mod cluster;
mod etcd;
mod mirror;
mod records;
mod sqlite;

use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::mpsc;

pub use cluster::ClusterStore;
pub use etcd::{EtcdAccess, EtcdStore};
pub use records::{Collection, Record, Stored, decode, encode};
pub use sqlite::SqliteStore;

/// Largest value, in bytes: what etcd takes in one request, less some room for others.
pub const VALUE_MAX: usize = 1 << 20;

/// Number of a commit. It grows with each, not always by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// Number of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// Why the store does not do what it was asked for.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The engine fails: disk full, a broken file.
    #[error("the store does not work: {0}")]
    Engine(String),
    /// A cluster whose majority cannot be reached from here. A change that ends so may have been
    /// made, if the majority went away while it was under way.
    #[error(
        "most of the cluster's nodes cannot be reached, so nothing can be changed until they are \
         back; guests run on, and can be seen and stopped on their own node"
    )]
    NoMajority,
    /// A record that is not what this version writes or reads.
    #[error("the record {key} cannot be read: {reason}")]
    Record {
        /// Its key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A value larger than [`VALUE_MAX`].
    #[error("the record {key} is too large: {bytes} bytes, at most {VALUE_MAX}")]
    TooLarge {
        /// Its key.
        key: String,
        /// Its size.
        bytes: usize,
    },
    /// The lease has expired or was revoked.
    #[error("the lease {} is gone", .0.0)]
    LeaseGone(LeaseId),
    /// The changes after this revision are no longer known: list, then watch from there.
    #[error("changes since revision {} are no longer known", .0.0)]
    Compacted(Revision),
}

/// A key and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// What it holds.
    pub value: Vec<u8>,
    /// Its last change.
    pub revision: Revision,
}

/// Part of a listing, in order of the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// What was found.
    pub entries: Vec<Entry>,
    /// The store's revision when it was read: where a watch goes on.
    pub revision: Revision,
    /// Whether there is more after the last entry.
    pub more: bool,
}

/// What must hold for a transaction to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The key.
    pub key: String,
    /// Its last change; `None`: it does not exist.
    pub revision: Option<Revision>,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Create or replace.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
        /// The lease with which it goes, if any.
        lease: Option<LeaseId>,
    },
    /// Remove; nothing happens if it is not there.
    Delete {
        /// The key.
        key: String,
    },
}

/// Changes that are made all or not at all. Each key is written once at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// What is done then.
    pub writes: Vec<Write>,
}

impl Transaction {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if `key` does not exist.
    #[must_use]
    pub fn if_absent(mut self, key: impl Into<String>) -> Self {
        let key = key.into();
        self.conditions.push(Condition {
            key,
            revision: None,
        });
        self
    }

    /// Only if `key` was last changed at `revision`.
    #[must_use]
    pub fn if_unchanged(mut self, key: impl Into<String>, revision: Revision) -> Self {
        let (key, revision) = (key.into(), Some(revision));
        self.conditions.push(Condition { key, revision });
        self
    }

    /// Create or replace.
    #[must_use]
    pub fn put(self, key: impl Into<String>, value: Vec<u8>) -> Self {
        self.put_with(key, value, None)
    }

    /// Create or replace; the key goes when the lease does.
    #[must_use]
    pub fn put_leased(self, key: impl Into<String>, value: Vec<u8>, lease: LeaseId) -> Self {
        self.put_with(key, value, Some(lease))
    }

    fn put_with(mut self, key: impl Into<String>, value: Vec<u8>, lease: Option<LeaseId>) -> Self {
        let key = key.into();
        self.writes.push(Write::Put { key, value, lease });
        self
    }

    /// Remove.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out.
    Committed(Revision),
    /// A condition does not hold; nothing was changed.
    Conflict,
}

/// One key that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its new value; `None`: it is gone.
    pub value: Option<Vec<u8>>,
    /// The commit that did it.
    pub revision: Revision,
}

/// Changes as they happen.
#[derive(Debug)]
pub struct Watch {
    changes: mpsc::Receiver<Change>,
}

impl Watch {
    /// The next change, in order. `None`: the reader was too slow, or the store is gone; list and
    /// watch anew.
    pub async fn next(&mut self) -> Option<Change> {
        self.changes.recv().await
    }
}

/// A store. All methods may be called at any time, from any task.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// What `key` holds.
    ///
    /// # Errors
    /// [`StoreError::Engine`], [`StoreError::NoMajority`].
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// At most `limit` entries whose keys begin with `prefix`, after the key `after` if given.
    ///
    /// # Errors
    /// [`StoreError::Engine`], [`StoreError::NoMajority`].
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError>;

    /// Compare, then swap, in one step.
    ///
    /// # Errors
    /// [`StoreError::Engine`], [`StoreError::NoMajority`], [`StoreError::TooLarge`],
    /// [`StoreError::LeaseGone`].
    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError>;

    /// All changes after revision `after` to keys that begin with `prefix`: those that have
    /// happened, then those that happen.
    ///
    /// # Errors
    /// [`StoreError::Engine`], [`StoreError::Compacted`].
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;

    /// A lease that expires, with its keys, when it is not kept alive for `ttl`.
    ///
    /// # Errors
    /// [`StoreError::Engine`], [`StoreError::NoMajority`].
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Begins the lease's time anew.
    ///
    /// # Errors
    /// [`StoreError::Engine`], [`StoreError::LeaseGone`].
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease, with its keys. Nothing happens if it is gone already.
    ///
    /// # Errors
    /// [`StoreError::Engine`], [`StoreError::NoMajority`].
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Whether changes can be made, as soon as they can or when `patience` is over.
    async fn settled(&self, _patience: Duration) -> bool {
        true
    }
}

#[cfg(test)]
mod contract;
#[cfg(test)]
mod etcd_for_tests;
