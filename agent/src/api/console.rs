//! A guest's serial port over a WebSocket: binary messages both ways, as the bytes come.

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::permit::{GuestFor, Run};
use super::{Api, ApiError, ErrorBody, ErrorCode};
use crate::security::{Grants, Right};
use crate::vmm_client::Console;

/// Largest message that a client may send, in bytes.
const MESSAGE_MAX: usize = 64 << 10;
/// How much is sent in one message, in bytes.
const CHUNK: usize = 16 << 10;
/// What a client hears whose console is taken away.
const DENIED: &str = "the token that opened this console may no longer use it";

/// Attaches to the serial port. What the guest wrote last comes first.
#[utoipa::path(get, path = "/api/v1/guests/{guest}/console", tag = "guests",
    params(("guest" = String, Path, description = "Name or UUID")),
    responses((status = 101, description = "a WebSocket of binary messages"),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn guest_console(
    State(api): State<Api>,
    on: GuestFor<Run>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|error| {
        let message = format!("the console is a WebSocket: {}", error.body_text());
        ApiError::new(ErrorCode::BadRequest, message)
    })?;
    let guest = on.stored.value;
    let console = api.guests.attach_console(&guest).await?;
    let denied = async move {
        let may_run = |grants: &Grants| grants.allow(guest.uuid, Right::Run);
        api.until_denied(&on.principal, may_run).await;
    };
    Ok(upgrade
        .max_message_size(MESSAGE_MAX)
        .on_upgrade(|socket| pump(socket, console, denied)))
}

/// Until either side ends, or who types may no longer do so.
async fn pump(mut socket: WebSocket, console: Console, denied: impl Future<Output = ()>) {
    let mut denied = std::pin::pin!(denied);
    let (mut output, mut input) = tokio::io::split(console);
    let mut chunk = vec![0; CHUNK];
    loop {
        tokio::select! {
            () = &mut denied => {
                let frame = CloseFrame {
                    code: close_code::POLICY,
                    reason: DENIED.into(),
                };
                // A client that is gone need not hear of it.
                let _ = socket.send(Message::Close(Some(frame))).await;
                return;
            }
            read = output.read(&mut chunk) => {
                let count = read.unwrap_or(0);
                if count == 0 {
                    // The guest has ended; a client that is gone need not hear of it.
                    let _ = socket.send(Message::Close(None)).await;
                    return;
                }
                let message = Message::Binary(chunk[..count].to_vec().into());
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            message = socket.recv() => {
                let typed = match message {
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Text(text))) => text.into(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                if input.write_all(&typed).await.is_err() {
                    return;
                }
            }
        }
    }
}
