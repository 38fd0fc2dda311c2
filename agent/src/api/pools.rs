//! Pools: list, create, show, delete.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::auth::{Admin, Viewer};
use super::extract::{Body, Path, Query};
use super::{Api, ApiError, Data, ErrorBody, Listing};
use crate::cluster::NodeStatus;
use crate::domain::{PoolName, PoolRecord, PoolSource, PoolSpec};
use crate::guests::GuestError;
use crate::storage::PoolStatus;
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
        let each = nodes.into_iter().flat_map(|(node, pools)| {
            let on_node = move |status| PoolOnNode {
                node: node.clone(),
                status,
            };
            pools.into_iter().map(on_node)
        });
        Ok(each.collect())
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
        self.pools.get(name).await?;
        let views = self.pool_views().await?;
        let found = views.into_iter().find(|view| view.name == *name);
        found.ok_or_else(|| crate::storage::StorageError::NoPool(name.clone()).into())
    }
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
    responses((status = 201, body = Data<PoolView>), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody)))]
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

/// How to delete.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct DeleteQuery {
    /// Give up the disks and images in it.
    #[serde(default)]
    force: bool,
}

/// Forgets a pool. Its files stay where they are.
#[utoipa::path(delete, path = "/api/v1/pools/{pool}", tag = "pools",
    params(("pool" = String, Path), DeleteQuery),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody)))]
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
