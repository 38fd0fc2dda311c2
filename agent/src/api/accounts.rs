//! Login, users and tokens.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::extract::{Body, Path};
use super::permit::Admin;
use super::{Api, ApiError, Data, ErrorBody, ErrorCode, Listing};
use crate::domain::Invalid;
use crate::security::{GUESTS_MAX, NewToken, NewUser, Role, Token, User};

/// A user who wants a token.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// The password.
    pub password: String,
}

/// A token for 12 hours.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct LoginAnswer {
    /// What to send as `Authorization: Bearer …`.
    pub token: String,
}

/// Gives a token for a password. Who fails too often has to wait.
#[utoipa::path(post, path = "/api/v1/login", tag = "accounts", request_body = Login, security(()),
    responses((status = 200, body = Data<LoginAnswer>), (status = 401, body = ErrorBody),
        (status = 429, body = ErrorBody)))]
pub async fn login(
    State(api): State<Api>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    Body(login): Body<Login>,
) -> Result<Data<LoginAnswer>, ApiError> {
    let Login { user, password } = login;
    api.limit_login(address.ip(), &user)?;
    let token = api.accounts.login(&user, password).await?;
    api.login_limit.succeeded(address.ip(), &user);
    let data = LoginAnswer { token };
    Ok(Data { data })
}

impl Api {
    /// Lets a try to log in count as a failure until it succeeds, and refuses one too many.
    pub(super) fn limit_login(&self, address: IpAddr, user: &str) -> Result<(), ApiError> {
        let now = Instant::now();
        if let Some(wait) = self.login_limit.must_wait(address, user, now) {
            let seconds = wait.as_secs() + 1;
            let message = format!("too many failed logins; try again in {seconds} s");
            return Err(ApiError::new(ErrorCode::TooManyRequests, message));
        }
        // Counted before the password is looked at: many tries at once are not free.
        self.login_limit.failed(address, user, now);
        Ok(())
    }

    /// Refuses roles for guests that do not exist.
    async fn require_guests(&self, guests: &BTreeMap<Uuid, Role>) -> Result<(), ApiError> {
        for guest in guests.keys().take(GUESTS_MAX) {
            if self.guests.by_uuid(*guest).await?.is_none() {
                let must = "there is no such guest";
                return Err(Invalid::text("guests", &guest.to_string(), must).into());
            }
        }
        Ok(())
    }
}

/// All users.
#[utoipa::path(get, path = "/api/v1/users", tag = "accounts",
    responses((status = 200, body = Listing<User>)))]
pub async fn list_users(State(api): State<Api>, _: Admin) -> Result<Listing<User>, ApiError> {
    Ok(Listing {
        data: api.accounts.users().await?,
        next: None,
    })
}

/// Makes a user.
#[utoipa::path(post, path = "/api/v1/users", tag = "accounts", request_body = NewUser,
    responses((status = 201, body = Data<User>), (status = 409, body = ErrorBody)))]
pub async fn create_user(
    State(api): State<Api>,
    _: Admin,
    Body(new): Body<NewUser>,
) -> Result<Response, ApiError> {
    api.require_guests(&new.guests).await?;
    let data = api.accounts.create_user(new).await?;
    Ok((StatusCode::CREATED, Data { data }).into_response())
}

/// One user.
#[utoipa::path(get, path = "/api/v1/users/{user}", tag = "accounts",
    params(("user" = String, Path)),
    responses((status = 200, body = Data<User>), (status = 404, body = ErrorBody)))]
pub async fn show_user(
    State(api): State<Api>,
    _: Admin,
    Path(name): Path<String>,
) -> Result<Data<User>, ApiError> {
    let data = api.accounts.user(&name).await?;
    Ok(Data { data })
}

/// Removes a user, and ends the logins there are.
#[utoipa::path(delete, path = "/api/v1/users/{user}", tag = "accounts",
    params(("user" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn delete_user(
    State(api): State<Api>,
    _: Admin,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.accounts.delete_user(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A token that was made.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct TokenCreated {
    /// What it is.
    pub token: Token,
    /// Its text, which is shown only here.
    pub text: String,
}

/// All tokens, logins too.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "accounts",
    responses((status = 200, body = Listing<Token>)))]
pub async fn list_tokens(State(api): State<Api>, _: Admin) -> Result<Listing<Token>, ApiError> {
    Ok(Listing {
        data: api.accounts.tokens().await?,
        next: None,
    })
}

/// Makes a token.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "accounts", request_body = NewToken,
    responses((status = 201, body = Data<TokenCreated>)))]
pub async fn create_token(
    State(api): State<Api>,
    _: Admin,
    Body(new): Body<NewToken>,
) -> Result<Response, ApiError> {
    api.require_guests(&new.guests).await?;
    let (token, text) = api.accounts.create_token(&new).await?;
    let data = TokenCreated { token, text };
    Ok((StatusCode::CREATED, Data { data }).into_response())
}

/// One token.
#[utoipa::path(get, path = "/api/v1/tokens/{token}", tag = "accounts",
    params(("token" = String, Path)),
    responses((status = 200, body = Data<Token>), (status = 404, body = ErrorBody)))]
pub async fn show_token(
    State(api): State<Api>,
    _: Admin,
    Path(id): Path<String>,
) -> Result<Data<Token>, ApiError> {
    let data = api.accounts.token(&id).await?;
    Ok(Data { data })
}

/// Revokes a token.
#[utoipa::path(delete, path = "/api/v1/tokens/{token}", tag = "accounts",
    params(("token" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn delete_token(
    State(api): State<Api>,
    _: Admin,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.accounts.delete_token(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
