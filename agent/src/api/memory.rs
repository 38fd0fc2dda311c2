//! Memory that guests give back.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::Body;
use super::permit::{Change, GuestFor};
use super::{Api, ApiError, Data, ErrorBody, GuestView};

/// How much of its RAM a guest is to keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryTarget {
    /// In MiB, 16 to all that it has; null: all of it.
    #[schema(minimum = 16)]
    pub target_mib: Option<u64>,
}

/// Asks a guest to keep to a part of its RAM, and to give the rest back to its node: now if it runs,
/// and from each start on. It takes back what it needs when it runs out.
#[utoipa::path(put, path = "/api/v1/guests/{guest}/memory", tag = "guests",
    request_body = MemoryTarget,
    params(("guest" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = Data<GuestView>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn set_memory_target(
    State(api): State<Api>,
    on: GuestFor<Change>,
    Body(target): Body<MemoryTarget>,
) -> Result<Data<GuestView>, ApiError> {
    let guest = on.stored.value;
    let guest = api
        .guests
        .set_memory_target(&guest, target.target_mib)
        .await?;
    let data = api.view(guest).await?;
    Ok(Data { data })
}
