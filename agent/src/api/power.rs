//! Guests: start, stop, reset, pause, resume.

use axum::extract::State;

use super::extract::OptionalBody;
use super::permit::{GuestFor, Run};
use super::{Accepted, Api, ApiError, Data, ErrorBody, GuestView};
use crate::guests::StopRequest;

/// Starts a guest.
#[utoipa::path(post, path = "/api/v1/guests/{guest}/start", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID")),
    responses((status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn start_guest(State(api): State<Api>, on: GuestFor<Run>) -> Result<Accepted, ApiError> {
    let guest = on.stored.value;
    api.guests.require_undrained().await?;
    let task = api.guests.start(&guest, &on.principal.user).await?;
    Ok(Accepted { task })
}

/// Stops a guest: asks it to shut down, and switches it off after a deadline.
#[utoipa::path(post, path = "/api/v1/guests/{guest}/stop", tag = "guests",
    request_body = Option<StopRequest>,
    params(("guest" = String, Path, description = "Name or UUID")),
    responses((status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn stop_guest(
    State(api): State<Api>,
    on: GuestFor<Run>,
    OptionalBody(request): OptionalBody<StopRequest>,
) -> Result<Accepted, ApiError> {
    let guest = on.stored.value;
    let task = api
        .guests
        .stop(&guest, &request, &on.principal.user)
        .await?;
    Ok(Accepted { task })
}

/// Starts the machine anew, as its reset button does.
#[utoipa::path(post, path = "/api/v1/guests/{guest}/reset", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = Data<GuestView>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn reset_guest(
    State(api): State<Api>,
    on: GuestFor<Run>,
) -> Result<Data<GuestView>, ApiError> {
    let guest = on.stored.value;
    api.guests.reset(&guest).await?;
    let data = api.view(guest).await?;
    Ok(Data { data })
}

/// Lets a guest stand still.
#[utoipa::path(post, path = "/api/v1/guests/{guest}/pause", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = Data<GuestView>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn pause_guest(
    State(api): State<Api>,
    on: GuestFor<Run>,
) -> Result<Data<GuestView>, ApiError> {
    let guest = on.stored.value;
    api.guests.pause(&guest).await?;
    let data = api.view(guest).await?;
    Ok(Data { data })
}

/// Lets a paused guest go on.
#[utoipa::path(post, path = "/api/v1/guests/{guest}/resume", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = Data<GuestView>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn resume_guest(
    State(api): State<Api>,
    on: GuestFor<Run>,
) -> Result<Data<GuestView>, ApiError> {
    let guest = on.stored.value;
    api.guests.resume(&guest).await?;
    let data = api.view(guest).await?;
    Ok(Data { data })
}
