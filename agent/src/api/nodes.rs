//! Nodes: what they are and how they are doing.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Viewer;
use super::extract::Path;
use super::{Api, ApiError, Data, ErrorBody, ErrorCode, Listing};
use crate::guests::HostMemory;
use crate::metrics::NodeUsage;
use crate::storage::PoolStatus;

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Version of its agent.
    pub version: String,
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
    /// What it takes.
    #[serde(default)]
    pub usage: NodeUsage,
}

async fn this_node(api: &Api) -> Result<NodeView, ApiError> {
    let (guests, _) = api.guests.list(None, usize::MAX).await?;
    let running = guests.iter().filter(|stored| {
        let status = api.guests.status(stored.value.uuid);
        status.state.has_process()
    });
    let memory = HostMemory::read();
    let pool = api.pool.clone();
    let pool = super::images::on_pool(move || pool.status()).await?;
    Ok(NodeView {
        name: api.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: memory.total_mib,
        memory_available_mib: memory.available_mib,
        memory_guests_mib: api.guests.used_memory_mib().await?,
        guests_running: running.count(),
        guests: guests.len(),
        kvm: std::path::Path::new("/dev/kvm").exists(),
        pools: vec![pool],
        usage: api.guests.metrics().node(),
    })
}

/// All nodes.
#[utoipa::path(get, path = "/api/v1/nodes", tag = "nodes",
    responses((status = 200, body = Listing<NodeView>)))]
pub async fn list_nodes(State(api): State<Api>, _: Viewer) -> Result<Listing<NodeView>, ApiError> {
    Ok(Listing {
        data: vec![this_node(&api).await?],
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
    if name != api.node {
        let name: String = name.chars().take(64).collect();
        let message = format!("there is no node {name}; `pindah node list` shows what there is");
        return Err(ApiError::new(ErrorCode::NotFound, message));
    }
    let data = this_node(&api).await?;
    Ok(Data { data })
}
