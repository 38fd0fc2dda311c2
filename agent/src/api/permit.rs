//! What a request needs: a role for everything, or a right to the guest or task in its path.
//!
//! Who may not see a guest or task is told that there is none; who sees it and may not do what it
//! asks for is told which role that needs.

use std::marker::PhantomData;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use uuid::Uuid;

use super::auth::FromNode;
use super::{Api, ApiError, ErrorCode};
use crate::domain::{Guest, Task};
use crate::guests::GuestError;
use crate::peer;
use crate::security::{Principal, Right, Role};
use crate::store::Stored;

fn known(parts: &Parts) -> Result<Principal, ApiError> {
    let principal = parts.extensions.get::<Principal>().cloned();
    principal.ok_or_else(|| {
        let message = "this needs a token: send Authorization: Bearer TOKEN";
        ApiError::new(ErrorCode::Unauthorized, message)
    })
}

fn require(parts: &Parts, role: Role) -> Result<Principal, ApiError> {
    let principal = known(parts)?;
    if principal.grants.role.is_some_and(|has| has >= role) {
        return Ok(principal);
    }
    let (user, has) = (&principal.user, principal.grants.role);
    let has = has.map_or_else(
        || "roles for single guests only".to_owned(),
        |has| format!("the role {has}"),
    );
    let message = format!("this needs the role {role}, and {user} has {has}");
    Err(ApiError::new(ErrorCode::Forbidden, message))
}

/// Another node of the cluster, on its own behalf.
pub struct FromPeer;

impl<S: Sync> FromRequestParts<S> for FromPeer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let principal = require(parts, Role::Admin)?;
        let from_node = parts.extensions.get::<FromNode>().is_some();
        if from_node && principal.user.starts_with(peer::AS_NODE) {
            return Ok(Self);
        }
        let message = "only a node of the cluster may ask for this";
        Err(ApiError::new(ErrorCode::Forbidden, message))
    }
}

/// Somebody whom we know: what is answered is what this one may see.
pub struct Known(pub Principal);

/// Somebody who may look at everything.
pub struct Viewer;

/// Somebody who may run guests.
pub struct Operator(pub Principal);

/// Somebody who may do everything.
pub struct Admin(pub Principal);

impl<S: Sync> FromRequestParts<S> for Known {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        known(parts).map(Self)
    }
}

impl<S: Sync> FromRequestParts<S> for Viewer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        require(parts, Role::Viewer).map(|_| Self)
    }
}

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        require(parts, Role::Operator).map(Self)
    }
}

impl<S: Sync> FromRequestParts<S> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        require(parts, Role::Admin).map(Self)
    }
}

/// A right that a route needs.
pub trait Needs: Send {
    /// Which.
    const RIGHT: Right;
}

/// To see the guest.
pub struct Look;
/// To run it.
pub struct Run;
/// To change it.
pub struct Change;
/// To give others roles for it.
pub struct Share;

impl Needs for Look {
    const RIGHT: Right = Right::Look;
}

impl Needs for Run {
    const RIGHT: Right = Right::Run;
}

impl Needs for Change {
    const RIGHT: Right = Right::Change;
}

impl Needs for Share {
    const RIGHT: Right = Right::Share;
}

/// What the path has for `{wanted}`.
async fn in_path(parts: &mut Parts, wanted: &str) -> Result<String, ApiError> {
    let path = RawPathParams::from_request_parts(parts, &()).await;
    let path = path.map_err(|error| {
        let message = format!("the path: {}", error.body_text());
        ApiError::new(ErrorCode::NotFound, message)
    })?;
    let found = path.iter().find(|(name, _)| *name == wanted);
    Ok(found.map(|(_, text)| text.to_owned()).unwrap_or_default())
}

/// The guest in the path, for somebody who has the right to it.
pub struct GuestFor<R> {
    /// The guest.
    pub stored: Stored<Guest>,
    /// Who.
    pub principal: Principal,
    right: PhantomData<R>,
}

impl<R: Needs> FromRequestParts<Api> for GuestFor<R> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let principal = known(parts)?;
        let name = in_path(parts, "guest").await?;
        let stored = api.guests.find(&name).await?;
        let guest = &stored.value;
        if !principal.grants.allow(guest.uuid, Right::Look) {
            return Err(GuestError::not_found(&name).into());
        }
        require_right(&principal, guest, R::RIGHT)?;
        Ok(Self {
            stored,
            principal,
            right: PhantomData,
        })
    }
}

/// Refuses who sees a guest and may not do this to it.
fn require_right(principal: &Principal, guest: &Guest, right: Right) -> Result<(), ApiError> {
    if principal.grants.allow(guest.uuid, right) {
        return Ok(());
    }
    let message = format!(
        "this needs the role {} for guest {}, or {} for everything, which {} has not",
        right.role_for_guest(),
        guest.name,
        right.role(),
        principal.user
    );
    Err(ApiError::new(ErrorCode::Forbidden, message))
}

/// The task in the path, for somebody who has the right to its guest or, if it is about none, to
/// everything.
pub struct TaskFor<R> {
    /// The task.
    pub task: Task,
    right: PhantomData<R>,
}

impl<R: Needs> FromRequestParts<Api> for TaskFor<R> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let principal = known(parts)?;
        let id = in_path(parts, "task").await?;
        let task = match Uuid::parse_str(&id) {
            Ok(id) => api.tasks.get(id).await?,
            Err(_) => None,
        };
        let task = task.filter(|task| principal.may(task.guest, Right::Look));
        let task = task.ok_or_else(|| {
            let id: String = id.chars().take(64).collect();
            ApiError::new(ErrorCode::NotFound, format!("there is no task {id}"))
        })?;
        if !principal.may(task.guest, R::RIGHT) {
            let (role, user) = (R::RIGHT.role(), &principal.user);
            let message = format!(
                "task {} ({}): this needs the role {role}, which {user} has not",
                task.id, task.kind
            );
            return Err(ApiError::new(ErrorCode::Forbidden, message));
        }
        Ok(Self {
            task,
            right: PhantomData,
        })
    }
}
