//! Any node answers for all: a request about what another node has is passed on to it.
//!
//! Guests and tasks lead to their node by their records, nodes by their name, and anything by the
//! header `Pindah-Node`. What came from a node is never passed on again.

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::auth::FromNode;
use super::{Api, ApiError, ErrorCode};
use crate::peer::PeerError;
use crate::security::{Principal, Right};

/// The node that is to do what is asked for.
pub const NODE: HeaderName = HeaderName::from_static("pindah-node");

impl From<PeerError> for ApiError {
    fn from(error: PeerError) -> Self {
        let code = match error {
            PeerError::Store(error) => return error.into(),
            PeerError::Unknown(_) => ErrorCode::NotFound,
            PeerError::Unreachable { .. } => ErrorCode::NodeUnreachable,
            PeerError::Timeout { .. } => ErrorCode::NodeTimeout,
            PeerError::Refused { .. } => ErrorCode::Conflict,
            PeerError::Answer { .. } => ErrorCode::Internal,
        };
        Self::of(code, &error)
    }
}

/// Passes a request on, or lets it through.
pub(super) async fn route(State(api): State<Api>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let target = target(&api, &parts).await;
    let request = Request::from_parts(parts, body);
    match target {
        Ok(None) => next.run(request).await,
        Ok(Some(node)) => forward(&api, &node, request).await.into_response(),
        Err(error) => error.into_response(),
    }
}

async fn forward(api: &Api, node: &str, request: Request) -> Result<Response, ApiError> {
    let Some(peers) = api.peers() else {
        return Err(PeerError::Unknown(node.chars().take(64).collect()).into());
    };
    let Some(principal) = request.extensions().get::<Principal>().cloned() else {
        let message = "this needs a token: send Authorization: Bearer TOKEN";
        return Err(ApiError::new(ErrorCode::Unauthorized, message));
    };
    Ok(peers.forward(node, &principal, request).await?)
}

/// The other node whose request it is. `None`: it is ours, or anybody's.
async fn target(api: &Api, request: &Parts) -> Result<Option<String>, ApiError> {
    if request.extensions.get::<FromNode>().is_some() {
        return Ok(None);
    }
    let named = request.headers.get(NODE);
    if let Some(node) = named.and_then(|node| node.to_str().ok()) {
        return Ok(Some(node.to_owned()).filter(|node| *node != api.node));
    }
    let principal = request.extensions.get::<Principal>();
    let Some(principal) = principal.filter(|_| api.peers().is_some()) else {
        return Ok(None);
    };
    let path = request.uri.path();
    let mut parts = path.trim_start_matches("/api/v1/").splitn(3, '/');
    let (noun, subject, rest) = (parts.next(), parts.next(), parts.next());
    let owner = match (noun, subject) {
        (Some("guests"), Some(guest)) if rest.is_none() && request.method == Method::DELETE => {
            let owner = guest_owner(api, principal, guest).await?;
            // Whose node is gone for good can only be forgotten, and that anybody can do.
            match owner {
                Some(node) if is_removed(api, &node).await? => None,
                owner => owner,
            }
        }
        // Joined from all nodes by whichever is asked.
        (Some("guests"), Some(_)) if rest == Some("history") => None,
        (Some("guests"), Some(guest)) if rest.is_some() => {
            guest_owner(api, principal, guest).await?
        }
        (Some("nodes"), Some(node)) if rest.is_some() => Some(node.to_owned()),
        (Some("tasks"), Some(task)) => task_owner(api, principal, task).await?,
        _ => None,
    };
    Ok(owner.filter(|node| *node != api.node))
}

async fn is_removed(api: &Api, node: &str) -> Result<bool, ApiError> {
    let Some(peers) = api.peers() else {
        return Ok(false);
    };
    match peers.find(node).await {
        Err(PeerError::Unknown(_)) => Ok(true),
        found => Ok(found.map(|_| false)?),
    }
}

/// `None` also if there is no such guest, or none that may be seen: our own answer says so.
async fn guest_owner(
    api: &Api,
    principal: &Principal,
    guest: &str,
) -> Result<Option<String>, ApiError> {
    match api.guests.find(guest).await {
        Ok(stored) => {
            let guest = stored.value;
            let seen = principal.grants.allow(guest.uuid, Right::Look);
            Ok(seen.then_some(guest.node))
        }
        Err(crate::guests::GuestError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn task_owner(
    api: &Api,
    principal: &Principal,
    task: &str,
) -> Result<Option<String>, ApiError> {
    let Ok(id) = Uuid::parse_str(task) else {
        return Ok(None);
    };
    let task = api.tasks.get(id).await?;
    let task = task.filter(|task| principal.sees_task(task));
    Ok(task.map(|task| task.node))
}
