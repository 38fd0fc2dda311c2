//! The roles of users and tokens: give and take.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Body, Path};
use super::permit::{Admin, GuestFor, Share};
use super::{Api, ApiError, Data, ErrorBody};
use crate::security::{Account, GUESTS_MAX, GrantChange, Grants, Role};

/// A role to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleGrant {
    /// Which.
    pub role: Role,
}

impl Api {
    async fn change_grants(
        &self,
        account: Account<'_>,
        change: GrantChange,
    ) -> Result<Data<Grants>, ApiError> {
        if let GrantChange::Guest(_, Some(_)) = change {
            self.forget_deleted_guests(account).await?;
        }
        self.accounts.change(account, change).await?;
        let data = self.accounts.grants(account).await?;
        Ok(Data { data })
    }

    /// Roles for guests that are no more take no room from others.
    async fn forget_deleted_guests(&self, account: Account<'_>) -> Result<(), ApiError> {
        let grants = self.accounts.grants(account).await?;
        if grants.guests.len() < GUESTS_MAX {
            return Ok(());
        }
        for guest in grants.guests.into_keys() {
            if self.guests.by_uuid(guest).await?.is_none() {
                let forget = GrantChange::Guest(guest, None);
                self.accounts.change(account, forget).await?;
            }
        }
        Ok(())
    }
}

/// Gives a user a role for everything, or changes it. It counts at once, for logins too.
#[utoipa::path(put, path = "/api/v1/users/{user}/role", tag = "accounts", request_body = RoleGrant,
    params(("user" = String, Path)),
    responses((status = 200, body = Data<Grants>), (status = 404, body = ErrorBody)))]
pub async fn grant_user(
    State(api): State<Api>,
    _: Admin,
    Path(name): Path<String>,
    Body(grant): Body<RoleGrant>,
) -> Result<Data<Grants>, ApiError> {
    let change = GrantChange::Everything(Some(grant.role));
    api.change_grants(Account::User(&name), change).await
}

/// Takes a user's role for everything away; those for single guests stay.
#[utoipa::path(delete, path = "/api/v1/users/{user}/role", tag = "accounts",
    params(("user" = String, Path)),
    responses((status = 200, body = Data<Grants>), (status = 404, body = ErrorBody)))]
pub async fn revoke_user(
    State(api): State<Api>,
    _: Admin,
    Path(name): Path<String>,
) -> Result<Data<Grants>, ApiError> {
    let change = GrantChange::Everything(None);
    api.change_grants(Account::User(&name), change).await
}

/// Gives a user a role for one guest, or changes it. A guest's own admin may do so, too.
#[utoipa::path(put, path = "/api/v1/users/{user}/guests/{guest}", tag = "accounts",
    request_body = RoleGrant,
    params(("user" = String, Path), ("guest" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = Data<Grants>), (status = 404, body = ErrorBody)))]
pub async fn grant_user_guest(
    State(api): State<Api>,
    guest: GuestFor<Share>,
    Path((name, _)): Path<(String, String)>,
    Body(grant): Body<RoleGrant>,
) -> Result<Data<Grants>, ApiError> {
    let change = GrantChange::Guest(guest.stored.value.uuid, Some(grant.role));
    let grants = api.change_grants(Account::User(&name), change).await?;
    Ok(guest.only(grants))
}

/// Takes a user's role for one guest away.
#[utoipa::path(delete, path = "/api/v1/users/{user}/guests/{guest}", tag = "accounts",
    params(("user" = String, Path), ("guest" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = Data<Grants>), (status = 404, body = ErrorBody)))]
pub async fn revoke_user_guest(
    State(api): State<Api>,
    guest: GuestFor<Share>,
    Path((name, _)): Path<(String, String)>,
) -> Result<Data<Grants>, ApiError> {
    let change = GrantChange::Guest(guest.stored.value.uuid, None);
    let grants = api.change_grants(Account::User(&name), change).await?;
    Ok(guest.only(grants))
}

/// Gives a token a role for everything, or changes it.
#[utoipa::path(put, path = "/api/v1/tokens/{token}/role", tag = "accounts",
    request_body = RoleGrant, params(("token" = String, Path)),
    responses((status = 200, body = Data<Grants>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn grant_token(
    State(api): State<Api>,
    _: Admin,
    Path(id): Path<String>,
    Body(grant): Body<RoleGrant>,
) -> Result<Data<Grants>, ApiError> {
    let change = GrantChange::Everything(Some(grant.role));
    api.change_grants(Account::Token(&id), change).await
}

/// Takes a token's role for everything away; those for single guests stay.
#[utoipa::path(delete, path = "/api/v1/tokens/{token}/role", tag = "accounts",
    params(("token" = String, Path)),
    responses((status = 200, body = Data<Grants>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn revoke_token(
    State(api): State<Api>,
    _: Admin,
    Path(id): Path<String>,
) -> Result<Data<Grants>, ApiError> {
    let change = GrantChange::Everything(None);
    api.change_grants(Account::Token(&id), change).await
}

/// Gives a token a role for one guest, or changes it. A guest's own admin may do so, too.
#[utoipa::path(put, path = "/api/v1/tokens/{token}/guests/{guest}", tag = "accounts",
    request_body = RoleGrant,
    params(("token" = String, Path), ("guest" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = Data<Grants>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn grant_token_guest(
    State(api): State<Api>,
    guest: GuestFor<Share>,
    Path((id, _)): Path<(String, String)>,
    Body(grant): Body<RoleGrant>,
) -> Result<Data<Grants>, ApiError> {
    let change = GrantChange::Guest(guest.stored.value.uuid, Some(grant.role));
    let grants = api.change_grants(Account::Token(&id), change).await?;
    Ok(guest.only(grants))
}

/// Takes a token's role for one guest away.
#[utoipa::path(delete, path = "/api/v1/tokens/{token}/guests/{guest}", tag = "accounts",
    params(("token" = String, Path), ("guest" = String, Path, description = "Name or UUID")),
    responses((status = 200, body = Data<Grants>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn revoke_token_guest(
    State(api): State<Api>,
    guest: GuestFor<Share>,
    Path((id, _)): Path<(String, String)>,
) -> Result<Data<Grants>, ApiError> {
    let change = GrantChange::Guest(guest.stored.value.uuid, None);
    let grants = api.change_grants(Account::Token(&id), change).await?;
    Ok(guest.only(grants))
}

impl GuestFor<Share> {
    /// Of an account's roles, a guest's own admin sees those for that guest.
    fn only(&self, mut grants: Data<Grants>) -> Data<Grants> {
        if self.principal.grants.role != Some(Role::Admin) {
            let guest = self.stored.value.uuid;
            grants.data.role = None;
            grants.data.guests.retain(|uuid, _| *uuid == guest);
        }
        grants
    }
}
