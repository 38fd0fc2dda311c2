//! What changes something is carried out whether or not who asked for it waits: the server drops the
//! work on an answer when its connection ends, in the midst of whatever it is doing.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{ApiError, ErrorCode};

/// Answers a request that changes something from a task of its own.
pub(super) async fn detach(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        // The agent is about to end.
        Err(error) => ApiError::new(ErrorCode::Internal, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use axum::Router;
    use axum::body::Body;
    use axum::routing::post;
    use tokio::sync::Notify;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn change_is_carried_out_though_who_asked_has_gone() {
        let (begun, go_on, done) = (
            Arc::new(Notify::new()),
            Arc::new(Notify::new()),
            Arc::new(Notify::new()),
        );
        let parts = (Arc::clone(&begun), Arc::clone(&go_on), Arc::clone(&done));
        let handler = move || {
            let (begun, go_on, done) = parts.clone();
            async move {
                begun.notify_one();
                go_on.notified().await;
                done.notify_one();
            }
        };
        let router = Router::new()
            .route("/", post(handler))
            .layer(axum::middleware::from_fn(detach));
        let request = Request::post("/").body(Body::empty()).unwrap();
        let answer = tokio::spawn(router.oneshot(request));
        begun.notified().await;
        answer.abort();
        assert!(answer.await.unwrap_err().is_cancelled());
        go_on.notify_one();
        let carried_out = tokio::time::timeout(Duration::from_secs(60), done.notified());
        carried_out.await.expect("the change is carried out");
    }
}
