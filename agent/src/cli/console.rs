//! `pindah guest console`: the terminal becomes the guest's serial port.

use std::io::{IsTerminal, Write};

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::AsyncReadExt;
use tokio_tungstenite::tungstenite::Message;

use crate::client::Client;

/// Ctrl-]: leaves the console.
const DETACH: u8 = 0x1d;

/// A terminal without echo and line editing, until this is dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> anyhow::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("cannot set up the terminal")?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let restored = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
        if restored.is_err() {
            eprintln!("the terminal's settings are lost: run `reset`");
        }
    }
}

/// Until Ctrl-] is typed, the input ends, or the guest does.
pub(super) async fn run(client: &Client, guest: &str) -> anyhow::Result<()> {
    let socket = client
        .websocket(&format!("/guests/{guest}/console"))
        .await?;
    let (mut to_guest, mut from_guest) = socket.split();
    let terminal = RawTerminal::enter()?;
    if terminal.is_some() {
        eprint!("Connected to {guest}; leave with Ctrl-].\r\n");
    }
    let mut stdin = tokio::io::stdin();
    let mut typed = vec![0; 4096];
    let ended = loop {
        tokio::select! {
            message = from_guest.next() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    let mut stdout = std::io::stdout();
                    stdout.write_all(&bytes)?;
                    stdout.flush()?;
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(Some(frame)))) if !frame.reason.is_empty() => {
                    break frame.reason.to_string();
                }
                Some(Ok(_)) | None => break "the guest has ended".to_owned(),
                Some(Err(_)) => break "the connection broke".to_owned(),
            },
            read = stdin.read(&mut typed) => {
                let count = read?;
                let typed = &typed[..count];
                let detach = typed.iter().position(|&byte| byte == DETACH);
                let keys = &typed[..detach.unwrap_or(count)];
                if !keys.is_empty() {
                    to_guest.send(Message::Binary(keys.to_vec().into())).await?;
                }
                if detach.is_some() || count == 0 {
                    // The guest runs on whether or not this is heard.
                    let _ = to_guest.send(Message::Close(None)).await;
                    break "left the console; the guest runs on".to_owned();
                }
            }
        }
    };
    let live = terminal.is_some();
    drop(terminal);
    if live {
        eprintln!("\n{ended}");
    }
    // Reading standard input cannot be given up otherwise.
    std::io::stdout().flush()?;
    std::process::exit(0)
}
