//! Edits name what they were made from: the `ETag` of an answer comes back as `If-Match`.

use axum::http::{HeaderMap, header};

use super::{ApiError, ErrorCode};
use crate::store::Revision;

/// What an answer says.
pub(super) fn etag(revision: Revision) -> String {
    format!("\"{}\"", revision.0)
}

/// Whether an edit was made from what is there now.
///
/// # Errors
/// The edit does not say what it was made from.
pub(super) fn is_current(headers: &HeaderMap, revision: Revision) -> Result<bool, ApiError> {
    let Some(expected) = headers.get(header::IF_MATCH) else {
        let message = "an edit needs If-Match with the ETag of what you read";
        return Err(ApiError::new(ErrorCode::PreconditionRequired, message));
    };
    Ok(expected.to_str().ok() == Some(etag(revision).as_str()))
}
