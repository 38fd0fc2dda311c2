//! Disks of guests.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Operator;
use super::extract::{Body, Path};
use super::{Accepted, Api, ApiError, ErrorBody};
use crate::domain::PoolName;
use crate::guests::GuestError;

/// Where a disk is to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskMove {
    /// The pool.
    pub pool: PoolName,
}

/// How large a disk is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskGrowth {
    /// Its new size in MiB: more than it has.
    pub size_mib: u64,
}

/// Makes a disk larger. A guest that runs sees that at once; its file systems are its own affair.
#[utoipa::path(post, path = "/api/v1/guests/{guest}/disks/{disk}/resize", tag = "guests",
    request_body = DiskGrowth,
    params(("guest" = String, Path, description = "Name or UUID"), ("disk" = String, Path)),
    responses((status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn resize_disk(
    State(api): State<Api>,
    Operator(principal): Operator,
    Path((guest, disk)): Path<(String, String)>,
    Body(growth): Body<DiskGrowth>,
) -> Result<Accepted, ApiError> {
    let guest = api.guests.find(&guest).await?.value;
    let task = api
        .guests
        .resize_disk(&guest, &disk, growth.size_mib, &principal.user);
    Ok(Accepted { task: task.await? })
}

/// Downloads a disk of a guest that is off, in the format that it is kept in. A task says how far
/// that is; while it lasts the guest cannot start.
#[utoipa::path(get, path = "/api/v1/guests/{guest}/disks/{disk}/content", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID"), ("disk" = String, Path)),
    responses((status = 200, content_type = "application/octet-stream"),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn export_disk(
    State(api): State<Api>,
    Operator(principal): Operator,
    Path((guest, disk)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let guest = api.guests.find(&guest).await?.value;
    let export = api.guests.export_disk(&guest, &disk, &principal.user);
    let export = export.await?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, export.bytes().to_string()),
    ];
    let pieces = futures_util::stream::try_unfold(export, |mut export| async move {
        let piece = export.next().await?;
        Ok::<_, GuestError>(piece.map(|piece| (piece, export)))
    });
    Ok((headers, axum::body::Body::from_stream(pieces)).into_response())
}

/// Moves a disk of a guest that is off to another pool. Cancelled, or cut short in whatever way, it
/// leaves the disk where it was.
#[utoipa::path(post, path = "/api/v1/guests/{guest}/disks/{disk}/move", tag = "guests",
    request_body = DiskMove,
    params(("guest" = String, Path, description = "Name or UUID"), ("disk" = String, Path)),
    responses((status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn move_disk(
    State(api): State<Api>,
    Operator(principal): Operator,
    Path((guest, disk)): Path<(String, String)>,
    Body(target): Body<DiskMove>,
) -> Result<Accepted, ApiError> {
    let guest = api.guests.find(&guest).await?.value;
    let task = api
        .guests
        .move_disk(&guest, &disk, &target.pool, &principal.user);
    Ok(Accepted { task: task.await? })
}
