//! Bodies, paths and queries, refused in our own words.

use std::fmt::Display;
use std::ops::RangeInclusive;

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::unique::Unique;
use super::{ApiError, ErrorCode, objects};

/// A JSON body.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = axum::Json::<Box<RawValue>>::from_request(request, state).await;
        let axum::Json(text) = body.map_err(|rejection| refused(&rejection))?;
        let value = serde_json::from_str(text.get());
        let Unique(value) = value.map_err(|error| unreadable(&error))?;
        objects::from_value(value)
            .map(Self)
            .map_err(|error| ApiError::new(ErrorCode::InvalidValue, format!("the body: {error}")))
    }
}

fn refused(rejection: &JsonRejection) -> ApiError {
    match rejection {
        JsonRejection::MissingJsonContentType(_) => ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "a body must be JSON: send Content-Type: application/json (curl: --json)",
        ),
        JsonRejection::BytesRejection(_)
            if rejection.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE =>
        {
            let message = format!("the body is too large: at most {} bytes", super::BODY_MAX);
            ApiError::new(ErrorCode::BodyTooLarge, message)
        }
        other => unreadable(&other.body_text()),
    }
}

fn unreadable(why: &dyn Display) -> ApiError {
    ApiError::new(
        ErrorCode::BadRequest,
        format!("the body cannot be read: {why}"),
    )
}

/// A JSON body, or none at all.
pub struct OptionalBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let headers = request.headers();
        let length = headers.get(axum::http::header::CONTENT_LENGTH);
        let chunked = headers.contains_key(axum::http::header::TRANSFER_ENCODING);
        if !chunked && length.is_none_or(|length| length == "0") {
            return Ok(Self(T::default()));
        }
        Body::from_request(request, state)
            .await
            .map(|Body(body)| Self(body))
    }
}

/// What the path holds.
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        let refused = |error: axum::extract::rejection::PathRejection| {
            ApiError::new(
                ErrorCode::NotFound,
                format!("the path: {}", error.body_text()),
            )
        };
        path.map(|axum::extract::Path(value)| Self(value))
            .map_err(refused)
    }
}

/// What stands behind the question mark.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        let refused = |error: axum::extract::rejection::QueryRejection| {
            let text = error.body_text();
            let (_, reason) = text.split_once("query string: ").unwrap_or(("", &text));
            ApiError::new(ErrorCode::BadRequest, format!("the query: {reason}"))
        };
        query
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(refused)
    }
}

/// Refuses a number in the query outside of `range`.
pub(super) fn within_query<N: Copy + PartialOrd + Display>(
    field: &str,
    value: N,
    range: RangeInclusive<N>,
) -> Result<(), ApiError> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, most) = (range.start(), range.end());
    let message = format!("{field} = {value}: must be {least} to {most}");
    Err(ApiError::new(ErrorCode::BadRequest, message))
}
