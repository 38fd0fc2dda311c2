//! Updates of a node and of the cluster.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio_util::io::ReaderStream;

use super::extract::{self, Path};
use super::nodes::require_this;
use super::permit::{Admin, FromPeer};
use super::pieces::{Pieces, length};
use super::{Accepted, Api, ApiError, Data, ErrorBody, ErrorCode};
use crate::update::{Bundle, RolloutRequest, UpdateRequest};

/// How much of a bundle is sent at once, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// Uploads a bundle, which takes the place of the one that the node has. It is refused unless it was
/// signed by the key of the node's image.
#[utoipa::path(put, path = "/api/v1/nodes/{node}/bundle", tag = "nodes",
    params(("node" = String, Path)),
    request_body(content_type = "application/octet-stream"),
    responses((status = 201, body = Data<Bundle>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub async fn upload_bundle(
    State(api): State<Api>,
    _: Admin,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut pieces = Pieces::new(body);
    match receive(&api, &name, &headers, &mut pieces).await {
        Ok(data) => (StatusCode::CREATED, Data { data }).into_response(),
        Err(error) => pieces.refuse(error).await,
    }
}

async fn receive(
    api: &Api,
    name: &str,
    headers: &HeaderMap,
    pieces: &mut Pieces,
) -> Result<Bundle, ApiError> {
    require_this(api, name)?;
    let mut reception = api.updates.receive(length(headers)).await?;
    while let Some(piece) = pieces.next().await? {
        reception.write(&piece).await?;
    }
    Ok(reception.finish().await?)
}

/// The bundle that a node has, for another one that is to be updated by it.
#[utoipa::path(get, path = "/api/v1/nodes/{node}/bundle/content", tag = "nodes",
    params(("node" = String, Path)),
    responses((status = 200, content_type = "application/octet-stream"),
        (status = 404, body = ErrorBody)))]
pub async fn download_bundle(
    State(api): State<Api>,
    _: FromPeer,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    require_this(&api, &name)?;
    let (bundle, path) = api.updates.bundle()?;
    let file = tokio::fs::File::open(&path).await;
    let file = file.map_err(|error| ApiError::of(ErrorCode::Internal, &error))?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, bundle.bytes.to_string()),
    ];
    let pieces = ReaderStream::with_capacity(file, PIECE_BYTES);
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Updates a node: writes the bundle to its other slot, has its guests leave, restarts it, and goes
/// back if it does not come up healthy.
#[utoipa::path(post, path = "/api/v1/nodes/{node}/update", tag = "nodes",
    params(("node" = String, Path)),
    request_body = UpdateRequest,
    responses((status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub async fn update_node(
    State(api): State<Api>,
    Admin(principal): Admin,
    Path(name): Path<String>,
    extract::Body(request): extract::Body<UpdateRequest>,
) -> Result<Accepted, ApiError> {
    require_this(&api, &name)?;
    let task = api.updates.begin(request, &principal.user).await?;
    Ok(Accepted { task })
}

/// Updates all nodes of the cluster, one after the other, by the bundle of the node that is asked; it
/// stops at the first that fails.
#[utoipa::path(post, path = "/api/v1/cluster/update", tag = "cluster",
    request_body = RolloutRequest,
    responses((status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub async fn update_cluster(
    State(api): State<Api>,
    Admin(principal): Admin,
    extract::Body(request): extract::Body<RolloutRequest>,
) -> Result<Accepted, ApiError> {
    let task = api.updates.begin_rollout(request, &principal.user).await?;
    Ok(Accepted { task })
}
