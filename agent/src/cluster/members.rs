//! etcd's members: who votes, who is to.

use std::time::Duration;

use etcd_client::{Client, Error, MemberAddOptions};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use utoipa::ToSchema;

use super::ClusterError;
use crate::store::StoreError;

/// How long a change of members may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// How long a member that is to vote may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// How long a cluster whose members change may take to be healthy, and how often it is looked at.
const HEALTH_DEADLINE: Duration = Duration::from_secs(30);
const HEALTH_POLL: Duration = Duration::from_millis(500);

/// One of etcd's members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberView {
    /// The node; empty: it has never started.
    pub node: String,
    /// Where others find it.
    pub url: String,
    /// Whether it counts for the majority. One that has joined does so once it knows all.
    pub votes: bool,
}

impl MemberView {
    fn is_unstarted_at(&self, url: &str) -> bool {
        self.node.is_empty() && self.url == url
    }
}

/// The members, as this node's etcd sees them.
#[derive(Clone)]
pub struct Members {
    client: Client,
}

/// A call's answer within the deadline.
async fn within<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, ClusterError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Error::GRpcStatus(status))) => {
            Err(ClusterError::Members(status.message().to_owned()))
        }
        Ok(Err(error)) => Err(ClusterError::Members(error.to_string())),
        Err(_) => Err(StoreError::NoMajority.into()),
    }
}

/// etcd changes its members only when all others have been connected for five seconds.
const UNHEALTHY: &str = "unhealthy cluster";
/// There is none, or no more. A new member's id is a hash of its place and the second: in the second
/// of the one whose place it takes, it is taken for that.
const REMOVED: &str = "member not found";

/// What etcd makes of a call, when that is none of `not_yet` any more.
async fn when_taken<T, F: Future<Output = Result<T, Error>>>(
    not_yet: &[&str],
    call: impl Fn() -> F,
) -> Result<T, ClusterError> {
    let end = tokio::time::Instant::now() + HEALTH_DEADLINE;
    loop {
        match within(call()).await {
            Err(ClusterError::Members(reason))
                if not_yet.iter().any(|text| reason.contains(text))
                    && tokio::time::Instant::now() < end =>
            {
                tokio::time::sleep(HEALTH_POLL).await;
            }
            answer => return answer,
        }
    }
}

/// Whether a member listens for the others.
async fn is_there(url: &str) -> bool {
    let address = url.trim_start_matches("https://").to_owned();
    let connected = TcpStream::connect(address);
    matches!(
        tokio::time::timeout(CONNECT_DEADLINE, connected).await,
        Ok(Ok(_))
    )
}

impl Members {
    /// Asks by this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    async fn raw(&self) -> Result<Vec<(u64, MemberView)>, ClusterError> {
        let mut client = self.client.cluster_client();
        let list = within(client.member_list()).await?;
        let members = list.members().iter().map(|member| {
            let view = MemberView {
                node: member.name().to_owned(),
                url: member.peer_urls().first().cloned().unwrap_or_default(),
                votes: !member.is_learner(),
            };
            (member.id(), view)
        });
        Ok(members.collect())
    }

    /// All of them.
    ///
    /// # Errors
    /// [`ClusterError::Members`], [`ClusterError::Store`].
    pub async fn list(&self) -> Result<Vec<MemberView>, ClusterError> {
        let members = self.raw().await?;
        Ok(members.into_iter().map(|(_, view)| view).collect())
    }

    /// Adds one that does not vote yet, so that the majority does not depend on it before it has
    /// started and knows all.
    ///
    /// # Errors
    /// [`ClusterError::Members`], [`ClusterError::Store`].
    pub async fn add_learner(&self, url: &str) -> Result<(), ClusterError> {
        let added = when_taken(&[UNHEALTHY, REMOVED], || {
            let mut client = self.client.cluster_client();
            let options = MemberAddOptions::new().with_is_learner();
            let url = url.to_owned();
            async move { client.member_add([url], Some(options)).await }
        });
        added.await?;
        Ok(())
    }

    /// Lets those vote that know all and are there: the vote of one that has gone meanwhile would be
    /// missing at once. Returns whether all vote now.
    ///
    /// # Errors
    /// [`ClusterError::Members`], [`ClusterError::Store`].
    pub async fn promote_learners(&self) -> Result<bool, ClusterError> {
        let mut all = true;
        for (id, view) in self.raw().await? {
            if view.votes {
                continue;
            }
            if view.node.is_empty() || !is_there(&view.url).await {
                all = false;
                continue;
            }
            let mut client = self.client.cluster_client();
            match within(client.member_promote(id)).await {
                Ok(_) => tracing::info!("node {} votes from now on", view.node),
                Err(error) => {
                    tracing::debug!("node {} does not vote yet: {error}", view.node);
                    all = false;
                }
            }
        }
        Ok(all)
    }

    /// Removes the node's member, if there is one: by its name, or by where it is if it has never
    /// started.
    ///
    /// # Errors
    /// [`ClusterError::Members`], [`ClusterError::Store`].
    pub async fn remove(&self, node: &str, url: &str) -> Result<(), ClusterError> {
        self.remove_those(|view| view.node == node || view.is_unstarted_at(url))
            .await
    }

    /// Removes the member at `url` if it has never started.
    ///
    /// # Errors
    /// [`ClusterError::Members`], [`ClusterError::Store`].
    pub async fn remove_unstarted(&self, url: &str) -> Result<(), ClusterError> {
        self.remove_those(|view| view.is_unstarted_at(url)).await
    }

    async fn remove_those(&self, which: impl Fn(&MemberView) -> bool) -> Result<(), ClusterError> {
        for (id, view) in self.raw().await? {
            if which(&view) {
                let removed = when_taken(&[UNHEALTHY], || {
                    let mut client = self.client.cluster_client();
                    async move { client.member_remove(id).await }
                });
                match removed.await {
                    // Somebody else was quicker.
                    Err(ClusterError::Members(reason)) if reason.contains(REMOVED) => {}
                    removed => drop(removed?),
                }
            }
        }
        Ok(())
    }

    /// Tells where the node's member is, if that is something new.
    ///
    /// # Errors
    /// [`ClusterError::Members`], [`ClusterError::Store`].
    pub async fn set_url(&self, node: &str, url: &str) -> Result<(), ClusterError> {
        for (id, view) in self.raw().await? {
            if view.node == node && view.url != url {
                tracing::info!("etcd's member of node {node} is at {url} now");
                let mut client = self.client.cluster_client();
                within(client.member_update(id, [url.to_owned()])).await?;
            }
        }
        Ok(())
    }
}
