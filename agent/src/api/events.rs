//! Events as server-sent events (HTML Living Standard, section 9.2), of all nodes.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{self, KeepAlive};
use futures_util::{Stream, StreamExt, future, stream};
use reqwest::Method;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::Api;
use super::auth::FromNode;
use super::extract::Query;
use super::permit::Known;
use super::{ApiError, ErrorBody};
use crate::events::Event;
use crate::peer::Peers;

/// How long a node that cannot be listened to waits for the next try.
const RETRY: Duration = Duration::from_secs(2);
/// Events of other nodes that a reader may lag behind.
const LAG: usize = 256;
/// Longest line of another node's stream, in bytes.
const LINE_MAX: usize = 64 << 10;

/// Which events.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct WhichEvents {
    /// Also what guests and nodes take, every 10 seconds, and how far tasks are and what they log.
    #[serde(default)]
    #[param(required = false)]
    pub details: bool,
}

/// What happens from now on. Each event's data is JSON; an event `lagged` says that this reader
/// was too slow and missed some. The stream ends when the token is revoked or its roles change.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", params(WhichEvents),
    responses((status = 200, body = Event, content_type = "text/event-stream"),
        (status = 400, body = ErrorBody)))]
pub async fn stream_events(
    State(api): State<Api>,
    Known(principal): Known,
    from_node: Option<Extension<FromNode>>,
    Query(which): Query<WhichEvents>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let (sender, theirs) = mpsc::channel(LAG);
    if let (Some(peers), None) = (api.peers(), from_node) {
        tokio::spawn(listen_to_all(peers.clone(), sender));
    }
    let ours = stream::unfold(api.events.listen(), |mut events| async move {
        let event = match events.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(_)) => None,
            Err(RecvError::Closed) => return None,
        };
        Some((event, events))
    });
    let theirs = stream::unfold(theirs, |mut events: mpsc::Receiver<String>| async move {
        let data = events.recv().await?;
        // Of what a node of another version tells that we do not understand, nobody can say whom
        // it concerns.
        Some((serde_json::from_str::<Event>(&data).ok(), events))
    });
    let who = principal.clone();
    let denied = async move {
        api.until_denied(&who, |grants| *grants == who.grants).await;
    };
    let seen = move |event: Option<Event>| {
        let event = match event {
            Some(event) if event.kind.is_detail() && !which.details => None,
            Some(event) if !principal.sees_event(&event) => None,
            Some(event) => sse::Event::default().json_data(&event).ok(),
            None => Some(sse::Event::default().event("lagged").data("{}")),
        };
        future::ready(event)
    };
    let events = stream::select(ours, theirs).filter_map(seen).map(Ok);
    let events = events.take_until(Box::pin(denied));
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// Until nobody reads any more.
async fn listen_to_all(peers: Peers, sender: mpsc::Sender<String>) {
    let mut heard: Vec<String> = Vec::new();
    while !sender.is_closed() {
        for node in peers.all().await.unwrap_or_default() {
            if node.name != peers.this() && !heard.contains(&node.name) {
                heard.push(node.name.clone());
                tokio::spawn(listen_to(peers.clone(), node.name, sender.clone()));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = sender.closed() => {}
        }
    }
}

async fn listen_to(peers: Peers, node: String, sender: mpsc::Sender<String>) {
    loop {
        tokio::select! {
            () = listen_once(&peers, &node, &sender) => {}
            () = sender.closed() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = sender.closed() => return,
        }
    }
}

/// Until the connection ends.
async fn listen_once(peers: &Peers, node: &str, sender: &mpsc::Sender<String>) {
    let Ok(request) = peers
        .request(node, Method::GET, "/events?details=true")
        .await
    else {
        return;
    };
    let Ok(answer) = peers.answer(node, request).await else {
        return;
    };
    let mut pieces = answer.bytes_stream();
    let mut line = Vec::new();
    while let Some(Ok(piece)) = pieces.next().await {
        for &byte in &piece {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > LINE_MAX {
                    return;
                }
                continue;
            }
            let data = line.strip_prefix(b"data: ");
            let data = data.and_then(|data| String::from_utf8(data.to_vec()).ok());
            if let Some(data) = data
                && sender.send(data).await.is_err()
            {
                return;
            }
            line.clear();
        }
    }
}
