//! Why a guest does not do what it was asked for.

use thiserror::Error;

use super::GuestState;
use crate::domain::{Invalid, PlacementError, PoolName};
use crate::network::{NetworkError, NetworkRequestError};
use crate::peer::PeerError;
use crate::storage::StorageError;
use crate::store::StoreError;
use crate::supervisor::SpawnError;
use crate::vmm_client::VmmError;

/// Why a guest does not do what it was asked for.
#[derive(Debug, Error)]
pub enum GuestError {
    /// There is none.
    #[error("there is no guest {0}; `pindah guest list` shows what there is")]
    NotFound(String),
    /// It has no such disk.
    #[error("guest {guest} has no disk {disk}; `pindah guest show {guest}` shows what it has")]
    NoDisk {
        /// The guest.
        guest: String,
        /// The disk.
        disk: String,
    },
    /// An earlier move of a disk is not quite over.
    #[error(
        "disk {disk} of guest {guest} has a copy of an earlier move in pool {pool} still, which is \
         removed as soon as the pool answers; wait for that"
    )]
    Spare {
        /// The guest.
        guest: String,
        /// The disk.
        disk: String,
        /// Where the copy is.
        pool: PoolName,
    },
    /// It has no such interface.
    #[error("guest {name} has no interface {id}; `pindah guest interface list {name}` shows them")]
    NoInterface {
        /// The guest.
        name: String,
        /// The interface.
        id: String,
    },
    /// Another guest has the name.
    #[error("there is a guest {0} already; choose another name")]
    NameTaken(String),
    /// Another guest has the MAC address.
    #[error("a guest has the MAC address {0} already; choose another one")]
    MacTaken(String),
    /// Another operation changes it.
    #[error("guest {0} is busy with another operation; `pindah task list` shows it")]
    Busy(String),
    /// It does something in which that cannot be done.
    #[error("guest {name} is {state}; {hint}")]
    State {
        /// The guest.
        name: String,
        /// What it does.
        state: GuestState,
        /// What to do about it.
        hint: &'static str,
    },
    /// Its disks are not complete.
    #[error("guest {0} is still being created; wait for its task to end")]
    Incomplete(String),
    /// It is a template.
    #[error(
        "guest {0} is a template, which does not start; clone it, or make it a guest again with \
         `pindah guest template {0} --undo`"
    )]
    Template(String),
    /// Somebody else has changed it since it was read.
    #[error("guest {0} has changed since you read it; read it again, then edit")]
    Changed(String),
    /// A value.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Not enough memory.
    #[error(
        "guest {name} needs {needed_mib} MiB of memory, and of the node's {total_mib} MiB running \
         guests have {used_mib} MiB and {reserved_mib} MiB are reserved; stop one, or make it \
         smaller"
    )]
    NoMemory {
        /// The guest.
        name: String,
        /// What it needs.
        needed_mib: u64,
        /// What the node has.
        total_mib: u64,
        /// What running guests have.
        used_mib: u64,
        /// What is kept for the node.
        reserved_mib: u64,
    },
    /// The process ended at once.
    #[error("guest {name} does not start: {reason}")]
    Start {
        /// The guest.
        name: String,
        /// What the VMM said last.
        reason: String,
    },
    /// Another node may run it.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The node is in no cluster.
    #[error("node {0} is alone; a guest can move in a cluster (`pindah cluster init`)")]
    Alone(String),
    /// Something that it needs is only on its node.
    #[error("guest {name} cannot move: {what}; {hint}")]
    Immovable {
        /// The guest.
        name: String,
        /// What holds it.
        what: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A network that it needs does not work where it is to go.
    #[error("guest {name} needs network {network}, which does not work on node {node}: {problem}")]
    NoNetwork {
        /// The guest.
        name: String,
        /// The network.
        network: String,
        /// The node.
        node: String,
        /// Why.
        problem: String,
    },
    /// The processor where it is to go lacks something that it may see.
    #[error("guest {name} may see CPU features that node {node} lacks: {lacks}")]
    Cpu {
        /// The guest.
        name: String,
        /// The node.
        node: String,
        /// The features.
        lacks: String,
    },
    /// The node is to have no guests for a while.
    #[error("node {0} is drained and takes no guests; `pindah node undrain {0}` ends that")]
    Drained(String),
    /// It is not.
    #[error("node {0} is not drained")]
    Undrained(String),
    /// No node takes it.
    #[error("no node can take guest {name}: {refusals}")]
    NoDestination {
        /// The guest.
        name: String,
        /// What each said.
        refusals: String,
    },
    /// The destination's VMM cannot be reached.
    #[error("cannot connect to node {node} at {address}; the guest goes on here")]
    Unconnected {
        /// The node.
        node: String,
        /// Where its VMM listens.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A VMM that was to take a guest neither has it nor gives it up.
    #[error("guest {0} is on its way here, and its VMM does not say whether it has it")]
    Unsettled(uuid::Uuid),
    /// Another node.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The node runs no guests.
    #[error("node {0} is a witness and runs no guests; choose another node with --node")]
    Witness(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A pool.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A network that it names.
    #[error(transparent)]
    NetworkRequest(#[from] NetworkRequestError),
    /// The process.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The guest's VMM.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// A file of the guest's.
    #[error("cannot use {path}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The task was cancelled.
    #[error("it was cancelled")]
    Cancelled,
}

impl From<GuestError> for crate::tasks::Failure {
    fn from(error: GuestError) -> Self {
        match error {
            GuestError::Cancelled | GuestError::Storage(StorageError::Cancelled) => Self::Cancelled,
            error => Self::of(&error),
        }
    }
}
