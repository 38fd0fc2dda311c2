//! Events as server-sent events (HTML Living Standard, section 9.2).

use std::convert::Infallible;

use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{self, KeepAlive};
use futures_util::{Stream, stream};
use tokio::sync::broadcast::error::RecvError;

use super::Api;
use super::auth::Viewer;
use crate::events::Event;

/// What happens from now on. Each event's data is JSON; an event `lagged` says that this reader
/// was too slow and missed some.
#[utoipa::path(get, path = "/api/v1/events", tag = "events",
    responses((status = 200, body = Event, content_type = "text/event-stream")))]
pub async fn stream_events(
    State(api): State<Api>,
    _: Viewer,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let events = stream::unfold(api.events.listen(), |mut events| async move {
        let event = match events.recv().await {
            Ok(event) => sse::Event::default()
                .json_data(&event)
                .unwrap_or_else(|_| sse::Event::default().event("lagged")),
            Err(RecvError::Lagged(_)) => sse::Event::default().event("lagged").data("{}"),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok(event), events))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}
