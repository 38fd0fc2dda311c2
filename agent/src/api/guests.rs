//! Guests: create, list, show, edit, delete, log.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::etag::{etag, is_current};
use super::extract::{Body, Path, Query, within_query};
use super::idempotency::begin_once;
use super::permit::{Change, GuestFor, Known, Look, Operator};
use super::{Accepted, Api, ApiError, Data, ErrorBody, GuestView, Listing};
use crate::domain::{CloneSpec, Guest, GuestEdit, GuestSpec};
use crate::guests::GuestError;

/// Most guests in one answer.
const PAGE_MAX: usize = 1000;
/// Most of a console's log in one answer, in bytes.
const LOG_MAX: u64 = 1 << 20;

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// At most so many, 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Those after this `next` of an answer before.
    after: Option<Uuid>,
}

/// All guests, in order of their UUIDs.
#[utoipa::path(get, path = "/api/v1/guests", tag = "guests", params(PageQuery), responses(
    (status = 200, body = Listing<GuestView>)))]
pub async fn list_guests(
    State(api): State<Api>,
    Known(principal): Known,
    Query(query): Query<PageQuery>,
) -> Result<Listing<GuestView>, ApiError> {
    let limit = query.limit.unwrap_or(PAGE_MAX);
    within_query("limit", limit, 1..=PAGE_MAX)?;
    let (guests, more) = api.visible_guests(&principal, query.after, limit).await?;
    let last = guests.last().map(|guest| guest.uuid.to_string());
    Ok(Listing {
        data: api.views(guests).await?,
        next: last.filter(|_| more),
    })
}

/// Creates a guest. With `Idempotency-Key` the same request may be sent again.
#[utoipa::path(post, path = "/api/v1/guests", tag = "guests", request_body = GuestSpec,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 64 letters, digits, - and _",
            pattern = "^[-_A-Za-z0-9]{1,64}$")),
    responses((status = 202, body = Accepted), (status = 409, body = ErrorBody)))]
pub async fn create_guest(
    State(api): State<Api>,
    Operator(principal): Operator,
    headers: HeaderMap,
    Body(spec): Body<GuestSpec>,
) -> Result<Accepted, ApiError> {
    // Large as a future: on the heap.
    let begin = Box::pin(async {
        api.guests.require_undrained().await?;
        let created = api.guests.create(&spec, &principal.user).await?;
        Ok::<_, GuestError>(created.task)
    });
    begin_once(&api, &headers, &principal, &spec, begin).await
}

/// Copies a guest that is off: settings and disks are the same, UUID and MAC addresses are its own.
/// With `Idempotency-Key` the same request may be sent again.
#[utoipa::path(post, path = "/api/v1/guests/{guest}/clone", tag = "guests",
    request_body = CloneSpec,
    params(("guest" = String, Path, description = "Name or UUID"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 64 letters, digits, - and _",
            pattern = "^[-_A-Za-z0-9]{1,64}$")),
    responses((status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn clone_guest(
    State(api): State<Api>,
    Operator(principal): Operator,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(spec): Body<CloneSpec>,
) -> Result<Accepted, ApiError> {
    let original = api.guests.find(&name).await?.value;
    let begin = Box::pin(async {
        let cloning = api.guests.clone_guest(&original, &spec, &principal.user);
        Ok::<_, GuestError>(cloning.await?.task)
    });
    let request = (original.uuid, &spec);
    begin_once(&api, &headers, &principal, &request, begin).await
}

/// Makes a guest that is off a template: it does not start, and others are copied from it.
#[utoipa::path(put, path = "/api/v1/guests/{guest}/template", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = Data<GuestView>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn make_template(
    State(api): State<Api>,
    on: GuestFor<Change>,
) -> Result<Data<GuestView>, ApiError> {
    set_template(&api, &on.stored.value, true).await
}

/// Makes a template a guest again.
#[utoipa::path(delete, path = "/api/v1/guests/{guest}/template", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = Data<GuestView>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn unmake_template(
    State(api): State<Api>,
    on: GuestFor<Change>,
) -> Result<Data<GuestView>, ApiError> {
    set_template(&api, &on.stored.value, false).await
}

async fn set_template(
    api: &Api,
    guest: &Guest,
    template: bool,
) -> Result<Data<GuestView>, ApiError> {
    let guest = api.guests.set_template(guest, template).await?;
    let data = api.view(guest).await?;
    Ok(Data { data })
}

/// One guest, by name or UUID. Its `ETag` is what an edit must give as `If-Match`.
#[utoipa::path(get, path = "/api/v1/guests/{guest}", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = Data<GuestView>), (status = 404, body = ErrorBody)))]
pub async fn show_guest(State(api): State<Api>, on: GuestFor<Look>) -> Result<Response, ApiError> {
    let stored = on.stored;
    let etag = etag(stored.revision);
    let data = api.view(stored.value).await?;
    Ok(([(header::ETAG, etag)], Data { data }).into_response())
}

/// A guest that was edited.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GuestEdited {
    /// The guest as it is now.
    pub guest: GuestView,
    /// It runs, and must be stopped and started for all of it to count.
    pub restart_needed: bool,
}

/// Changes a guest. `If-Match` must hold the `ETag` of what was read.
#[utoipa::path(patch, path = "/api/v1/guests/{guest}", tag = "guests", request_body = GuestEdit,
    params(("guest" = String, Path, description = "Name or UUID"),
        ("If-Match" = String, Header, description = "The ETag that was read")),
    responses((status = 200, body = Data<GuestEdited>), (status = 404, body = ErrorBody),
        (status = 412, body = ErrorBody),
        (status = 428, body = ErrorBody)))]
pub async fn edit_guest(
    State(api): State<Api>,
    on: GuestFor<Change>,
    headers: HeaderMap,
    Body(edit): Body<GuestEdit>,
) -> Result<Response, ApiError> {
    let stored = on.stored;
    if !is_current(&headers, stored.revision)? {
        let name = stored.value.name.to_string();
        return Err(GuestError::Changed(name).into());
    }
    let (edited, restart_needed) = api.guests.edit(&stored, &edit).await?;
    let etag = etag(edited.revision);
    let data = GuestEdited {
        guest: api.view(edited.value).await?,
        restart_needed,
    };
    Ok(([(header::ETAG, etag)], Data { data }).into_response())
}

/// How to delete.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// Switch the guest off first.
    #[serde(default)]
    force: bool,
}

/// Deletes a guest and its disks.
#[utoipa::path(delete, path = "/api/v1/guests/{guest}", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID"), DeleteQuery),
    responses((status = 202, body = Accepted), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn delete_guest(
    State(api): State<Api>,
    on: GuestFor<Change>,
    Query(query): Query<DeleteQuery>,
) -> Result<Accepted, ApiError> {
    let guest = on.stored.value;
    let task = api.guests.delete(&guest, query.force, &on.principal.user);
    Ok(Accepted { task: task.await? })
}

/// How much of a log.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// The last so many bytes, at most 1048576; absent: 65536.
    #[param(maximum = 1_048_576)]
    bytes: Option<u64>,
}

/// What the guest wrote last on its serial port.
#[utoipa::path(get, path = "/api/v1/guests/{guest}/log", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID"), LogQuery),
    responses((status = 200, content_type = "application/octet-stream"),
        (status = 404, body = ErrorBody)))]
pub async fn guest_log(
    State(api): State<Api>,
    on: GuestFor<Look>,
    Query(query): Query<LogQuery>,
) -> Result<Vec<u8>, ApiError> {
    let guest = on.stored.value;
    let bytes = query.bytes.unwrap_or(64 << 10);
    within_query("bytes", bytes, 0..=LOG_MAX)?;
    Ok(api.guests.read_console_log(guest.uuid, bytes)?)
}
