//! A guest's network interfaces.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use super::etag::{etag, is_current};
use super::extract::{Body, Path};
use super::permit::{Change, GuestFor};
use super::{Api, ApiError, Data, ErrorBody, GuestEdited};
use crate::domain::InterfaceEdit;

/// Changes a network interface. A running guest gets all of it at once. `If-Match` must hold the
/// `ETag` of the guest that was read.
#[utoipa::path(patch, path = "/api/v1/guests/{guest}/interfaces/{interface}", tag = "guests",
    request_body = InterfaceEdit,
    params(("guest" = String, Path, description = "Name or UUID"),
        ("interface" = String, Path, description = "net0, …"),
        ("If-Match" = String, Header, description = "The ETag that was read")),
    responses((status = 200, body = Data<GuestEdited>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 412, body = ErrorBody), (status = 428, body = ErrorBody)))]
pub async fn edit_interface(
    State(api): State<Api>,
    on: GuestFor<Change>,
    Path((_, interface)): Path<(String, String)>,
    headers: HeaderMap,
    Body(edit): Body<InterfaceEdit>,
) -> Result<Response, ApiError> {
    let stored = on.stored;
    if !is_current(&headers, stored.revision)? {
        let name = stored.value.name.to_string();
        return Err(crate::guests::GuestError::Changed(name).into());
    }
    let edited = api
        .guests
        .edit_interface(&stored, &interface, &edit)
        .await?;
    let etag = etag(edited.revision);
    let data = GuestEdited {
        guest: api.view(edited.value).await?,
        restart_needed: false,
    };
    Ok(([(header::ETAG, etag)], Data { data }).into_response())
}
