//! Pools: list, create, show, delete.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::extract::{Body, Path, Query};
use super::permit::{Admin, Viewer};
use super::{Api, ApiError, Data, ErrorBody, Listing};
use crate::cluster::NodeStatus;
use crate::domain::{Guest, GuestName, PoolName, PoolRecord, PoolSource, PoolSpec};
use crate::guests::GuestError;
use crate::storage::{PoolStatus, VolumeFile};
use crate::store::Collection;

/// A pool, and how it does on each node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolView {
    /// Its name.
    pub name: PoolName,
    /// Where it is.
    #[serde(flatten)]
    pub source: PoolSource,
    /// How it does on each node that has been heard of.
    pub nodes: Vec<PoolOnNode>,
}

/// A pool on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolOnNode {
    /// The node.
    pub node: String,
    /// How it does there.
    #[serde(flatten)]
    pub status: PoolStatus,
    /// What the disks in it may grow to that guests have, in MiB.
    pub promised_mib: u64,
}

impl Api {
    /// What each node has said of its pools; of this one what it sees itself.
    async fn pools_on_nodes(&self) -> Result<Vec<PoolOnNode>, ApiError> {
        let mut nodes = vec![(self.node.clone(), self.pools.statuses())];
        if self.peers().is_some() {
            let statuses = Collection::<NodeStatus>::new(self.store.clone());
            for (node, status) in statuses.all_with_ids().await? {
                if node != self.node {
                    nodes.push((node, status.value.pools));
                }
            }
        }
        nodes.sort_by(|a, b| a.0.cmp(&b.0));
        let guests = self.all_guests().await?;
        let each = nodes.into_iter().flat_map(|(node, pools)| {
            let guests = &guests;
            let on_node = move |status: PoolStatus| PoolOnNode {
                promised_mib: promised_mib(&status, &node, guests),
                node: node.clone(),
                status,
            };
            pools.into_iter().map(on_node)
        });
        Ok(each.collect())
    }

    async fn all_guests(&self) -> Result<Vec<Guest>, ApiError> {
        let (guests, _) = self.guests.list(None, usize::MAX).await?;
        Ok(guests.into_iter().map(|stored| stored.value).collect())
    }

    async fn pool_views(&self) -> Result<Vec<PoolView>, ApiError> {
        let on_nodes = self.pools_on_nodes().await?;
        let mut records: Vec<PoolRecord> = vec![self.pools.local().record().clone()];
        records.extend(self.pools.records().await?);
        let views = records.into_iter().map(|record| PoolView {
            nodes: on_nodes
                .iter()
                .filter(|one| one.status.name == record.name)
                .cloned()
                .collect(),
            name: record.name,
            source: record.source,
        });
        Ok(views.collect())
    }

    async fn pool_view(&self, name: &PoolName) -> Result<PoolView, ApiError> {
        // A pool that has just been made is opened by this.
        self.pools.find(name).await?;
        let views = self.pool_views().await?;
        let found = views.into_iter().find(|view| view.name == *name);
        found.ok_or_else(|| crate::storage::StorageError::NoPool(name.clone()).into())
    }
}

/// Of one that is not shared each node has its own.
fn promised_mib(status: &PoolStatus, node: &str, guests: &[Guest]) -> u64 {
    let guests = guests.iter();
    let here = guests.filter(|guest| status.shared || guest.node == node);
    let disks = here.flat_map(|guest| &guest.disks);
    let disks = disks.filter(|disk| disk.volume.pool == status.name);
    disks.map(|disk| disk.size_mib).sum()
}

/// All pools.
#[utoipa::path(get, path = "/api/v1/pools", tag = "pools",
    responses((status = 200, body = Listing<PoolView>)))]
pub async fn list_pools(State(api): State<Api>, _: Viewer) -> Result<Listing<PoolView>, ApiError> {
    Ok(Listing {
        data: api.pool_views().await?,
        next: None,
    })
}

/// Makes a pool, of storage that the node which answers has.
#[utoipa::path(post, path = "/api/v1/pools", tag = "pools", request_body = PoolSpec,
    responses((status = 201, body = Data<PoolView>), (status = 409, body = ErrorBody)))]
pub async fn create_pool(
    State(api): State<Api>,
    _: Admin,
    Body(spec): Body<PoolSpec>,
) -> Result<Response, ApiError> {
    api.pools.create(&spec).await?;
    let data = api.pool_view(&spec.name).await?;
    Ok((StatusCode::CREATED, Data { data }).into_response())
}

/// One pool.
#[utoipa::path(get, path = "/api/v1/pools/{pool}", tag = "pools",
    params(("pool" = String, Path)),
    responses((status = 200, body = Data<PoolView>), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub async fn show_pool(
    State(api): State<Api>,
    _: Viewer,
    Path(name): Path<String>,
) -> Result<Data<PoolView>, ApiError> {
    let data = api.pool_view(&PoolName::try_from(name)?).await?;
    Ok(Data { data })
}

/// A disk in a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// The guest that it was made for.
    pub guest: Uuid,
    /// That guest's name; absent: there is no such guest any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<GuestName>,
    /// The node that has the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What the guest calls the disk; absent: it does not count as one of the guest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Size that the guest sees, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
    /// Name of its file.
    pub file: String,
    /// Size of the file, in bytes.
    pub file_bytes: u64,
    /// What it takes of the pool, in bytes.
    pub allocated_bytes: u64,
}

impl VolumeView {
    fn new(pool: &PoolName, volume: VolumeFile, guests: &[Guest]) -> Self {
        let guest = guests.iter().find(|guest| guest.uuid == volume.guest);
        let mut disks = guest.into_iter().flat_map(|guest| &guest.disks);
        let disk = disks
            .find(|disk| disk.volume.pool == *pool && disk.volume.file.as_str() == volume.file);
        Self {
            guest: volume.guest,
            name: guest.map(|guest| guest.name.clone()),
            node: guest.map(|guest| guest.node.clone()),
            disk: disk.map(|disk| disk.id.clone()),
            size_mib: disk.map(|disk| disk.size_mib),
            file: volume.file,
            file_bytes: volume.bytes,
            allocated_bytes: volume.allocated_bytes,
        }
    }
}

/// The disks in a pool, as the node that answers has it.
#[utoipa::path(get, path = "/api/v1/pools/{pool}/volumes", tag = "pools",
    params(("pool" = String, Path)),
    responses((status = 200, body = Listing<VolumeView>), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub async fn list_volumes(
    State(api): State<Api>,
    _: Viewer,
    Path(name): Path<String>,
) -> Result<Listing<VolumeView>, ApiError> {
    let name = PoolName::try_from(name)?;
    let volumes = api.pools.get(&name).await?.list_volumes().await?;
    let guests = api.all_guests().await?;
    let views = volumes.into_iter();
    Ok(Listing {
        data: views
            .map(|volume| VolumeView::new(&name, volume, &guests))
            .collect(),
        next: None,
    })
}

/// How to delete.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// Give up the disks and images in it.
    #[serde(default)]
    force: bool,
}

/// Forgets a pool. Its files stay where they are.
#[utoipa::path(delete, path = "/api/v1/pools/{pool}", tag = "pools",
    params(("pool" = String, Path), DeleteQuery),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub async fn delete_pool(
    State(api): State<Api>,
    _: Admin,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<StatusCode, ApiError> {
    let name = PoolName::try_from(name)?;
    match api.guests.delete_pool(&name, query.force).await {
        // Here it is what the path leads to.
        Err(GuestError::Storage(error)) => Err(error.into()),
        deleted => {
            deleted?;
            Ok(StatusCode::NO_CONTENT)
        }
    }
}
