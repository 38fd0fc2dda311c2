//! Bodies that are larger than memory: they come piece by piece.

use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;

use super::{ApiError, ErrorCode};

/// How much of a body that is refused is passed over, in bytes, and for how long.
const PASSED_OVER_MAX: usize = 256 << 20;
const PASSED_OVER_DEADLINE: Duration = Duration::from_secs(5);
/// How long the next piece may take to come.
const PIECE_DEADLINE: Duration = Duration::from_secs(60);

/// What comes.
pub(super) struct Pieces(BodyDataStream);

impl Pieces {
    pub(super) fn new(body: Body) -> Self {
        Self(body.into_data_stream())
    }

    /// The next one; `None`: that was all.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let broken = |reason: String| {
            let message = format!("the upload broke off: {reason}");
            ApiError::new(ErrorCode::BadRequest, message)
        };
        match tokio::time::timeout(PIECE_DEADLINE, self.0.next()).await {
            Err(_) => Err(broken("nothing came for a minute".to_owned())),
            Ok(None) => Ok(None),
            Ok(Some(Err(error))) => Err(broken(error.to_string())),
            Ok(Some(Ok(piece))) => Ok(Some(piece)),
        }
    }

    /// The answer to an upload that is refused. A client hears it when it has sent all; there is an
    /// end to that, too.
    pub(super) async fn refuse(mut self, error: ApiError) -> Response {
        let rest = self.pass_over(PASSED_OVER_MAX);
        let _ = tokio::time::timeout(PASSED_OVER_DEADLINE, rest).await;
        ([(header::CONNECTION, "close")], error).into_response()
    }

    async fn pass_over(&mut self, most: usize) {
        let mut passed = 0;
        while let Some(Ok(piece)) = self.0.next().await {
            passed += piece.len();
            if passed > most {
                return;
            }
        }
    }
}

/// How many bytes are to come; 0 if nobody says.
pub(super) fn length(headers: &HeaderMap) -> u64 {
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    length.unwrap_or(0)
}
