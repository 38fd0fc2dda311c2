//! Who asks, and the line in the audit log.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{AUTHORIZATION, UPGRADE};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::session::{self, from_elsewhere};
use super::{Api, ApiError, ErrorCode};
use crate::clock::now_unix_ms;
use crate::events::{Changed, EventKind};
use crate::peer;
use crate::security::{AccountError, AuditEntry, Grants, Principal};

/// Marks a request that came to the port that only nodes may talk to: who asked is in its headers.
#[derive(Clone, Copy)]
pub(super) struct FromNode;

/// Who asked the node that passes this on. A node that was removed still has its certificate, and
/// is nobody.
async fn passed_on(api: &Api, headers: &HeaderMap) -> Option<Principal> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    api.peers()?.find(text(peer::FROM)?).await.ok()?;
    let role = text(peer::ROLE).map(|role| serde_json::from_value(role.into()));
    let guests = text(peer::GUESTS).map(serde_json::from_str);
    let grants = Grants {
        role: role.transpose().ok()?,
        guests: guests.transpose().ok()?.unwrap_or_default(),
    };
    Some(Principal {
        user: text(peer::USER)?.to_owned(),
        grants,
        token: text(peer::TOKEN)?.to_owned(),
    })
}

/// Finds out who asks, lets the request pass, and writes down what became of it. A request without
/// token passes too: paths that need one refuse it.
pub(super) async fn authenticate(
    State(api): State<Api>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let from_node = request.extensions().get::<FromNode>().is_some();
    let headers = request.headers().clone();
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    let principal = match bearer(&headers) {
        _ if from_node => Ok(passed_on(&api, &headers).await),
        None => by_cookie(&api, &headers, changes).await,
        Some(token) => api
            .accounts
            .authenticate(token)
            .await
            .map(Some)
            .map_err(ApiError::from),
    };
    let principal = match principal {
        Ok(principal) => principal,
        Err(error) => return error.into_response(),
    };
    let entry = changes.then(|| AuditEntry {
        time_unix_ms: now_unix_ms(),
        user: principal
            .as_ref()
            .map_or_else(String::new, |principal| principal.user.clone()),
        token: principal
            .as_ref()
            .map_or_else(String::new, |principal| principal.token.clone()),
        address: address.ip().to_string(),
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        status: 0,
    });
    if let Some(principal) = principal {
        request.extensions_mut().insert(principal);
    }
    let what = Changed::by(request.uri().path()).filter(|_| changes && !from_node);
    let response = next.run(request).await;
    if let Some(what) = what.filter(|_| response.status().is_success()) {
        api.events.tell(EventKind::Changed { what });
    }
    if let Some(mut entry) = entry {
        entry.status = response.status().as_u16();
        let api = api.clone();
        tokio::task::spawn_blocking(move || api.audit.write(&entry));
    }
    response
}

/// Who has logged in to the web page. A browser sends its cookie along whoever made it ask: what
/// changes something, and the console, is for the page itself only.
async fn by_cookie(
    api: &Api,
    headers: &HeaderMap,
    changes: bool,
) -> Result<Option<Principal>, ApiError> {
    let Some(token) = session::cookie(headers) else {
        return Ok(None);
    };
    let principal = match api.accounts.authenticate(token).await {
        // Who has an old cookie must be able to log in again.
        Err(AccountError::Denied) => return Ok(None),
        principal => principal?,
    };
    if (changes || headers.contains_key(UPGRADE)) && from_elsewhere(headers) != Some(false) {
        let message = "with the page's cookie this can be asked for by the page itself only: \
                       its Origin is not this server; programs send Authorization: Bearer TOKEN";
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    }
    Ok(Some(principal))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
