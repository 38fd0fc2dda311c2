//! Images: list, upload, show, delete.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Path, Query};
use super::permit::{Operator, Viewer};
use super::pieces::{Pieces, length};
use super::{Api, ApiError, Data, ErrorBody, ErrorCode, Listing};
use crate::domain::{FileName, ImageRef, PoolName};
use crate::storage::{Download, Image, Pool, PoolState, StorageError, Upload};

/// How long a pool may take to list its images among those of others.
const LIST_DEADLINE: Duration = Duration::from_millis(800);

/// Whose images.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PoolQuery {
    /// The pool; absent: the node's own, `local`.
    #[serde(default = "PoolName::local")]
    #[param(value_type = Option<String>, pattern = "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")]
    pool: PoolName,
}

/// Whose images.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PoolsQuery {
    /// The pool; absent: all that answer on the node.
    #[param(value_type = Option<String>, pattern = "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")]
    pool: Option<PoolName>,
}

/// All images.
#[utoipa::path(get, path = "/api/v1/images", tag = "images", params(PoolsQuery),
    responses((status = 200, body = Listing<Image>),
        (status = 404, body = ErrorBody)))]
pub async fn list_images(
    State(api): State<Api>,
    _: Viewer,
    Query(query): Query<PoolsQuery>,
) -> Result<Listing<Image>, ApiError> {
    let data = match query.pool {
        Some(pool) => api.pools.get(&pool).await?.list_images().await?,
        None => images_at_hand(&api.pools.all()).await,
    };
    Ok(Listing { data, next: None })
}

/// Those of the pools that answer now: one that does not is no reason to show none.
async fn images_at_hand(pools: &[Pool]) -> Vec<Image> {
    let ready = pools
        .iter()
        .filter(|pool| pool.status().state == PoolState::Ready);
    let lists = ready.map(|pool| tokio::time::timeout(LIST_DEADLINE, pool.list_images()));
    let mut images = Vec::new();
    for list in join_all(lists).await {
        images.extend(list.ok().and_then(Result::ok).unwrap_or_default());
    }
    images
}

/// One image.
#[utoipa::path(get, path = "/api/v1/images/{image}", tag = "images",
    params(("image" = String, Path), PoolQuery),
    responses((status = 200, body = Data<Image>), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub async fn show_image(
    State(api): State<Api>,
    _: Viewer,
    Path(name): Path<String>,
    Query(query): Query<PoolQuery>,
) -> Result<Data<Image>, ApiError> {
    let name = FileName::try_from(name)?;
    let data = api.pools.get(&query.pool).await?.image(&name).await?;
    Ok(Data { data })
}

/// Uploads an image: raw, qcow2 or vmdk, or a kernel. It must be complete in itself. Its length is
/// bounded by the pool's space only.
#[utoipa::path(put, path = "/api/v1/images/{image}", tag = "images",
    params(("image" = String, Path), PoolQuery),
    request_body(content_type = "application/octet-stream"),
    responses((status = 201, body = Data<Image>), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub async fn upload_image(
    State(api): State<Api>,
    _: Operator,
    Path(name): Path<String>,
    Query(query): Query<PoolQuery>,
    headers: HeaderMap,
    body: axum::body::Body,
) -> Response {
    let mut pieces = Pieces::new(body);
    match receive(&api, (&query.pool, name), &headers, &mut pieces).await {
        Ok(data) => (StatusCode::CREATED, Data { data }).into_response(),
        Err(error) => pieces.refuse(error).await,
    }
}

async fn receive(
    api: &Api,
    (pool, name): (&PoolName, String),
    headers: &HeaderMap,
    pieces: &mut Pieces,
) -> Result<Image, ApiError> {
    let name = FileName::try_from(name)?;
    let pool = api.pools.get(pool).await?;
    let mut upload = Upload::begin(&pool, name, length(headers)).await?;
    while let Some(piece) = pieces.next().await? {
        upload.write(&piece).await?;
    }
    Ok(upload.finish().await?)
}

/// Downloads an image, as it was uploaded.
#[utoipa::path(get, path = "/api/v1/images/{image}/content", tag = "images",
    params(("image" = String, Path), PoolQuery),
    responses((status = 200, content_type = "application/octet-stream"),
        (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub async fn download_image(
    State(api): State<Api>,
    _: Operator,
    Path(name): Path<String>,
    Query(query): Query<PoolQuery>,
) -> Result<Response, ApiError> {
    let name = FileName::try_from(name)?;
    let pool = api.pools.get(&query.pool).await?;
    let download = Download::of_image(&pool, &name).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, download.bytes().to_string()),
    ];
    let pieces = futures_util::stream::try_unfold(download, |mut download| async move {
        let piece = download.next().await?;
        Ok::<_, StorageError>(piece.map(|piece| (piece, download)))
    });
    Ok((headers, axum::body::Body::from_stream(pieces)).into_response())
}

/// Deletes an image. Disks that were made from it stay.
#[utoipa::path(delete, path = "/api/v1/images/{image}", tag = "images",
    params(("image" = String, Path), PoolQuery),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub async fn delete_image(
    State(api): State<Api>,
    _: Operator,
    Path(name): Path<String>,
    Query(query): Query<PoolQuery>,
) -> Result<StatusCode, ApiError> {
    let image = ImageRef {
        pool: Some(query.pool),
        file: FileName::try_from(name)?,
    };
    let pool = api.pools.get(&image.pool_or_local()).await?;
    if let Some(guest) = api.guests.that_boots(&image).await? {
        let message = format!("guest {guest} boots image {image}; delete the guest first");
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    pool.delete_image(&image.file).await?;
    Ok(StatusCode::NO_CONTENT)
}
