//! The cluster's side of a join: a node is let in, at most one at a time.

use std::sync::Arc;
use std::time::Duration;

use super::join::{JoinAnswer, JoinRequest};
use super::{ClusterError, JoinToken, Member, MemberView, Members, NodeRecord, Ports, Site};
use crate::clock::now_unix_ms;
use crate::domain::is_label;
use crate::security::Authority;
use crate::store::{Collection, Outcome, Stored, Transaction, encode};

/// How long a new member is looked after by the node that let it in.
const CARE: Duration = Duration::from_secs(120);
/// How often.
const CARE_PERIOD: Duration = Duration::from_millis(300);

impl Site {
    /// Lets a node in.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn admit(&self, request: &JoinRequest) -> Result<JoinAnswer, ClusterError> {
        let member = self.require_member()?;
        let _change = self.begin_change()?;
        let record = check(request)?;
        let url = record.etcd_url().unwrap_or_default();
        let bearer = format!("{} at {url}", record.name);
        let token = (&request.token_id, &request.token_secret);
        JoinToken::redeem(&self.store, token.0, token.1, &bearer).await?;
        let members = member.members();
        self.require_first_in_line(&members, &record, &url).await?;
        self.insert(member, &record, request.again, &url).await?;
        let added = async {
            // One of this name that is not the one that enters now.
            members.remove(&record.name, &url).await?;
            members.add_learner(&url).await?;
            let list = members.list().await?;
            let known = list.iter().map(|one| {
                let name = if one.node.is_empty() {
                    &record.name
                } else {
                    &one.node
                };
                format!("{name}={}", one.url)
            });
            Ok::<_, ClusterError>(known.collect::<Vec<_>>().join(","))
        };
        let added = match added.await {
            Ok(added) => added,
            Err(error) => {
                self.nodes().delete(&record.name).await?;
                return Err(error);
            }
        };
        let (store, token) = (Arc::clone(&self.store), request.token_id.clone());
        tokio::spawn(async move {
            let care = async {
                while !members.promote_learners().await.unwrap_or(false) {
                    tokio::time::sleep(CARE_PERIOD).await;
                }
                // One that stays is good for nobody else, and goes with its time.
                let _ = JoinToken::forget(&store, &token).await;
            };
            // What is not done by then, every node's caretaker does.
            let _ = tokio::time::timeout(CARE, care).await;
        });
        tracing::info!("node {} joins from {}", record.name, record.address);
        let authority = Authority::open(&self.private())?;
        Ok(JoinAnswer {
            cluster: member.membership.cluster,
            authority: authority.pem().to_owned(),
            authority_key: authority.key_pem().to_owned(),
            members: added,
            node: member.membership.node.clone(),
        })
    }

    /// etcd takes one member at a time that does not vote yet.
    async fn require_first_in_line(
        &self,
        members: &Members,
        record: &NodeRecord,
        url: &str,
    ) -> Result<(), ClusterError> {
        let list = members.list().await?;
        let first = |one: &&MemberView| !one.votes && one.node != record.name && one.url != url;
        let Some(first) = list.iter().find(first) else {
            return Ok(());
        };
        let nodes = self.nodes().all().await?.into_iter();
        let mut nodes = nodes.map(|stored| stored.value);
        let node = nodes.find(|node| node.etcd_url().as_ref() == Some(&first.url));
        let name = node.map_or_else(|| first.url.clone(), |node| node.name);
        Err(ClusterError::NodeState(format!(
            "node {name} is on its way into the cluster and does not vote yet; wait for it, or take \
             it out (`pindah node remove {name} --force`)"
        )))
    }

    /// The node's record, if nobody has its name or place.
    async fn insert(
        &self,
        member: &Member,
        record: &NodeRecord,
        again: bool,
        url: &str,
    ) -> Result<(), ClusterError> {
        let key = Collection::<NodeRecord>::key(&record.name);
        let value = encode(&key, record)?;
        if again && !member.peers.is_alive(&record.name).await? {
            self.store
                .commit(Transaction::new().put(&key, value))
                .await?;
            return Ok(());
        }
        let mut before = None;
        for Stored {
            value: other,
            revision,
        } in self.nodes().all().await?
        {
            let is_there = other.etcd_url().as_deref() == Some(url);
            if other.name != record.name && is_there {
                let text = format!("node {} is at {} already", other.name, other.api());
                return Err(ClusterError::NodeState(text));
            }
            if other.name == record.name && is_there && other.entering {
                before = Some(revision);
            }
        }
        let list = member.members().list().await?;
        let has_started = list.iter().any(|one| one.node == record.name);
        let insert = match before.filter(|_| !has_started) {
            // It was let in before and did not come.
            Some(revision) => Transaction::new().if_unchanged(&key, revision),
            None => Transaction::new().if_absent(&key),
        };
        match self.store.commit(insert.put(&key, value)).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict => Err(ClusterError::NameTaken(record.name.clone())),
        }
    }
}

fn check(request: &JoinRequest) -> Result<NodeRecord, ClusterError> {
    let value = |field, value: String, must| Err(ClusterError::Value { field, value, must });
    if !is_label(&request.node) {
        let must = "must be 1 to 63 lower-case letters, digits and hyphens, from a letter on";
        return value("node", request.node.chars().take(64).collect(), must);
    }
    if Ports::from_api(request.port).is_none() {
        return value("port", request.port.to_string(), "must be 1 to 65532");
    }
    if request.address.is_unspecified() || request.address.is_multicast() {
        let must = "must be one by which nodes reach it";
        return value("address", request.address.to_string(), must);
    }
    Ok(NodeRecord {
        name: request.node.clone(),
        address: request.address,
        port: request.port,
        witness: request.witness,
        joined_unix_ms: now_unix_ms(),
        entering: true,
    })
}
