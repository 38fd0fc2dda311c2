//! The real terminal, and the installation beside it.

use std::io::Stdout;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::Context as _;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal::{
    self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen,
};
use ratatui::crossterm::{cursor, execute};
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};

use super::form::Key;
use super::state::{Command, State};
use super::view;
use crate::answers::End;
use crate::end;
use crate::install::{Observer, Plan, Step};
use crate::log::Log;
use crate::machine::Machine;
use crate::program;
use crate::turn::{Taken, Turn};

/// How long a key is waited for before progress is looked at.
const TICK: Duration = Duration::from_millis(100);
/// What a terminal has that does not say (a serial line has no size).
const COLUMNS: u16 = 80;
const ROWS: u16 = 24;

type Screen = Terminal<CrosstermBackend<Stdout>>;

/// What the installation tells.
enum News {
    Step(Step),
    Bytes(u64, u64),
    End(Result<String, String>),
}

impl Observer for Sender<News> {
    fn step(&mut self, step: Step) {
        // Nobody listens after the screens have gone.
        let _ = self.send(News::Step(step));
    }

    fn bytes(&mut self, done: u64, total: u64) {
        let _ = self.send(News::Bytes(done, total));
    }
}

/// Asks, installs, and ends as it was told.
///
/// # Errors
/// There is no terminal, or the end cannot be carried out.
pub fn run(machine: Machine, log: &Log, log_file: &Path) -> anyhow::Result<()> {
    for finding in &machine.hardware.findings {
        log.say(&finding.to_string());
    }
    // What the kernel says is in the log, and would be in the middle of the screen.
    let _ = program::run("dmesg", &["--console-level", "emerg"], b"");
    let mut screen = open().context("the installer needs a terminal, or an answer file")?;
    let end = converse(&mut screen, State::new(machine), log, log_file);
    close();
    end::carry_out(end?)
}

fn open() -> std::io::Result<Screen> {
    terminal::enable_raw_mode()?;
    let mut output = std::io::stdout();
    execute!(output, EnterAlternateScreen, cursor::Hide)?;
    blank_screen()
}

/// An empty screen of the terminal's size now. It is never asked where its cursor is: a serial line
/// may have nobody at its other end who answers.
fn blank_screen() -> std::io::Result<Screen> {
    let mut output = std::io::stdout();
    execute!(output, Clear(ClearType::All))?;
    let area = match terminal::size() {
        Ok((columns, rows)) if columns >= COLUMNS / 2 && rows >= ROWS / 2 => (columns, rows),
        _ => (COLUMNS, ROWS),
    };
    let viewport = Viewport::Fixed(Rect::new(0, 0, area.0, area.1));
    Terminal::with_options(CrosstermBackend::new(output), TerminalOptions { viewport })
}

fn close() {
    let _ = execute!(std::io::stdout(), LeaveAlternateScreen, cursor::Show);
    let _ = terminal::disable_raw_mode();
}

fn converse(
    screen: &mut Screen,
    mut state: State,
    log: &Log,
    log_file: &Path,
) -> anyhow::Result<End> {
    let mut running: Option<(Receiver<News>, Turn)> = None;
    loop {
        if let Some((news, turn)) = running.take() {
            running = listen(&mut state, news, turn)?;
        }
        screen.draw(|frame| view::draw(frame, &state))?;
        if !event::poll(TICK)? {
            continue;
        }
        let Some(key) = read_key(screen)? else {
            continue;
        };
        match state.key(key) {
            Command::Nothing => {}
            Command::End(end) => return Ok(end),
            Command::Install(plan) => match Turn::take(log_file)? {
                Taken::Ours(turn) => {
                    state.begin();
                    running = Some((start(*plan, log), turn));
                }
                Taken::Theirs => state.message = Some(THEIRS.to_owned()),
                Taken::Done => state.message = Some(DONE.to_owned()),
            },
        }
    }
}

const THEIRS: &str = "the installer on another console is installing now: look there";
const DONE: &str = "this machine was installed from another console: start it again";

/// Takes in what the installation has said; nothing is left to listen to once it has ended.
fn listen(
    state: &mut State,
    news: Receiver<News>,
    turn: Turn,
) -> anyhow::Result<Option<(Receiver<News>, Turn)>> {
    while let Ok(one) = news.try_recv() {
        match one {
            News::Step(step) => state.step(step),
            News::Bytes(done, total) => state.bytes(done, total),
            News::End(result) => {
                if result.is_ok() {
                    turn.done()?;
                }
                state.end(result);
                return Ok(None);
            }
        }
    }
    Ok(Some((news, turn)))
}

fn start(plan: Plan, log: &Log) -> Receiver<News> {
    let (sender, receiver) = channel();
    for line in plan.summary() {
        log.say(&line);
    }
    let log = log.clone();
    std::thread::spawn(move || {
        let mut observer = sender.clone();
        let result = plan.run(&mut observer, &|| log.text());
        let result = match result {
            Ok(()) => Ok(plan.farewell()),
            Err(error) => Err(format!("{:#}", anyhow::Error::from(error))),
        };
        let (Ok(text) | Err(text)) = &result;
        log.say(text);
        let _ = sender.send(News::End(result));
    });
    receiver
}

fn read_key(screen: &mut Screen) -> std::io::Result<Option<Key>> {
    let key = match event::read()? {
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        Event::Resize(..) => {
            *screen = blank_screen()?;
            return Ok(None);
        }
        _ => return Ok(None),
    };
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        // What a serial line has garbled is drawn anew.
        if key.code == KeyCode::Char('l') {
            *screen = blank_screen()?;
        }
        return Ok(None);
    }
    Ok(match key.code {
        KeyCode::Up | KeyCode::BackTab => Some(Key::Up),
        KeyCode::Down | KeyCode::Tab => Some(Key::Down),
        KeyCode::Left => Some(Key::Left),
        KeyCode::Right => Some(Key::Right),
        KeyCode::Enter => Some(Key::Enter),
        KeyCode::Esc => Some(Key::Escape),
        KeyCode::Backspace | KeyCode::Delete => Some(Key::Backspace),
        KeyCode::Char(c) => Some(Key::Char(c)),
        _ => None,
    })
}
