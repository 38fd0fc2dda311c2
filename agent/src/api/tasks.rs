//! Tasks: list, show or wait, log, cancel.

use std::time::Duration;

use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use super::auth::{Operator, Viewer};
use super::extract::{Path, Query};
use super::{Api, ApiError, Data, ErrorBody, ErrorCode, Listing};
use crate::domain::Task;
use crate::tasks::LogLine;

/// Longest wait of one request, in seconds.
const WAIT_MAX_S: u64 = 60;

/// The last tasks, the newest first.
#[utoipa::path(get, path = "/api/v1/tasks", tag = "tasks",
    responses((status = 200, body = Listing<Task>)))]
pub async fn list_tasks(State(api): State<Api>, _: Viewer) -> Result<Listing<Task>, ApiError> {
    Ok(Listing {
        data: api.tasks.list().await?,
        next: None,
    })
}

/// How long to wait.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct WaitQuery {
    /// Answer when the task has ended, or after so many seconds, at most 60.
    #[serde(default)]
    wait_s: u64,
}

/// One task.
#[utoipa::path(get, path = "/api/v1/tasks/{task}", tag = "tasks",
    params(("task" = Uuid, Path), WaitQuery),
    responses((status = 200, body = Data<Task>), (status = 404, body = ErrorBody)))]
pub async fn show_task(
    State(api): State<Api>,
    _: Viewer,
    Path(id): Path<Uuid>,
    Query(query): Query<WaitQuery>,
) -> Result<Data<Task>, ApiError> {
    let patience = Duration::from_secs(query.wait_s.min(WAIT_MAX_S));
    let task = api.tasks.wait(id, patience).await?;
    let data = task.ok_or_else(|| not_found(id))?;
    Ok(Data { data })
}

fn not_found(id: Uuid) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no task {id}"))
}

/// Which lines.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct LinesQuery {
    /// Leave out the first so many.
    #[serde(default)]
    after: usize,
}

/// A task's log.
#[utoipa::path(get, path = "/api/v1/tasks/{task}/log", tag = "tasks",
    params(("task" = Uuid, Path), LinesQuery),
    responses((status = 200, body = Listing<LogLine>), (status = 404, body = ErrorBody)))]
pub async fn task_log(
    State(api): State<Api>,
    _: Viewer,
    Path(id): Path<Uuid>,
    Query(query): Query<LinesQuery>,
) -> Result<Listing<LogLine>, ApiError> {
    api.tasks.get(id).await?.ok_or_else(|| not_found(id))?;
    Ok(Listing {
        data: api.tasks.log(id, query.after),
        next: None,
    })
}

/// Asks a task to end. It leaves nothing half-made.
#[utoipa::path(post, path = "/api/v1/tasks/{task}/cancel", tag = "tasks",
    params(("task" = Uuid, Path)),
    responses((status = 200, body = Data<Task>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn cancel_task(
    State(api): State<Api>,
    _: Operator,
    Path(id): Path<Uuid>,
) -> Result<Data<Task>, ApiError> {
    api.tasks.cancel(id).await?;
    let data = api.tasks.get(id).await?.ok_or_else(|| not_found(id))?;
    Ok(Data { data })
}
