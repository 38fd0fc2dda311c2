//! Images of the pool `local`: list, upload, show, delete.

use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;

use super::auth::{Operator, Viewer};
use super::extract::Path;
use super::{Api, ApiError, Data, ErrorBody, ErrorCode, Listing};
use crate::domain::FileName;
use crate::storage::{Image, StorageError, Upload};

/// How long a pool may take for an answer.
const POOL_DEADLINE: Duration = Duration::from_secs(5);
/// How much of an upload that is refused is passed over, in bytes, and for how long.
const PASSED_OVER_MAX: usize = 256 << 20;
const PASSED_OVER_DEADLINE: Duration = Duration::from_secs(5);
/// How long the next piece of an upload may take to come.
const PIECE_DEADLINE: Duration = Duration::from_secs(60);

/// Looks at a pool away from the threads that serve requests, and not for ever.
pub(super) async fn on_pool<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work);
    match tokio::time::timeout(POOL_DEADLINE, done).await {
        Ok(Ok(done)) => Ok(done?),
        Ok(Err(error)) => Err(ApiError::new(ErrorCode::Internal, error.to_string())),
        Err(_) => {
            let seconds = POOL_DEADLINE.as_secs();
            let message = format!("pool local has not answered for {seconds} s");
            Err(ApiError::new(ErrorCode::Unavailable, message))
        }
    }
}

/// All images.
#[utoipa::path(get, path = "/api/v1/images", tag = "images",
    responses((status = 200, body = Listing<Image>)))]
pub async fn list_images(State(api): State<Api>, _: Viewer) -> Result<Listing<Image>, ApiError> {
    let pool = api.pool.clone();
    Ok(Listing {
        data: on_pool(move || pool.list_images()).await?,
        next: None,
    })
}

/// One image.
#[utoipa::path(get, path = "/api/v1/images/{image}", tag = "images",
    params(("image" = String, Path)),
    responses((status = 200, body = Data<Image>), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub async fn show_image(
    State(api): State<Api>,
    _: Viewer,
    Path(name): Path<String>,
) -> Result<Data<Image>, ApiError> {
    let name = FileName::try_from(name)?;
    let pool = api.pool.clone();
    let data = on_pool(move || pool.image(&name)).await?;
    Ok(Data { data })
}

/// Uploads an image: raw, qcow2 or vmdk, or a kernel. It must be complete in itself. Its length is
/// bounded by the pool's space only.
#[utoipa::path(put, path = "/api/v1/images/{image}", tag = "images",
    params(("image" = String, Path)),
    request_body(content_type = "application/octet-stream"),
    responses((status = 201, body = Data<Image>), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub async fn upload_image(
    State(api): State<Api>,
    _: Operator,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: axum::body::Body,
) -> Response {
    let mut pieces = body.into_data_stream();
    match receive(&api, name, &headers, &mut pieces).await {
        Ok(data) => (StatusCode::CREATED, Data { data }).into_response(),
        Err(error) => {
            // A client hears the answer when it has sent all; there is an end to that, too.
            let rest = pass_over(&mut pieces, PASSED_OVER_MAX);
            let _ = tokio::time::timeout(PASSED_OVER_DEADLINE, rest).await;
            ([(header::CONNECTION, "close")], error).into_response()
        }
    }
}

async fn pass_over(pieces: &mut BodyDataStream, most: usize) {
    let mut passed = 0;
    while let Some(Ok(piece)) = pieces.next().await {
        passed += piece.len();
        if passed > most {
            return;
        }
    }
}

async fn receive(
    api: &Api,
    name: String,
    headers: &HeaderMap,
    pieces: &mut BodyDataStream,
) -> Result<Image, ApiError> {
    let name = FileName::try_from(name)?;
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let mut upload = Upload::begin(&api.pool, name, length.unwrap_or(0)).await?;
    let broken = |reason: String| {
        let message = format!("the upload broke off: {reason}");
        ApiError::new(ErrorCode::BadRequest, message)
    };
    loop {
        match tokio::time::timeout(PIECE_DEADLINE, pieces.next()).await {
            Err(_) => return Err(broken("nothing came for a minute".to_owned())),
            Ok(None) => return Ok(upload.finish().await?),
            Ok(Some(Err(error))) => return Err(broken(error.to_string())),
            Ok(Some(Ok(piece))) => upload.write(&piece).await?,
        }
    }
}

/// Deletes an image. Disks that were made from it stay.
#[utoipa::path(delete, path = "/api/v1/images/{image}", tag = "images",
    params(("image" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn delete_image(
    State(api): State<Api>,
    _: Operator,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let name = FileName::try_from(name)?;
    if let Some(guest) = api.guests.that_boots(&name).await? {
        let message = format!("guest {guest} boots image {name}; delete the guest first");
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    let pool = api.pool.clone();
    on_pool(move || pool.delete_image(&name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
