//! The answers that are no errors.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::Task;

/// What is known at once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Data<T> {
    /// It.
    pub data: T,
}

/// Part of a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Listing<T> {
    /// The part.
    pub data: Vec<T>,
    /// What to give as `after` for the next part; absent: this was the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What lasts.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    /// The task that does it.
    pub task: Task,
}

impl<T: Serialize> IntoResponse for Data<T> {
    fn into_response(self) -> Response {
        Json(self).into_response()
    }
}

impl<T: Serialize> IntoResponse for Listing<T> {
    fn into_response(self) -> Response {
        Json(self).into_response()
    }
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let location = format!("/api/v1/tasks/{}", self.task.id);
        let headers = [(header::LOCATION, location)];
        (StatusCode::ACCEPTED, headers, Json(self)).into_response()
    }
}
