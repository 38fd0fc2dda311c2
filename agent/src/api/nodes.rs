//! Nodes: what they are and how they are doing.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use futures_util::future::join_all;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Path, Query};
use super::permit::{Admin, Operator, Viewer};
use super::{Accepted, Api, ApiError, Data, ErrorBody, ErrorCode, Listing};
use crate::clock::now_unix_ms;
use crate::cluster::{NodeRecord, NodeStatus, node_status};
use crate::metrics::NodeUsage;
use crate::network::NetworkStatus;
use crate::peer::{PeerError, Peers};
use crate::storage::PoolStatus;
use crate::store::Collection;
use crate::update::{LastUpdate, Slots};

/// How long a node may take to tell its time.
const CLOCK_DEADLINE: Duration = Duration::from_secs(1);

/// How a node is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeHealth {
    /// Its agent has its lease.
    Ready,
    /// Its agent has not been heard of for 20 seconds. Its guests may run.
    Unreachable,
    /// Nobody can tell: the cluster has lost its majority.
    Unknown,
}

impl std::fmt::Display for NodeHealth {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Ready => "ready",
            Self::Unreachable => "unreachable",
            Self::Unknown => "unknown",
        })
    }
}

/// A node. What one that is not ready has said last is gone: its figures are 0 then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// How it is doing.
    pub health: NodeHealth,
    /// Where its API is, in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// It votes and runs no guests.
    pub witness: bool,
    /// It takes no guests for a while.
    #[serde(default)]
    pub drained: bool,
    /// How far its clock is ahead of that of the node that answers, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
    /// Version of Pindah that it runs.
    pub version: String,
    /// Its two systems, if it was installed from the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<Slots>,
    /// How its last update ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_update: Option<LastUpdate>,
    /// Its processors.
    pub cpus: usize,
    /// Its memory, in MiB.
    pub memory_mib: u64,
    /// What could be had of it without swapping, in MiB.
    pub memory_available_mib: u64,
    /// What running guests have of it, in MiB.
    pub memory_guests_mib: u64,
    /// Guests that are defined on it.
    pub guests: usize,
    /// Guests that have a process.
    pub guests_running: usize,
    /// Whether it can run guests: `/dev/kvm` is there.
    pub kvm: bool,
    /// Its pools.
    pub pools: Vec<PoolStatus>,
    /// How the networks do on it.
    #[serde(default)]
    pub networks: Vec<NetworkStatus>,
    /// What it takes.
    #[serde(default)]
    pub usage: NodeUsage,
}

impl NodeView {
    fn new(name: String, health: NodeHealth, status: Option<NodeStatus>) -> Self {
        let status = status.unwrap_or(NodeStatus {
            time_unix_ms: 0,
            version: String::new(),
            cpus: 0,
            memory_mib: 0,
            memory_available_mib: 0,
            memory_guests_mib: 0,
            memory_reserved_mib: 0,
            guests_running: 0,
            kvm: false,
            pools: Vec::new(),
            networks: Vec::new(),
            usage: NodeUsage::default(),
            guests_usage: BTreeMap::new(),
            slots: None,
            last_update: None,
        });
        Self {
            name,
            health,
            address: None,
            witness: false,
            drained: false,
            clock_ahead_ms: None,
            version: status.version,
            slots: status.slots,
            last_update: status.last_update,
            cpus: status.cpus,
            memory_mib: status.memory_mib,
            memory_available_mib: status.memory_available_mib,
            memory_guests_mib: status.memory_guests_mib,
            guests: 0,
            guests_running: status.guests_running,
            kvm: status.kvm,
            pools: status.pools,
            networks: status.networks,
            usage: status.usage,
        }
    }
}

async fn guests_by_node(api: &Api) -> Result<HashMap<String, usize>, ApiError> {
    let (guests, _) = api.guests.list(None, usize::MAX).await?;
    let mut count = HashMap::new();
    for stored in guests {
        *count.entry(stored.value.node).or_default() += 1;
    }
    Ok(count)
}

async fn all_nodes(api: &Api) -> Result<Vec<NodeView>, ApiError> {
    let guests = guests_by_node(api).await?;
    let ours = node_status(&api.guests, &api.pools, &api.updates).await?;
    let mut nodes = match api.peers() {
        None => vec![NodeView::new(
            api.node.clone(),
            NodeHealth::Ready,
            Some(ours),
        )],
        Some(peers) => {
            let records = peers.all().await?;
            let views = records.into_iter().map(|record| {
                let ours = Some(&ours).filter(|_| record.name == api.node).cloned();
                view(api, peers, record, ours)
            });
            let views: Result<Vec<_>, _> = join_all(views).await.into_iter().collect();
            views?
        }
    };
    let drained = api.guests.drained_nodes().await?;
    for node in &mut nodes {
        node.drained = drained.contains(&node.name);
        node.guests = guests.get(&node.name).copied().unwrap_or_default();
    }
    Ok(nodes)
}

/// `ours`: it is this node.
async fn view(
    api: &Api,
    peers: &Peers,
    record: NodeRecord,
    ours: Option<NodeStatus>,
) -> Result<NodeView, ApiError> {
    let name = record.name.clone();
    let majority = api.store.settled(Duration::ZERO).await;
    let (health, status, ahead) = if let Some(ours) = ours {
        (NodeHealth::Ready, Some(ours), Some(0))
    } else if !majority {
        (NodeHealth::Unknown, None, None)
    } else if peers.is_alive(&name).await? {
        let statuses = Collection::<NodeStatus>::new(api.store.clone());
        let status = statuses.get(&name).await?.map(|stored| stored.value);
        (
            NodeHealth::Ready,
            status,
            clock_ahead_ms(peers, &name).await,
        )
    } else {
        (NodeHealth::Unreachable, None, None)
    };
    Ok(NodeView {
        address: Some(record.api().to_string()),
        witness: record.witness,
        clock_ahead_ms: ahead,
        ..NodeView::new(name, health, status)
    })
}

/// As exact as half the way there and back. `None`: it does not answer in time.
async fn clock_ahead_ms(peers: &Peers, node: &str) -> Option<i64> {
    let ask = async {
        let request = peers
            .request(node, Method::GET, "/cluster/clock")
            .await
            .ok()?;
        let (before, sent) = (now_unix_ms(), Instant::now());
        let answer = request.send().await.ok()?;
        let half = sent.elapsed().as_millis() as u64 / 2;
        let theirs: Data<u64> = answer.json().await.ok()?;
        Some(theirs.data as i64 - (before + half) as i64)
    };
    tokio::time::timeout(CLOCK_DEADLINE, ask)
        .await
        .ok()
        .flatten()
}

/// All nodes.
#[utoipa::path(get, path = "/api/v1/nodes", tag = "nodes",
    responses((status = 200, body = Listing<NodeView>)))]
pub async fn list_nodes(State(api): State<Api>, _: Viewer) -> Result<Listing<NodeView>, ApiError> {
    Ok(Listing {
        data: all_nodes(&api).await?,
        next: None,
    })
}

/// One node.
#[utoipa::path(get, path = "/api/v1/nodes/{node}", tag = "nodes",
    params(("node" = String, Path)),
    responses((status = 200, body = Data<NodeView>), (status = 404, body = ErrorBody)))]
pub async fn show_node(
    State(api): State<Api>,
    _: Viewer,
    Path(name): Path<String>,
) -> Result<Data<NodeView>, ApiError> {
    let nodes = all_nodes(&api).await?;
    let found = nodes.into_iter().find(|node| node.name == name);
    let data = found.ok_or_else(|| {
        let name: String = name.chars().take(64).collect();
        let message = format!("there is no node {name}; `pindah node list` shows what there is");
        ApiError::new(ErrorCode::NotFound, message)
    })?;
    Ok(Data { data })
}

/// Moves all guests of a node to others; it takes none until that is ended.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/drain", tag = "nodes",
    params(("node" = String, Path)),
    responses((status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn drain_node(
    State(api): State<Api>,
    Operator(principal): Operator,
    Path(name): Path<String>,
) -> Result<Accepted, ApiError> {
    require_this(&api, &name)?;
    let task = api.guests.drain(&principal.user).await?;
    Ok(Accepted { task })
}

/// Lets a node take guests again, and brings back those that left it for its drain.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/undrain", tag = "nodes",
    params(("node" = String, Path)),
    responses((status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn undrain_node(
    State(api): State<Api>,
    Operator(principal): Operator,
    Path(name): Path<String>,
) -> Result<Accepted, ApiError> {
    require_this(&api, &name)?;
    let task = api.guests.undrain(&principal.user).await?;
    Ok(Accepted { task })
}

/// What is another node's was passed on: a name that came here is this node's, or nobody's.
pub(super) fn require_this(api: &Api, name: &str) -> Result<(), ApiError> {
    if name == api.node {
        return Ok(());
    }
    Err(PeerError::Unknown(name.chars().take(64).collect()).into())
}

/// How to remove.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RemoveQuery {
    /// It never comes back; the guests on its own disks are given up.
    #[serde(default)]
    force: bool,
}

/// Takes a dead node out of the cluster.
#[utoipa::path(delete, path = "/api/v1/nodes/{node}", tag = "nodes",
    params(("node" = String, Path), RemoveQuery),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn remove_node(
    State(api): State<Api>,
    _: Admin,
    Path(name): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Result<StatusCode, ApiError> {
    api.site.remove_node(&name, query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}
