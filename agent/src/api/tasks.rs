//! Tasks: list, show or wait, log, cancel.

use std::time::Duration;

use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use super::extract::{Query, within_query};
use super::permit::{Known, Look, Run, TaskFor};
use super::{Api, ApiError, Data, ErrorBody, Listing};
use crate::domain::Task;
use crate::tasks::LogLine;

/// Longest wait of one request, in seconds.
const WAIT_MAX_S: u64 = 60;

/// Most tasks in one answer.
const PAGE_MAX: usize = 1000;

/// Which part of the list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TasksQuery {
    /// At most so many, 1 to 1000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Those that are older than this `next` of an answer before.
    after: Option<Uuid>,
}

/// The last tasks, the newest first.
#[utoipa::path(get, path = "/api/v1/tasks", tag = "tasks", params(TasksQuery), responses(
    (status = 200, body = Listing<Task>)))]
pub async fn list_tasks(
    State(api): State<Api>,
    Known(principal): Known,
    Query(query): Query<TasksQuery>,
) -> Result<Listing<Task>, ApiError> {
    let limit = query.limit.unwrap_or(PAGE_MAX);
    within_query("limit", limit, 1..=PAGE_MAX)?;
    let mut tasks = api.tasks.list().await?;
    tasks.retain(|task| principal.sees_task(task));
    Ok(page(tasks, query.after, limit))
}

/// Part of `tasks`, the newest first. A task's id tells its age, so that a page goes on rightly
/// even if the task that it is to go on after has been removed.
fn page(tasks: Vec<Task>, after: Option<Uuid>, limit: usize) -> Listing<Task> {
    let older = tasks
        .into_iter()
        .filter(|task| after.is_none_or(|after| task.id < after));
    let mut data: Vec<Task> = older.take(limit + 1).collect();
    let more = data.len() > limit;
    data.truncate(limit);
    let last = data.last().map(|task| task.id.to_string());
    Listing {
        data,
        next: last.filter(|_| more),
    }
}

/// How long to wait.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Answer when the task has ended, or after so many seconds, at most 60.
    #[serde(default)]
    #[param(maximum = 60)]
    wait_s: u64,
}

/// One task.
#[utoipa::path(get, path = "/api/v1/tasks/{task}", tag = "tasks",
    params(("task" = Uuid, Path), WaitQuery),
    responses((status = 200, body = Data<Task>), (status = 404, body = ErrorBody)))]
pub async fn show_task(
    State(api): State<Api>,
    on: TaskFor<Look>,
    Query(query): Query<WaitQuery>,
) -> Result<Data<Task>, ApiError> {
    within_query("wait_s", query.wait_s, 0..=WAIT_MAX_S)?;
    let patience = Duration::from_secs(query.wait_s);
    let data = api.tasks.wait(on.task.id, patience).await?;
    // One that has just been pruned is shown as it was.
    let data = data.unwrap_or(on.task);
    Ok(Data { data })
}

/// Which lines.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
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
    on: TaskFor<Look>,
    Query(query): Query<LinesQuery>,
) -> Result<Listing<LogLine>, ApiError> {
    Ok(Listing {
        data: api.tasks.log(on.task.id, query.after),
        next: None,
    })
}

/// Asks a task to end. It leaves nothing half-made.
#[utoipa::path(post, path = "/api/v1/tasks/{task}/cancel", tag = "tasks",
    params(("task" = Uuid, Path)),
    responses((status = 200, body = Data<Task>), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn cancel_task(State(api): State<Api>, on: TaskFor<Run>) -> Result<Data<Task>, ApiError> {
    api.tasks.cancel(on.task.id).await?;
    let data = api.tasks.get(on.task.id).await?.unwrap_or(on.task);
    Ok(Data { data })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{TaskKind, TaskState};

    fn task(id: u128) -> Task {
        Task {
            id: Uuid::from_u128(id),
            kind: TaskKind::CreateGuest,
            subject: "web".to_owned(),
            guest: None,
            node: "node1".to_owned(),
            user: "root".to_owned(),
            state: TaskState::Done,
            progress: None,
            created_unix_ms: 0,
            ended_unix_ms: None,
            error: None,
            result: None,
        }
    }

    #[test]
    fn pages_go_on_after_a_task_that_is_gone() {
        let ids = |page: &Listing<Task>| -> Vec<u128> {
            page.data.iter().map(|task| task.id.as_u128()).collect()
        };
        let all = |gone: u128| -> Vec<Task> {
            let ids = (1..=5).rev().filter(|&id| id != gone);
            ids.map(task).collect()
        };
        let first = page(all(0), None, 2);
        assert_eq!(ids(&first), [5, 4]);
        let after = first.next.unwrap().parse().unwrap();
        let second = page(all(4), Some(after), 2);
        assert_eq!(ids(&second), [3, 2]);
        let after = second.next.unwrap().parse().unwrap();
        let last = page(all(0), Some(after), 2);
        assert_eq!((ids(&last), last.next), (vec![1], None));
        let exact = page(all(0), None, 5);
        assert_eq!((ids(&exact).len(), exact.next), (5, None));
    }
}
