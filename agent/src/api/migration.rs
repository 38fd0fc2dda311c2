//! Guests that move: for people, and between the two nodes.

use axum::extract::State;

use super::extract::{Body, OptionalBody, Path, Query};
use super::permit::{Change, FromPeer, GuestFor, Look};
use super::{Accepted, Api, ApiError, Data, ErrorBody};
use crate::guests::{Arrival, ArrivalOrder, MoveRequest, Offer, Plan, Receiver, Settlement};

/// Moves a guest to another node while it runs; one that is off changes its node.
#[utoipa::path(post, path = "/api/v1/guests/{guest}/migrate", tag = "guests",
    request_body = Option<MoveRequest>,
    params(("guest" = String, Path, description = "Name or UUID")),
    responses((status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn migrate_guest(
    State(api): State<Api>,
    on: GuestFor<Change>,
    OptionalBody(request): OptionalBody<MoveRequest>,
) -> Result<Accepted, ApiError> {
    let guest = on.stored.value;
    let task = api.guests.migrate(&guest, &request, &on.principal.user);
    Ok(Accepted { task: task.await? })
}

/// What a move would be, what it would take, and whether it can be; changes nothing.
#[utoipa::path(get, path = "/api/v1/guests/{guest}/migrate", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID"), MoveRequest),
    responses((status = 200, body = Data<Plan>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub async fn plan_migration(
    State(api): State<Api>,
    on: GuestFor<Look>,
    Query(request): Query<MoveRequest>,
) -> Result<Data<Plan>, ApiError> {
    let guest = on.stored.value;
    let data = api.guests.plan_move(&guest, &request).await?;
    Ok(Data { data })
}

/// Whether this node can take a guest; for nodes.
#[utoipa::path(get, path = "/api/v1/arrivals/{guest}/offer", tag = "nodes",
    params(("guest" = String, Path, description = "UUID")),
    responses((status = 200, body = Data<Offer>),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn offer_place(
    State(api): State<Api>,
    _: FromPeer,
    Path(guest): Path<String>,
) -> Result<Data<Offer>, ApiError> {
    let guest = api.guests.find(&guest).await?.value;
    let data = api.guests.offer(&guest).await?;
    Ok(Data { data })
}

/// Has this node wait for a guest whose record says that it moves here; for nodes.
#[utoipa::path(post, path = "/api/v1/arrivals", tag = "nodes", request_body = ArrivalOrder,
    responses((status = 200, body = Data<Receiver>),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn receive_guest(
    State(api): State<Api>,
    _: FromPeer,
    Body(arrival): Body<ArrivalOrder>,
) -> Result<Data<Receiver>, ApiError> {
    let data = api.guests.receive(arrival).await?;
    Ok(Data { data })
}

/// What has become of a guest that was to come, which is final: one that does not run here by now
/// never will; for nodes.
#[utoipa::path(post, path = "/api/v1/arrivals/settle", tag = "nodes", request_body = Arrival,
    responses((status = 200, body = Data<Settlement>),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn settle_arrival(
    State(api): State<Api>,
    _: FromPeer,
    Body(arrival): Body<Arrival>,
) -> Result<Data<Settlement>, ApiError> {
    let data = api.guests.settle_arrival(arrival).await?;
    Ok(Data { data })
}
