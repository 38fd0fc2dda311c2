//! A request that is sent twice, because its answer was lost, is carried out once.

use std::time::Duration;

use axum::http::HeaderMap;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Accepted, Api, ApiError, ErrorCode};
use crate::domain::Task;
use crate::security::{Principal, hex};
use crate::store::{Collection, LeaseId, Outcome, Record, Transaction, encode};

/// The header that names a request.
const HEADER: &str = "idempotency-key";
/// How long a key is remembered.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    body_sha256: String,
    /// Absent while the request is looked at.
    task: Option<Uuid>,
}

impl Record for Known {
    const KIND: &'static str = "idempotency";
    const SCHEMA: u32 = 1;
}

/// A request that was not seen before; to be told what became of it.
struct Fresh {
    key: String,
    lease: LeaseId,
    body_sha256: String,
}

/// Whether a request was seen before.
enum Seen {
    /// It names no key.
    Unnamed,
    /// It was not.
    Fresh(Fresh),
    /// It was, and this task does it.
    Before(Box<Task>),
}

/// Begins what a request asks for, unless the same request was sent before.
pub(super) async fn begin_once<E: Into<ApiError>>(
    api: &Api,
    headers: &HeaderMap,
    principal: &Principal,
    request: &impl Serialize,
    begin: impl Future<Output = Result<Task, E>>,
) -> Result<Accepted, ApiError> {
    let fresh = match look(api, headers, principal, request).await? {
        Seen::Before(task) => return Ok(Accepted { task: *task }),
        Seen::Fresh(fresh) => Some(fresh),
        Seen::Unnamed => None,
    };
    match (begin.await, fresh) {
        (Ok(task), Some(fresh)) => {
            fresh.begun(api, &task).await?;
            Ok(Accepted { task })
        }
        (Ok(task), None) => Ok(Accepted { task }),
        (Err(error), Some(fresh)) => {
            fresh.refused(api).await?;
            Err(error.into())
        }
        (Err(error), None) => Err(error.into()),
    }
}

async fn look(
    api: &Api,
    headers: &HeaderMap,
    principal: &Principal,
    body: &impl Serialize,
) -> Result<Seen, ApiError> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(Seen::Unnamed);
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let name = value.to_str().unwrap_or_default();
    if name.is_empty() || name.len() > 64 || !name.chars().all(valid) {
        let message = "Idempotency-Key must be 1 to 64 letters, digits, - and _";
        return Err(ApiError::new(ErrorCode::BadRequest, message));
    }
    let bytes = serde_json::to_vec(body).unwrap_or_default();
    let body_sha256 = hex(digest(&SHA256, &bytes).as_ref());
    let id = format!("{}/{name}", principal.user);
    let known = Collection::<Known>::new(api.store.clone()).get(&id).await?;
    if let Some(known) = known {
        return before(api, &known.value, &body_sha256).await;
    }
    let key = Collection::<Known>::key(&id);
    let lease = api.store.grant_lease(REMEMBERED).await?;
    let record = Known {
        body_sha256: body_sha256.clone(),
        task: None,
    };
    let reserve =
        Transaction::new()
            .if_absent(&key)
            .put_leased(&key, encode(&key, &record)?, lease);
    match api.store.commit(reserve).await? {
        Outcome::Committed(_) => Ok(Seen::Fresh(Fresh {
            key,
            lease,
            body_sha256,
        })),
        Outcome::Conflict => Err(under_way()),
    }
}

async fn before(api: &Api, known: &Known, body_sha256: &str) -> Result<Seen, ApiError> {
    if known.body_sha256 != body_sha256 {
        let message = "this Idempotency-Key was used for another request; choose a new one";
        return Err(ApiError::new(ErrorCode::InvalidValue, message));
    }
    let task = match known.task {
        Some(id) => api.tasks.get(id).await?,
        None => None,
    };
    task.map(|task| Seen::Before(Box::new(task)))
        .ok_or_else(under_way)
}

fn under_way() -> ApiError {
    let message = "a request with this Idempotency-Key is under way; try again";
    ApiError::new(ErrorCode::Conflict, message)
}

impl Fresh {
    /// It was begun.
    async fn begun(self, api: &Api, task: &Task) -> Result<(), ApiError> {
        let record = Known {
            body_sha256: self.body_sha256,
            task: Some(task.id),
        };
        let value = encode(&self.key, &record)?;
        let done = Transaction::new().put_leased(&self.key, value, self.lease);
        api.store.commit(done).await?;
        Ok(())
    }

    /// It was refused: the same key may be tried again.
    async fn refused(self, api: &Api) -> Result<(), ApiError> {
        Ok(api.store.revoke_lease(self.lease).await?)
    }
}
