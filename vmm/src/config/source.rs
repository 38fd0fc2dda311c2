//! From text to the wire type, and from a field back to its line and column.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use pindah_vmm_api::VmConfig;
use serde_json::value::RawValue;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, MAX_FILE_BYTES};

/// How a configuration is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// TOML 1.0.
    Toml,
    /// JSON (RFC 8259).
    Json,
}

impl Format {
    /// By the name's extension, otherwise by the first character.
    pub fn of(path: &Path, text: &str) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => Self::Json,
            Some("toml") => Self::Toml,
            _ if text.trim_start().starts_with('{') => Self::Json,
            _ => Self::Toml,
        }
    }
}

/// A place in a configuration file: `vm.toml:12:9`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file's name, or what stands for it.
    pub origin: String,
    /// Line and column from 1, where known; columns count characters.
    pub line_column: Option<(usize, usize)>,
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line_column {
            Some((line, column)) => write!(formatter, "{}:{line}:{column}", self.origin),
            None => formatter.write_str(&self.origin),
        }
    }
}

/// Reads a file of bounded length.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source: io::Error| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ConfigError::TooLong {
            path: path.to_owned(),
        });
    }
    String::from_utf8(bytes).map_err(|error| ConfigError::Syntax {
        at: Location {
            origin: path.display().to_string(),
            line_column: None,
        },
        message: format!(
            "not UTF-8 from byte {} on",
            error.utf8_error().valid_up_to()
        ),
    })
}

/// Decodes the wire type.
pub(super) fn parse(text: &str, format: Format, origin: &str) -> Result<VmConfig, ConfigError> {
    let (message, line_column) = match format {
        Format::Toml => match parse_toml(text) {
            Ok(config) => return Ok(config),
            Err(failure) => failure,
        },
        Format::Json => match parse_json(text) {
            Ok(config) => return Ok(config),
            Err(failure) => failure,
        },
    };
    Err(ConfigError::Syntax {
        at: Location {
            origin: origin.to_owned(),
            line_column,
        },
        message,
    })
}

type Failure = (String, Option<(usize, usize)>);

fn parse_toml(text: &str) -> Result<VmConfig, Failure> {
    let position = |error: &toml::de::Error| error.span().map(|span| line_column(text, span.start));
    let document = toml::Deserializer::parse(text)
        .map_err(|error| (error.message().to_owned(), position(&error)))?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        let field = error.path().to_string();
        let error = error.into_inner();
        (with_field(&field, error.message()), position(&error))
    })
}

fn parse_json(text: &str) -> Result<VmConfig, Failure> {
    let mut document = serde_json::Deserializer::from_str(text);
    let position = |error: &serde_json::Error| Some((error.line(), error.column().max(1)));
    let config = serde_path_to_error::deserialize(&mut document).map_err(|error| {
        let field = error.path().to_string();
        let error = error.into_inner();
        let message = with_field(&field, &without_position(&error));
        (message, position(&error))
    })?;
    document
        .end()
        .map_err(|error| (without_position(&error), position(&error)))?;
    Ok(config)
}

fn with_field(field: &str, message: &str) -> String {
    match field {
        "." | "?" => message.to_owned(),
        field => format!("{field}: {message}"),
    }
}

/// `serde_json` appends the position to what it says; here it stands in front.
fn without_position(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    said.strip_suffix(&position).unwrap_or(&said).to_owned()
}

fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    (line, before[line_start..].chars().count() + 1)
}

/// Where the value of `field` (`disks[1].queues`) stands, or the nearest thing around it.
pub(super) fn locate(text: &str, format: Format, origin: &str, field: &str) -> Location {
    let path: Vec<&str> = field
        .split(['.', '[', ']'])
        .filter(|step| !step.is_empty())
        .collect();
    let offset = match format {
        Format::Toml => locate_toml(text, &path),
        Format::Json => locate_json(text, &path),
    };
    Location {
        origin: origin.to_owned(),
        line_column: offset.map(|offset| line_column(text, offset)),
    }
}

fn locate_toml(text: &str, path: &[&str]) -> Option<usize> {
    let document = DeValue::Table(DeTable::parse(text).ok()?.into_inner());
    let mut value = &document;
    let mut found = None;
    for step in path {
        let next = match step.parse::<usize>() {
            Ok(index) => value.get(index),
            Err(_) => value.get(*step),
        };
        let Some(next) = next else { break };
        found = Some(next.span().start);
        value = next.get_ref();
    }
    found
}

fn locate_json(text: &str, path: &[&str]) -> Option<usize> {
    let mut value: &RawValue = serde_json::from_str(text).ok()?;
    let mut found = None;
    for step in path {
        let next = match step.parse::<usize>() {
            Ok(index) => serde_json::from_str::<Vec<&RawValue>>(value.get())
                .ok()
                .and_then(|items| items.get(index).copied()),
            Err(_) => serde_json::from_str::<HashMap<String, &RawValue>>(value.get())
                .ok()
                .and_then(|fields| fields.get(*step).copied()),
        };
        let Some(next) = next else { break };
        value = next;
        // A raw value is a slice of the text that it was parsed from.
        found = (value.get().as_ptr() as usize).checked_sub(text.as_ptr() as usize);
    }
    found
}
