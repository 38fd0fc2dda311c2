//! Disks of guests.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Body, Path};
use super::permit::{Change, GuestFor};
use super::{Accepted, Api, ApiError, ErrorBody};
use crate::domain::PoolName;

/// Where a disk is to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskMove {
    /// The pool.
    pub pool: PoolName,
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
