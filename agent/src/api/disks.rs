//! Disks of guests.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Operator;
use super::extract::{Body, Path};
use super::{Accepted, Api, ApiError, ErrorBody};
use crate::domain::PoolName;

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
