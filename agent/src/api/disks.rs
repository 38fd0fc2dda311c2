//! Disks of guests.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::etag::{etag, is_current};
use super::extract::{Body, Path};
use super::permit::{Change, GuestFor};
use super::{Accepted, Api, ApiError, Data, ErrorBody, GuestView};
use crate::domain::{DiskLimits, PoolName};
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
    #[schema(minimum = 1, maximum = 67_108_864)]
    pub size_mib: u64,
}

/// Makes a disk larger. A guest that runs sees that at once; its file systems are its own affair.
#[utoipa::path(post, path = "/api/v1/guests/{guest}/disks/{disk}/resize", tag = "guests",
    request_body = DiskGrowth,
    params(("guest" = String, Path, description = "Name or UUID"), ("disk" = String, Path)),
    responses((status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn resize_disk(
    State(api): State<Api>,
    on: GuestFor<Change>,
    Path((_, disk)): Path<(String, String)>,
    Body(growth): Body<DiskGrowth>,
) -> Result<Accepted, ApiError> {
    let guest = on.stored.value;
    let task = api
        .guests
        .resize_disk(&guest, &disk, growth.size_mib, &on.principal.user);
    Ok(Accepted { task: task.await? })
}

/// Sets how much of its storage a disk may take, now if its guest runs, and from each start on; an
/// empty object lifts all limits. `If-Match` must hold the `ETag` of the guest that was read.
#[utoipa::path(put, path = "/api/v1/guests/{guest}/disks/{disk}/limits", tag = "guests",
    request_body = DiskLimits,
    params(("guest" = String, Path, description = "Name or UUID"), ("disk" = String, Path),
        ("If-Match" = String, Header, description = "The ETag that was read")),
    responses((status = 200, body = Data<GuestView>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 412, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 428, body = ErrorBody)))]
pub async fn limit_disk(
    State(api): State<Api>,
    on: GuestFor<Change>,
    Path((_, disk)): Path<(String, String)>,
    headers: HeaderMap,
    Body(limits): Body<DiskLimits>,
) -> Result<Response, ApiError> {
    let stored = on.stored;
    if !is_current(&headers, stored.revision)? {
        return Err(GuestError::Changed(stored.value.name.to_string()).into());
    }
    let limited = api.guests.limit_disk(&stored, &disk, limits).await?;
    let etag = etag(limited.revision);
    let data = api.view(limited.value).await?;
    Ok(([(header::ETAG, etag)], Data { data }).into_response())
}

/// Downloads a disk of a guest that is off, in the format that it is kept in. A task says how far
/// that is; while it lasts the guest cannot start.
#[utoipa::path(get, path = "/api/v1/guests/{guest}/disks/{disk}/content", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID"), ("disk" = String, Path)),
    responses((status = 200, content_type = "application/octet-stream"),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub async fn export_disk(
    State(api): State<Api>,
    on: GuestFor<Change>,
    Path((_, disk)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let guest = on.stored.value;
    let export = api.guests.export_disk(&guest, &disk, &on.principal.user);
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
        (status = 409, body = ErrorBody)))]
pub async fn move_disk(
    State(api): State<Api>,
    on: GuestFor<Change>,
    Path((_, disk)): Path<(String, String)>,
    Body(target): Body<DiskMove>,
) -> Result<Accepted, ApiError> {
    let guest = on.stored.value;
    let task = api
        .guests
        .move_disk(&guest, &disk, &target.pool, &on.principal.user);
    Ok(Accepted { task: task.await? })
}
