//! Why a node, or the cluster, is not updated.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::guests::GuestError;
use crate::peer::PeerError;
use crate::store::StoreError;
use crate::tasks::Failure;

/// Why a node, or the cluster, is not updated.
#[derive(Debug, Error)]
pub enum UpdateError {
    /// It was not installed from the image.
    #[error(
        "node {0} was not installed from Pindah's image, so it has no second slot that an update \
         could be written to; update its programs in the way in which they were installed"
    )]
    NotAppliance(String),
    /// Another one runs.
    #[error("an update of node {0} is under way; `pindah task list` shows it")]
    Busy(String),
    /// None was uploaded.
    #[error("node {0} has no bundle; upload one with `pindah node update {0} FILE`")]
    NoBundle(String),
    /// It is not ours.
    #[error(
        "the bundle is refused: it was not signed by the key of the image that node {node} runs, \
         or was changed since ({reason})"
    )]
    Signature {
        /// The node.
        node: String,
        /// What RAUC says.
        reason: String,
    },
    /// It is none.
    #[error("the bundle is refused: it is damaged, or no bundle at all ({0})")]
    Damaged(String),
    /// It is for something else.
    #[error("the bundle is refused: it is for {found:?}, and node {node} is {wanted:?}")]
    Incompatible {
        /// The node.
        node: String,
        /// What the bundle is for.
        found: String,
        /// What the node is.
        wanted: String,
    },
    /// It goes back.
    #[error(
        "the bundle is refused: its version {found} is older than {installed}, which node {node} \
         runs; say --force to go back"
    )]
    Older {
        /// The node.
        node: String,
        /// The bundle's version.
        found: String,
        /// The node's.
        installed: String,
    },
    /// Versions are compared.
    #[error("the bundle is refused: its version {0:?} is none like 1.2.3")]
    Version(String),
    /// The state partition.
    #[error(
        "node {node} has no space for the bundle: it takes {bytes} bytes, and of {path} {free} can \
         be used"
    )]
    NoSpace {
        /// The node.
        node: String,
        /// What is needed.
        bytes: u64,
        /// What there is.
        free: u64,
        /// Where.
        path: PathBuf,
    },
    /// Guests would be switched off.
    #[error(
        "guests run on node {node}, and there is no other node to take them: {names}; stop them, \
         or say --stop-guests: they shut down with the node, and start again after it"
    )]
    GuestsRun {
        /// The node.
        node: String,
        /// Some of them.
        names: String,
    },
    /// A URL.
    #[error("cannot fetch {url}: {reason}")]
    Fetch {
        /// Which.
        url: String,
        /// Why.
        reason: String,
    },
    /// RAUC, or systemd.
    #[error("{program} refuses: {reason}")]
    Program {
        /// The program.
        program: &'static str,
        /// What it says.
        reason: String,
    },
    /// There are no others.
    #[error("node {0} is in no cluster; `pindah node update` updates it alone")]
    NotIn(String),
    /// Another one runs.
    #[error("an update of the cluster is under way, led by node {0}; `pindah task list` shows it")]
    RolloutRuns(String),
    /// It would cost the majority.
    #[error(
        "node {0} cannot be reached, and while another one restarts the cluster could lose its \
         majority: bring it back, or remove it"
    )]
    Unready(String),
    /// A file or directory.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The guests.
    #[error(transparent)]
    Guests(#[from] GuestError),
    /// Another node.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl UpdateError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

impl From<UpdateError> for Failure {
    fn from(error: UpdateError) -> Self {
        Self::of(&error)
    }
}
