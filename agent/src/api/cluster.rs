//! The cluster: make it, let nodes in, take them out, save it.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Body, OptionalBody};
use super::permit::{Admin, Viewer};
use super::{Api, ApiError, Data, ErrorBody};
use crate::clock::now_unix_ms;
use crate::cluster::{
    Admission, Balance, ClusterView, CpuView, InitRequest, JoinAnswer, JoinRequest,
};
use crate::domain::Invalid;

/// Largest backup that is taken, in bytes.
const BACKUP_MAX: usize = 256 << 20;
/// How long a join token is good, in seconds: at least, at most, and if nothing is said.
const TOKEN_MIN_S: u64 = 60;
const TOKEN_MAX_S: u64 = 7 * 24 * 3600;
const TOKEN_DEFAULT_S: u64 = 3600;

/// The cluster, as this node sees it.
#[utoipa::path(get, path = "/api/v1/cluster", tag = "cluster",
    responses((status = 200, body = Data<ClusterView>), (status = 409, body = ErrorBody)))]
pub async fn show_cluster(
    State(api): State<Api>,
    _: Viewer,
) -> Result<Data<ClusterView>, ApiError> {
    let data = api.site.view().await?;
    Ok(Data { data })
}

/// Makes this node the first of a cluster. Guests run on; the API begins anew right after.
#[utoipa::path(post, path = "/api/v1/cluster/init", tag = "cluster",
    request_body = Option<InitRequest>,
    responses((status = 200, body = Data<ClusterView>), (status = 409, body = ErrorBody)))]
pub async fn init_cluster(
    State(api): State<Api>,
    _: Admin,
    OptionalBody(request): OptionalBody<InitRequest>,
) -> Result<Data<ClusterView>, ApiError> {
    let data = api.site.init(&request).await?;
    Ok(Data { data })
}

/// A join token to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewJoinToken {
    /// How long it is good, in seconds, 60 to 604800; absent: an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 60, maximum = 604_800)]
    pub lifetime_s: Option<u64>,
}

/// A join token that was made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JoinTokenCreated {
    /// Its text, which is shown only here.
    pub text: String,
    /// How to use it.
    pub address: String,
    /// How long it is good, in seconds.
    pub lifetime_s: u64,
}

/// The nodes' processors, beside what new guests see.
#[utoipa::path(get, path = "/api/v1/cluster/cpu", tag = "cluster",
    responses((status = 200, body = Data<CpuView>), (status = 409, body = ErrorBody)))]
pub async fn show_cpu(State(api): State<Api>, _: Viewer) -> Result<Data<CpuView>, ApiError> {
    let data = api.site.cpu_view().await?;
    Ok(Data { data })
}

/// From now on new guests see what all nodes have in common.
#[utoipa::path(post, path = "/api/v1/cluster/cpu/adopt", tag = "cluster",
    responses((status = 200, body = Data<CpuView>), (status = 409, body = ErrorBody)))]
pub async fn adopt_cpu(State(api): State<Api>, _: Admin) -> Result<Data<CpuView>, ApiError> {
    let data = api.site.adopt_common_cpu().await?;
    Ok(Data { data })
}

/// How even the nodes' load is, and which guests should move where to make it so; changes nothing.
#[utoipa::path(get, path = "/api/v1/cluster/balance", tag = "cluster",
    responses((status = 200, body = Data<Balance>), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn show_balance(State(api): State<Api>, _: Viewer) -> Result<Data<Balance>, ApiError> {
    let data = api.site.balance().await?;
    Ok(Data { data })
}

/// Makes a token by which one node may join.
#[utoipa::path(post, path = "/api/v1/cluster/tokens", tag = "cluster",
    request_body = Option<NewJoinToken>,
    responses((status = 201, body = Data<JoinTokenCreated>), (status = 409, body = ErrorBody)))]
pub async fn create_join_token(
    State(api): State<Api>,
    _: Admin,
    OptionalBody(new): OptionalBody<NewJoinToken>,
) -> Result<Response, ApiError> {
    let lifetime_s = new.lifetime_s.unwrap_or(TOKEN_DEFAULT_S);
    if !(TOKEN_MIN_S..=TOKEN_MAX_S).contains(&lifetime_s) {
        let must = "must be 60 to 604800 s";
        return Err(Invalid::number("lifetime_s", lifetime_s, must).into());
    }
    let token = api.site.join_token(Duration::from_secs(lifetime_s)).await?;
    let data = JoinTokenCreated {
        text: token.to_string(),
        address: token.address,
        lifetime_s,
    };
    Ok((StatusCode::CREATED, Data { data }).into_response())
}

/// Lets a node in that has a join token. What it is answered makes it one of the cluster.
#[utoipa::path(post, path = "/api/v1/cluster/members", tag = "cluster", security(()),
    request_body = JoinRequest,
    responses((status = 200, body = Data<JoinAnswer>), (status = 403, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub async fn admit_node(
    State(api): State<Api>,
    Body(request): Body<JoinRequest>,
) -> Result<Data<JoinAnswer>, ApiError> {
    let data = api.site.admit(&request).await?;
    Ok(Data { data })
}

/// Takes this node into a cluster. The API begins anew right after, with that cluster's authority,
/// users and tokens.
#[utoipa::path(post, path = "/api/v1/cluster/join", tag = "cluster", request_body = Admission,
    responses((status = 204), (status = 403, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn join_cluster(
    State(api): State<Api>,
    _: Admin,
    Body(order): Body<Admission>,
) -> Result<StatusCode, ApiError> {
    api.site.join(&order).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes this node out of its cluster. The API begins anew right after, alone and empty.
#[utoipa::path(post, path = "/api/v1/cluster/leave", tag = "cluster",
    responses((status = 204), (status = 409, body = ErrorBody)))]
pub async fn leave_cluster(State(api): State<Api>, _: Admin) -> Result<StatusCode, ApiError> {
    api.site.leave().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All records in one file, which is as secret as the cluster's authority.
#[utoipa::path(get, path = "/api/v1/cluster/backup", tag = "cluster",
    responses((status = 200, content_type = "application/octet-stream"),
        (status = 409, body = ErrorBody)))]
pub async fn backup_cluster(State(api): State<Api>, _: Admin) -> Result<Response, ApiError> {
    let backup = api.site.backup().await?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((headers, backup).into_response())
}

/// Makes this node the only one of its cluster, which has lost its majority: with the records of
/// the backup in the body or, without a body, those that the node has seen last. The API begins
/// anew right after.
#[utoipa::path(post, path = "/api/v1/cluster/recover", tag = "cluster",
    request_body(content_type = "application/octet-stream"),
    responses((status = 200, body = Data<ClusterView>), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub async fn recover_cluster(
    State(api): State<Api>,
    _: Admin,
    backup: Bytes,
) -> Result<Data<ClusterView>, ApiError> {
    let backup = Some(&*backup).filter(|backup| !backup.is_empty());
    let data = api.site.recover(backup).await?;
    Ok(Data { data })
}

/// The node's clock, in milliseconds since the Unix epoch.
#[utoipa::path(get, path = "/api/v1/cluster/clock", tag = "cluster",
    responses((status = 200, body = Data<u64>)))]
pub async fn clock(_: Viewer) -> Data<u64> {
    Data {
        data: now_unix_ms(),
    }
}

/// A backup is larger than other bodies.
pub(super) fn backup_limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(BACKUP_MAX)
}
