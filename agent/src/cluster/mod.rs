//! Several agents that act as one.
//!
//! ```text
//!  pindah cluster init          token, join                     leave, node remove
//!  alone ─────────────► cluster of one ─────────► of three, five ─────────────► …
//!  SQLite               etcd, one member          a member each
//! ```
//!
//! Every node runs an etcd of its own and talks to that one only. Who is in the cluster is written
//! in the store ([`NodeRecord`]); that this node is, in its state directory ([`Membership`]). A node
//! that joins or leaves begins anew inside the same process ([`Site::restarted`]): its guests run
//! on, and are adopted as after any restart.

mod address;
mod admit;
mod backup;
mod balance;
mod cpu;
mod error;
mod etcd_process;
mod init;
mod introduction;
mod join;
mod leave;
mod member;
mod members;
mod membership;
mod presence;
mod records;
mod reporter;
mod token;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard, Notify};
use utoipa::ToSchema;
use uuid::Uuid;

pub use address::{InitRequest, current as current_address, own_names};
pub use balance::{Balance, SuggestedMove};
pub use cpu::{
    CpuView, NodeCpu, NodeCpuView, cpu_baseline, features_of_host, features_of_node, tell_features,
};
pub use error::ClusterError;
pub use etcd_process::{Beginning, EtcdConfig, EtcdError, EtcdProcess};
pub use join::{Admission, JoinAnswer, JoinRequest, settle_entry};
pub use member::{Member, etcd_config, ports};
pub use members::{MemberView, Members};
pub use membership::{Membership, Ports};
pub use presence::{LEASE, Presence};
pub use records::{GuestStatus, NodeAlive, NodeRecord, NodeStatus};
pub use reporter::{Reporter, node_status};
pub use token::JoinToken;

use crate::config::Config;
use crate::guests::Guests;
use crate::store::{Collection, SqliteStore, Store};
use crate::tasks::Tasks;

/// How long the answer to what restarts the node has to reach who asked.
const FAREWELL: Duration = Duration::from_millis(300);

/// What changes of the cluster work on.
pub struct SiteParts {
    /// The node's configuration; its name is the one that it has in the cluster.
    pub config: Config,
    /// The records.
    pub store: Arc<dyn Store>,
    /// The same, if the node is alone.
    pub sqlite: Option<SqliteStore>,
    /// The node's part in its cluster, if it is in one.
    pub member: Option<Member>,
    /// The node's guests.
    pub guests: Guests,
    /// The node's tasks.
    pub tasks: Tasks,
}

/// This node, alone or in a cluster.
#[derive(Clone)]
pub struct Site {
    inner: Arc<Inner>,
}

struct Inner {
    parts: SiteParts,
    changing: Mutex<()>,
    restart: Notify,
}

impl std::ops::Deref for Site {
    type Target = SiteParts;

    fn deref(&self) -> &SiteParts {
        &self.inner.parts
    }
}

/// A cluster, as one of its nodes sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterView {
    /// Its id.
    pub id: Uuid,
    /// The node that answers.
    pub node: String,
    /// Whether a majority of its members can be reached, so that something can be changed.
    pub majority: bool,
    /// Who votes; empty if that cannot be told.
    pub members: Vec<MemberView>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

impl Site {
    /// Of these parts.
    pub fn new(parts: SiteParts) -> Self {
        Self {
            inner: Arc::new(Inner {
                parts,
                changing: Mutex::default(),
                restart: Notify::new(),
            }),
        }
    }

    /// Ends when the node is to begin anew.
    pub async fn restarted(&self) {
        self.inner.restart.notified().await;
    }

    /// Soon, so that the answer gets out.
    fn restart(&self) {
        let site = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            site.inner.restart.notify_one();
        });
    }

    fn begin_change(&self) -> Result<MutexGuard<'_, ()>, ClusterError> {
        let busy = "another change of the cluster is under way on this node";
        self.inner
            .changing
            .try_lock()
            .map_err(|_| ClusterError::Busy(busy))
    }

    /// The node's part in its cluster.
    ///
    /// # Errors
    /// [`ClusterError::NotIn`].
    pub fn require_member(&self) -> Result<&Member, ClusterError> {
        self.member.as_ref().ok_or(ClusterError::NotIn)
    }

    fn nodes(&self) -> Collection<NodeRecord> {
        Collection::new(Arc::clone(&self.store))
    }

    fn require_idle(&self) -> Result<(), ClusterError> {
        if self.tasks.is_idle() {
            return Ok(());
        }
        let busy =
            "tasks run on this node; wait for their end (`pindah task list`), or cancel them";
        Err(ClusterError::Busy(busy))
    }

    fn private(&self) -> std::path::PathBuf {
        self.config.state_dir.join("private")
    }

    fn io(&self, source: std::io::Error) -> ClusterError {
        ClusterError::Io {
            path: self.config.state_dir.clone(),
            source,
        }
    }

    /// The cluster.
    ///
    /// # Errors
    /// [`ClusterError::NotIn`].
    pub async fn view(&self) -> Result<ClusterView, ClusterError> {
        let member = self.require_member()?;
        let majority = member.store.settled(Duration::ZERO).await;
        let members = if majority {
            member.members().list().await.unwrap_or_default()
        } else {
            Vec::new()
        };
        let mut warnings = warnings(majority, &members);
        if majority {
            warnings.extend(self.cpu_warnings().await);
        }
        Ok(ClusterView {
            id: member.membership.cluster,
            node: member.membership.node.clone(),
            majority,
            warnings,
            members,
        })
    }

    /// A token by which one node may join.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn join_token(&self, lifetime: Duration) -> Result<JoinToken, ClusterError> {
        let member = self.require_member()?;
        let authority = crate::security::Authority::open(&self.private())?;
        let address = member.membership.address;
        let address = std::net::SocketAddr::new(address, self.config.listen.port());
        let fingerprint = authority.fingerprint()?;
        JoinToken::create(&self.store, lifetime, fingerprint, address.to_string()).await
    }
}

fn warnings(majority: bool, members: &[MemberView]) -> Vec<String> {
    let mut warnings = Vec::new();
    let voters = members.iter().filter(|member| member.votes).count();
    if !majority {
        warnings.push(crate::store::StoreError::NoMajority.to_string());
    } else if voters == 2 {
        let text = "two nodes: neither can lose the other, for one alone is no majority; add a \
                    third, if only as witness";
        warnings.push(text.to_owned());
    } else if voters > 2 && voters.is_multiple_of(2) {
        warnings.push(format!(
            "{voters} nodes can lose no more of them than {}; add one, if only as witness",
            voters - 1
        ));
    }
    for member in members.iter().filter(|member| !member.votes) {
        let name = if member.node.is_empty() {
            &member.url
        } else {
            &member.node
        };
        warnings.push(format!("{name} does not vote yet"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_numbers_and_lost_majorities_are_warned_of() {
        let members = |count: usize| {
            let member = |number| MemberView {
                node: format!("node{number}"),
                url: String::new(),
                votes: true,
            };
            (0..count).map(member).collect::<Vec<_>>()
        };
        assert!(warnings(true, &members(1)).is_empty());
        assert!(warnings(true, &members(2))[0].starts_with("two nodes"));
        assert!(warnings(true, &members(3)).is_empty());
        assert!(warnings(true, &members(4))[0].contains("than 3"));
        assert!(warnings(false, &[])[0].contains("cannot be reached"));
    }
}
