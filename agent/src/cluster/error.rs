//! Why a cluster does not become what it was asked to.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::EtcdError;
use crate::network::NetworkError;
use crate::peer::PeerError;
use crate::security::AuthorityError;
use crate::store::StoreError;

/// Why a cluster does not become what it was asked to.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// It is in one.
    #[error("this node is in a cluster already; `pindah cluster show` shows it")]
    AlreadyIn,
    /// It is in none.
    #[error("this node is in no cluster; `pindah cluster init` makes one, `join` enters one")]
    NotIn,
    /// Another such change is under way, or tasks are.
    #[error("{0}")]
    Busy(&'static str),
    /// A value.
    #[error("{field} {value:?}: {must}")]
    Value {
        /// Which.
        field: &'static str,
        /// What it says.
        value: String,
        /// What it must be.
        must: &'static str,
    },
    /// Guests stand in the way.
    #[error("this node has {0} guests; {1}")]
    HasGuests(usize, &'static str),
    /// The join token is not one, or no longer.
    #[error("{0}")]
    Token(&'static str),
    /// The node that is to let us in does not.
    #[error("{address} does not let this node in: {reason}")]
    Refused {
        /// Who.
        address: String,
        /// What it says.
        reason: String,
    },
    /// We were let in, and did not come in.
    #[error("node {node} could not enter and is what it was; the same command tries it again")]
    NotEntered {
        /// We.
        node: String,
        /// Why not.
        #[source]
        source: Box<ClusterError>,
    },
    /// We are in, and do not vote yet.
    #[error(
        "node {node} has come in and does not vote yet; it will as soon as it can \
         (`pindah cluster show`)"
    )]
    Late {
        /// We.
        node: String,
        /// Why not yet.
        #[source]
        source: Box<ClusterError>,
    },
    /// There is a node of this name.
    #[error("there is a node {0} already; set node = in its pindahd.toml to another name")]
    NameTaken(String),
    /// There is no such node.
    #[error("there is no node {0}; `pindah node list` shows what there is")]
    NoNode(String),
    /// The node is not what it must be for that.
    #[error("{0}")]
    NodeState(String),
    /// The new member does not come up.
    #[error("the new etcd member is not part of the cluster after {0} s; {1}")]
    NotReady(u64, String),
    /// etcd refuses a change of its members.
    #[error("etcd refuses: {0}")]
    Members(String),
    /// A backup that is none.
    #[error("this is no backup of a cluster: {0}")]
    Backup(String),
    /// A file.
    #[error("cannot use {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// etcd.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Certificates.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Another node.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Our addresses.
    #[error(transparent)]
    Network(#[from] NetworkError),
}
