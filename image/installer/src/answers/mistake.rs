//! What is wrong in an answer file, and where.

use std::fmt::{self, Display};
use std::ops::Range;

/// Something that is wrong in an answer file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// The line, from 1 on.
    pub line: usize,
    /// The column, in characters, from 1 on.
    pub column: usize,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl Mistake {
    pub(super) fn at(text: &str, offset: usize, message: String) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let begin = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.matches('\n').count() + 1;
        let column = before[begin..].chars().count() + 1;
        Self {
            line,
            column,
            message,
        }
    }

    /// What `toml` says of a text that it cannot read.
    pub(super) fn of_toml(text: &str, error: &toml::de::Error) -> Self {
        let offset = error.span().map_or(text.len(), |span| span.start);
        Self::at(text, offset, advice(error.message()))
    }
}

impl Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.line, self.column, self.message)
    }
}

/// Says what to do where serde only says what it met.
fn advice(message: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    if let Some((found, wanted)) = message
        .strip_prefix("invalid type: ")
        .and_then(|rest| rest.split_once(", expected "))
    {
        let found = found.replace("sequence", "list").replace("map", "table");
        let wanted = match wanted {
            "i64" => "a whole number",
            "a boolean" => "true or false",
            "a sequence" => "a list, in [ ]",
            "a string" => "text, in quotes",
            structure if structure.starts_with("struct ") => "a table of its own",
            other => other,
        };
        return format!("{found} cannot be here: write {wanted}");
    }
    if let Some((field, known)) = message
        .strip_prefix("unknown field ")
        .and_then(|rest| rest.split_once(", expected "))
    {
        return format!("there is no {field} here: write {known}, or leave it out");
    }
    if message.starts_with("duplicate key") {
        return "this is said twice: leave one of them out".to_owned();
    }
    format!("this is not TOML: {message}")
}

/// Mistakes while they are collected.
pub(super) struct Mistakes<'a> {
    text: &'a str,
    found: Vec<Mistake>,
}

impl<'a> Mistakes<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            found: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, place: Range<usize>, message: impl Into<String>) {
        let mistake = Mistake::at(self.text, place.start, message.into());
        self.found.push(mistake);
    }

    /// The text's end: where something is missing from the whole file.
    pub(super) fn end(&self) -> Range<usize> {
        let end = self.text.trim_end().len();
        end..end
    }

    /// `value` as `parse` reads it, or a mistake and nothing.
    pub(super) fn read<T>(
        &mut self,
        value: Option<toml::Spanned<String>>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = value?;
        match parse(value.get_ref()) {
            Ok(read) => Some(read),
            Err(message) => {
                self.add(value.span(), message);
                None
            }
        }
    }

    pub(super) fn into_result(mut self) -> Result<(), Vec<Mistake>> {
        self.found.sort();
        if self.found.is_empty() {
            Ok(())
        } else {
            Err(self.found)
        }
    }
}

pub(super) fn list(source: &impl Display, mistakes: &[Mistake]) -> String {
    let lines = mistakes.iter().map(|mistake| format!("{source}:{mistake}"));
    lines.collect::<Vec<_>>().join("\n")
}
