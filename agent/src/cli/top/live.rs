//! `pindah top` on a terminal: a screen of its own, left as it was found.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use crossterm::style::Print;
use crossterm::terminal::{
    self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode,
};
use crossterm::{execute, queue};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{Seen, look, table};
use crate::client::{Client, ClientError};

/// Columns and rows of a terminal that does not tell.
const SIZE: (u16, u16) = (80, 24);

/// The terminal's other screen, without echo and cursor, until this is dropped.
struct Screen;

impl Screen {
    fn enter() -> anyhow::Result<Self> {
        enable_raw_mode().context("cannot set up the terminal")?;
        let screen = Self;
        execute!(std::io::stdout(), EnterAlternateScreen, Hide)?;
        Ok(screen)
    }

    fn draw(text: &str) -> std::io::Result<()> {
        let (width, height) = match terminal::size() {
            Ok(size) if size.0 > 0 && size.1 > 0 => size,
            _ => SIZE,
        };
        let mut stdout = std::io::stdout().lock();
        let mut row = 0;
        for line in text.lines().take(height.into()) {
            let line: String = line.chars().take(width.into()).collect();
            let end = Clear(ClearType::UntilNewLine);
            queue!(stdout, MoveTo(0, row), end, Print(line))?;
            row += 1;
        }
        if row < height {
            queue!(stdout, MoveTo(0, row), Clear(ClearType::FromCursorDown))?;
        }
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let shown = execute!(std::io::stdout(), Show, LeaveAlternateScreen);
        if shown.and_then(|()| disable_raw_mode()).is_err() {
            eprintln!("the terminal's settings are lost: run `reset`");
        }
    }
}

/// Until q, Esc or Ctrl-C is typed, or somebody ends us.
pub(super) async fn run(client: &Client, interval: Duration) -> anyhow::Result<()> {
    // Before the screen: why there is nothing to see must be readable.
    let mut seen = look(client).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut looks = look_often(client.clone(), interval);
    let _screen = Screen::enter()?;
    let mut events = read_events();
    let mut trouble = None;
    loop {
        Screen::draw(&page(&seen, trouble.as_deref(), interval))?;
        tokio::select! {
            look = looks.recv() => match look {
                Some(Ok(now)) => (seen, trouble) = (now, None),
                Some(Err(error)) => trouble = Some(crate::causes::chain(&error)),
                None => return Ok(()),
            },
            event = events.recv() => match event {
                Some(Event::Key(key)) if ends(key) => return Ok(()),
                Some(_) => {}
                None => return Ok(()),
            },
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

/// A task of its own, so that keys are heard while a node does not answer.
fn look_often(client: Client, interval: Duration) -> mpsc::Receiver<Result<Seen, ClientError>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(interval).await;
            if sender.send(look(&client).await).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// A thread that ends with the process: it waits for keys.
fn read_events() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

fn ends(key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

fn page(seen: &Seen, trouble: Option<&str>, interval: Duration) -> String {
    let running = seen.guests.iter();
    let running = running.filter(|guest| guest.state.has_process()).count();
    let (nodes, guests) = (seen.nodes.len(), seen.guests.len());
    let state = match trouble {
        Some(trouble) => format!("these are the last figures: {trouble}"),
        None => format!("every {} s", interval.as_secs()),
    };
    let text = table::text(seen);
    format!(
        "pindah top: {nodes} node(s), {running} of {guests} guest(s) run; q ends; {state}\n\n{text}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_escape_and_control_c_end_and_c_does_not() {
        let key = |code, modifiers| ends(KeyEvent::new(code, modifiers));
        let none = KeyModifiers::NONE;
        assert!(key(KeyCode::Char('q'), none));
        assert!(key(KeyCode::Esc, none));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!key(KeyCode::Char('c'), none));
    }
}
