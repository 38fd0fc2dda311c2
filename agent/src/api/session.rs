//! The web page's login: a cookie that scripts cannot read, good for as long as the page is open
//! and a little longer.
//!
//! The cookie holds a login's token, so it is good on every node as tokens are, and ends with the
//! user. A browser that serves somebody else's page sends it nowhere (`SameSite=Strict`), and what
//! would change something is refused unless the page itself asks (Fetch Metadata Request Headers,
//! section 2.3; RFC 6454, section 7).

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, State};
use axum::http::header::{COOKIE, HOST, ORIGIN, SET_COOKIE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::accounts::Login;
use super::extract::Body;
use super::permit::Known;
use super::{Api, ApiError, Data, ErrorBody, ErrorCode};
use crate::security::{Grants, Principal, SESSION_LIFE, login_of};

/// The prefix makes browsers refuse it unless it is `Secure`, of this host only and for all paths
/// (RFC 6265bis, section 4.1.3.2).
const NAME: &str = "__Host-pindah";

/// Who has logged in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionView {
    /// The user's name, or the token's.
    pub user: String,
    /// What the user may do.
    #[serde(flatten)]
    pub grants: Grants,
    /// The node that answers.
    pub node: String,
    /// The version of its agent.
    pub version: String,
}

impl SessionView {
    fn new(api: &Api, principal: Principal) -> Self {
        let user = login_of(&principal.user).unwrap_or(&principal.user);
        Self {
            user: user.to_owned(),
            grants: principal.grants,
            node: api.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The token in the page's cookie.
pub(super) fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(COOKIE).iter();
    let cookies = cookies.filter_map(|cookies| cookies.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';'));
    pairs.find_map(|pair| pair.trim().strip_prefix(NAME)?.strip_prefix('='))
}

/// Whether a browser says that another site's page asks; `None`: it says nothing.
pub(super) fn from_elsewhere(headers: &HeaderMap) -> Option<bool> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        return Some(site != "same-origin");
    }
    let origin = text(ORIGIN.as_str())?;
    let host = text(HOST.as_str()).unwrap_or_default();
    Some(origin.strip_prefix("https://") != Some(host))
}

fn set_cookie(token: &str, life_s: u64) -> [(HeaderName, String); 1] {
    let attributes = "Path=/; Secure; HttpOnly; SameSite=Strict";
    let cookie = format!("{NAME}={token}; Max-Age={life_s}; {attributes}");
    [(SET_COOKIE, cookie)]
}

/// Who asks, by cookie or token.
#[utoipa::path(get, path = "/api/v1/session", tag = "accounts",
    responses((status = 200, body = Data<SessionView>)))]
pub async fn show_session(State(api): State<Api>, Known(principal): Known) -> Data<SessionView> {
    let data = SessionView::new(&api, principal);
    Data { data }
}

/// Logs in to the web page: the token comes as a cookie, for an hour. Who fails too often has to
/// wait. With the cookie only the page itself can change something.
#[utoipa::path(post, path = "/api/v1/session", tag = "accounts", request_body = Login,
    security(()), responses((status = 200, body = Data<SessionView>),
        (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 429, body = ErrorBody)))]
pub async fn open_session(
    State(api): State<Api>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Body(login): Body<Login>,
) -> Result<Response, ApiError> {
    if from_elsewhere(&headers) == Some(true) {
        let message = "only the page itself can log in to it: its Origin is not this server";
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    }
    let Login { user, password } = login;
    api.limit_login(address.ip(), &user)?;
    let token = api.accounts.open_session(&user, password).await?;
    api.login_limit.succeeded(address.ip(), &user);
    let principal = api.accounts.authenticate(&token).await?;
    let data = SessionView::new(&api, principal);
    Ok((set_cookie(&token, SESSION_LIFE.as_secs()), Data { data }).into_response())
}

/// Makes the login good for another hour.
#[utoipa::path(put, path = "/api/v1/session", tag = "accounts",
    responses((status = 204), (status = 409, body = ErrorBody)))]
pub async fn renew_session(
    State(api): State<Api>,
    Known(principal): Known,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    api.accounts.renew_session(&principal.token).await?;
    let done = StatusCode::NO_CONTENT;
    Ok(match cookie(&headers) {
        Some(token) => (done, set_cookie(token, SESSION_LIFE.as_secs())).into_response(),
        None => done.into_response(),
    })
}

/// Logs out: the token is good no longer.
#[utoipa::path(delete, path = "/api/v1/session", tag = "accounts",
    responses((status = 204), (status = 409, body = ErrorBody)))]
pub async fn end_session(
    State(api): State<Api>,
    Known(principal): Known,
) -> Result<Response, ApiError> {
    api.accounts.end_session(&principal.token).await?;
    Ok((StatusCode::NO_CONTENT, set_cookie("", 0)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, axum::http::HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn cookie_is_found_among_others() {
        for (sent, found) in [
            ("__Host-pindah=pindah_1_2", Some("pindah_1_2")),
            ("theme=dark; __Host-pindah=a; x=y", Some("a")),
            ("__Host-pindah-other=a", None),
            ("pindah=a", None),
            ("", None),
        ] {
            assert_eq!(cookie(&headers(&[("cookie", sent)])), found, "{sent}");
        }
    }

    #[test]
    fn only_the_page_itself_is_from_here() {
        let host = ("host", "node1:7480");
        for (sent, elsewhere) in [
            (("origin", "https://node1:7480"), Some(false)),
            (("origin", "http://node1:7480"), Some(true)),
            (("origin", "https://node1"), Some(true)),
            (("origin", "null"), Some(true)),
            (("sec-fetch-site", "same-origin"), Some(false)),
            (("sec-fetch-site", "same-site"), Some(true)),
            (("sec-fetch-site", "cross-site"), Some(true)),
            (("accept", "*/*"), None),
        ] {
            assert_eq!(
                from_elsewhere(&headers(&[host, sent])),
                elsewhere,
                "{sent:?}"
            );
        }
    }
}
