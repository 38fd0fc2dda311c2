//! What this node and its guests take: the last figures, and the counters for Prometheus.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::permit::Known;
use super::{Api, ApiError, Data, ErrorBody, ErrorCode};
use crate::causes::chain;
use crate::domain::{Guest, GuestName};
use crate::metrics::{GuestInfo, GuestUsage, NodeUsage};
use crate::security::Principal;

/// Prometheus's text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a node and its guests take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MetricsView {
    /// The node.
    pub node: String,
    /// What it takes, guests included; unknown to who has roles for single guests only.
    pub usage: NodeUsage,
    /// Its guests.
    pub guests: Vec<GuestMetrics>,
}

/// What a guest takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GuestMetrics {
    /// Which guest.
    pub uuid: Uuid,
    /// Its name.
    pub name: GuestName,
    /// What it takes.
    pub usage: GuestUsage,
}

/// Those that somebody may see.
async fn guests_here(
    api: &Api,
    principal: &Principal,
) -> Result<impl Iterator<Item = Guest> + use<>, ApiError> {
    let (guests, _) = api.visible_guests(principal, None, usize::MAX).await?;
    let node = api.node.clone();
    Ok(guests.into_iter().filter(move |guest| guest.node == node))
}

/// What the node that answers and its guests take. The figures are at most 10 seconds old.
#[utoipa::path(get, path = "/api/v1/metrics", tag = "metrics", responses(
    (status = 200, body = Data<MetricsView>), (status = 401, body = ErrorBody)))]
pub async fn show_metrics(
    State(api): State<Api>,
    Known(principal): Known,
) -> Result<Data<MetricsView>, ApiError> {
    let guests = guests_here(&api, &principal)
        .await?
        .map(|guest| GuestMetrics {
            uuid: guest.uuid,
            usage: api.guests.usage(guest.uuid),
            name: guest.name,
        });
    let data = MetricsView {
        node: api.node.clone(),
        usage: if principal.sees_all() {
            api.guests.metrics().node()
        } else {
            NodeUsage::default()
        },
        guests: guests.collect(),
    };
    Ok(Data { data })
}

/// The counters of the node that answers and of its guests, for Prometheus. Let it send a token
/// with the role viewer (`authorization` in its `scrape_configs`), and ask each node.
#[utoipa::path(get, path = "/metrics", tag = "metrics", responses(
    (status = 200, body = String, content_type = "text/plain"),
    (status = 401, body = ErrorBody)))]
pub async fn prometheus_metrics(
    State(api): State<Api>,
    Known(principal): Known,
) -> Result<Response, ApiError> {
    let guests: Vec<GuestInfo> = guests_here(&api, &principal)
        .await?
        .map(|guest| GuestInfo {
            uuid: guest.uuid,
            pid: api.guests.status(guest.uuid).pid,
            name: guest.name.to_string(),
            memory_mib: guest.memory_mib,
        })
        .collect();
    let metrics = api.guests.metrics();
    let text = metrics.exposition(&api.node, principal.sees_all(), &guests);
    let text = text.map_err(|error| ApiError::new(ErrorCode::Internal, chain(&error)))?;
    Ok(([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response())
}
