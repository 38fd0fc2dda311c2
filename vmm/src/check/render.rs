//! The report as a table for a terminal.

use super::{Level, Report};

const WIDTH: usize = 80;
/// Mark, name and what lies between.
const INDENT: usize = 30;
const NAME: usize = 23;

pub(super) fn render(report: &Report, colour: bool) -> String {
    let paint = |code: &str, text: &str| {
        if colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    };
    let mut lines = Vec::new();
    for section in &report.sections {
        lines.push(paint("1", section.name));
        for finding in &section.findings {
            let mark = match finding.level {
                Level::Good => paint("32", "ok"),
                Level::Limited => paint("33", "--"),
                Level::Fatal => paint("31", "!!"),
            };
            let mut rows = wrap(&finding.value);
            let first = rows.remove(0);
            lines.push(format!("  {mark}  {:NAME$} {first}", finding.name));
            for (label, text) in [("cost", &finding.cost), ("mend", &finding.remedy)] {
                if let Some(text) = text {
                    rows.extend(wrap(&format!("{label}: {text}")));
                }
            }
            lines.extend(rows.iter().map(|row| format!("{:INDENT$}{row}", "")));
        }
        lines.push(String::new());
    }
    lines.push(if report.usable {
        paint("32", "This host can run guests.")
    } else {
        let verdict = "This host cannot run guests; what is marked !! stands against it.";
        paint("31", verdict)
    });
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

/// Breaks text into rows that fit beside the names. A word that is longer has a row of its own.
fn wrap(text: &str) -> Vec<String> {
    let mut rows = vec![String::new()];
    for word in text.split_whitespace() {
        let row = rows.last_mut().expect("there is always one");
        if row.is_empty() {
            row.push_str(word);
        } else if row.chars().count() + 1 + word.chars().count() <= WIDTH - INDENT {
            row.push(' ');
            row.push_str(word);
        } else {
            rows.push(word.to_owned());
        }
    }
    rows
}
