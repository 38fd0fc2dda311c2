//! Tables for people, JSON for programs.

use std::io::Write as _;

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::clock::now_unix_ms;
use crate::metrics::GuestUsage;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(super) fn is_json(self) -> bool {
        self.json
    }

    /// `value` as JSON, or what `text` makes of it.
    pub(super) fn show<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let shown = if self.json {
            serde_json::to_string_pretty(value)?
        } else {
            text(value)
        };
        print(&shown)
    }
}

/// Prints a text as it is.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    // A reader that has enough is no failure.
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// A table without lines.
pub(super) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(head.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    trimmed(&table.to_string())
}

/// Names and what they stand for, a line each.
pub(super) fn properties(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = rows.iter().filter(|(_, value)| !value.is_empty());
    let lines: Vec<String> = lines
        .map(|(name, value)| format!("{name:width$}  {value}"))
        .collect();
    lines.join("\n")
}

fn trimmed(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// `5 min`, since `unix_ms`.
pub(super) fn age(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return "?".to_owned();
    }
    duration(now_unix_ms().saturating_sub(unix_ms) / 1000)
}

/// The largest unit of which there are two or more.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `1.5 GiB`.
pub(super) fn mib(mib: u64) -> String {
    match mib {
        0..1024 => format!("{mib} MiB"),
        1024..1_048_576 => format!("{:.1} GiB", mib as f64 / 1024.0).replace(".0 ", " "),
        _ => format!("{:.1} TiB", mib as f64 / 1_048_576.0).replace(".0 ", " "),
    }
}

/// A number with a digit after the point while that says something; `-` if it is not known.
pub(super) fn figure(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value < 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}

/// Memory that a guest uses: what it says itself, or else what its process holds.
pub(super) fn used(usage: &GuestUsage) -> String {
    let used_mib = usage.memory_used_mib.or(usage.memory_resident_mib);
    used_mib.map_or_else(|| "-".to_owned(), mib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(mib(512), "512 MiB");
        assert_eq!(mib(1536), "1.5 GiB");
        assert_eq!(mib(8192), "8 GiB");
        assert_eq!(duration(119), "119 s");
        assert_eq!(duration(120), "2 min");
        assert_eq!(duration(200_000), "2 d");
        assert_eq!(figure(Some(7.25)), "7.2");
        assert_eq!(figure(Some(123.4)), "123");
        assert_eq!(figure(None), "-");
    }

    #[test]
    fn table_has_a_head_and_no_blanks_at_the_end() {
        let text = table(
            &["NAME", "STATE"],
            [vec!["web".to_owned(), "running".to_owned()]],
        );
        assert_eq!(text, "NAME  STATE\nweb   running");
    }
}
