//! What the screens look like: 80 by 24 characters are enough, colours are not needed, and there is
//! nothing but ASCII, which a VGA console and every serial terminal have.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

use super::form::Form;
use super::page::Page;
use super::state::{State, View};

const LABEL_WIDTH: usize = 32;
const BAR_WIDTH: u64 = 60;

/// Draws `state`.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let rows = [
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(4),
        Constraint::Length(1),
    ];
    let [head, _, body, message, foot] = Layout::vertical(rows).areas(frame.area());
    let (title, keys) = headline(state);
    bar(frame, head, &format!(" Pindah: {title}"));
    bar(frame, foot, &format!(" {keys}"));
    match &state.view {
        View::Page(page) => draw_page(frame, body, state, *page),
        View::Progress { step, done, total } => {
            let filled = (done * BAR_WIDTH / total) as usize;
            let (full, empty) = ("#".repeat(filled), " ".repeat(BAR_WIDTH as usize - filled));
            let percent = done * 100 / total;
            let text = format!("{}\n\n[{full}{empty}] {percent} %", step.text());
            paragraph(frame, body, text, 0);
        }
        View::Result(Ok(text) | Err(text)) => paragraph(frame, body, text.clone(), 0),
    }
    if let Some(text) = &state.message {
        let style = Style::new().add_modifier(Modifier::BOLD);
        let text = Paragraph::new(format!("! {text}")).style(style);
        frame.render_widget(text.wrap(Wrap { trim: true }), message);
    }
}

fn headline(state: &State) -> (String, &'static str) {
    match &state.view {
        View::Page(page) => {
            let title = Page::ALL[*page].title();
            let title = format!("{title} ({} of {})", page + 1, Page::ALL.len());
            let keys = match Page::ALL[*page] {
                Page::Hardware => "Enter: go on   Up, Down: scroll   Esc: shell",
                Page::Summary => "Enter: INSTALL   Left, Right: choose   Esc: back",
                _ => "Enter: next   Up, Down, Tab: row   Left, Right: choose   Esc: back",
            };
            (title, keys)
        }
        View::Progress { .. } => ("Installing".to_owned(), "Do not turn the power off"),
        View::Result(Ok(_)) => ("Done".to_owned(), "Enter: go on"),
        View::Result(Err(_)) => (
            "The installation has failed".to_owned(),
            "Enter: shell   Esc: back to the pages",
        ),
    }
}

fn bar(frame: &mut Frame<'_>, area: Rect, text: &str) {
    let style = Style::new().add_modifier(Modifier::REVERSED);
    frame.render_widget(Paragraph::new(text.to_owned()).style(style), area);
}

fn paragraph(frame: &mut Frame<'_>, area: Rect, text: String, scroll: u16) {
    let text = Paragraph::new(text).wrap(Wrap { trim: true });
    frame.render_widget(text.scroll((scroll, 0)), area);
}

fn draw_page(frame: &mut Frame<'_>, body: Rect, state: &State, page: usize) {
    let form = &state.forms[page];
    let height = form.rows.len() as u16 + u16::from(!form.rows.is_empty());
    let [text_area, form_area] = if Page::ALL[page] == Page::Summary {
        let rows = [Constraint::Min(1), Constraint::Length(height)];
        Layout::vertical(rows).areas(body)
    } else {
        let rows = [Constraint::Length(height), Constraint::Min(1)];
        let [form, text] = Layout::vertical(rows).areas(body);
        [text, form]
    };
    paragraph(
        frame,
        text_area,
        explanation(state, page),
        state.scroll_of(page),
    );
    draw_form(frame, form_area, form);
}

fn draw_form(frame: &mut Frame<'_>, area: Rect, form: &Form) {
    let room = usize::from(area.width).saturating_sub(LABEL_WIDTH + 1);
    let rows = form.rows.iter().enumerate();
    let lines: Vec<Line<'_>> = rows
        .map(|(number, row)| {
            let shown = row.shown();
            // The end of what is too long, where the typing is.
            let skipped = shown.chars().count().saturating_sub(room);
            let mut shown: String = shown.chars().skip(skipped).collect();
            let focused = number == form.focus;
            if focused {
                shown = format!("{shown:<room$}");
            }
            let style = if focused {
                Style::new().add_modifier(Modifier::REVERSED)
            } else {
                Style::new()
            };
            Line::from(vec![
                Span::raw(format!("{:<LABEL_WIDTH$}", row.label)),
                Span::styled(shown, style),
            ])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), area);
}

/// What is said beside the rows.
fn explanation(state: &State, page: usize) -> String {
    let form = &state.forms[page];
    match Page::ALL[page] {
        Page::Hardware => {
            let hardware = &state.machine.hardware;
            let findings = hardware
                .findings
                .iter()
                .map(|finding| format!("\n{finding}"));
            format!("{}\n{}", hardware.machine, findings.collect::<String>())
        }
        Page::Disk => {
            let Some(disk) = state.machine.disks.get(form.choice_of(0)) else {
                return "The machine shows no disk.".to_owned();
            };
            let obstacle = disk.obstacle().map(|obstacle| format!("It {obstacle}."));
            let content = match &*disk.content {
                [] if obstacle.is_none() => "Nothing is on it.".to_owned(),
                [] => String::new(),
                lines => format!("On it:\n  {}", lines.join("\n  ")),
            };
            format!("{}\n{content}", obstacle.unwrap_or_default())
        }
        Page::Network => "Name servers are separated by spaces. With DHCP they are added to those \
                          that it names."
            .to_owned(),
        Page::Name => "The name is a node's name too: lower-case letters, digits, hyphens. Time \
                       zones are called like Asia/Jakarta or Europe/Berlin."
            .to_owned(),
        Page::Access => "The password is for this console, the key for SSH: one of them must be \
                         there. A key is the line of a file like id_ed25519.pub."
            .to_owned(),
        Page::Cluster => "A node for itself may begin or join a cluster later. To join one, run \
                          `pindah cluster token` on one of its nodes and type what it prints, or \
                          paste it on a serial console."
            .to_owned(),
        Page::Summary => {
            let lines = state.plan.as_ref().map(crate::install::Plan::summary);
            format!("{}\n", lines.unwrap_or_default().join("\n\n"))
        }
    }
}

impl State {
    fn scroll_of(&self, page: usize) -> u16 {
        if page == 0 { self.scroll } else { 0 }
    }
}
