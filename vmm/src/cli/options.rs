//! What stands behind a flag: sizes with a unit, `key=value` lists, names of choices.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pindah_vmm::config::SerialConfig;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};
use thiserror::Error;

/// Why a flag's value is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    /// Not a size.
    #[error("{0:?} is not a size: a number and a unit, as in 512M or 2G (K, M, G, T)")]
    Size(String),
    /// Not a whole number of MiB.
    #[error("{0:?} is not a whole number of MiB")]
    NotMib(String),
    /// A key that is not known.
    #[error("unknown option {key:?}; there are {known}")]
    Unknown {
        /// The key.
        key: String,
        /// What there is.
        known: String,
    },
    /// A key that stands twice.
    #[error("option {0:?} stands twice")]
    Twice(String),
    /// A key that must be there and is not.
    #[error("option {0:?} is missing")]
    Missing(&'static str),
    /// A value that cannot be.
    #[error("{key}={value}: {reason}")]
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// Not a console.
    #[error("{0:?} is none of stdio, off, file:PATH and socket:PATH")]
    Serial(String),
}

/// Bytes of `512M`; units are powers of 1024, and one must be there.
pub fn parse_size(text: &str) -> Result<u64, OptionError> {
    let refused = || OptionError::Size(text.to_owned());
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(refused()),
    };
    let number: u64 = digits.parse().map_err(|_| refused())?;
    number.checked_mul(1 << shift).ok_or_else(refused)
}

/// MiB of `2G`.
pub fn parse_mib(text: &str) -> Result<u64, OptionError> {
    let bytes = parse_size(text)?;
    if bytes.is_multiple_of(1 << 20) {
        Ok(bytes >> 20)
    } else {
        Err(OptionError::NotMib(text.to_owned()))
    }
}

/// A choice by the name that it has in a configuration file.
pub fn parse_choice<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, ValueError> {
    let deserializer: StrDeserializer<'_, ValueError> = text.into_deserializer();
    T::deserialize(deserializer)
}

/// `stdio`, `off`, `file:PATH` or `socket:PATH`.
pub fn parse_serial(text: &str) -> Result<SerialConfig, OptionError> {
    match text.split_once(':') {
        None if text == "stdio" => Ok(SerialConfig::Stdio),
        None if text == "off" => Ok(SerialConfig::Off),
        Some(("file", path)) => Ok(SerialConfig::File(PathBuf::from(path))),
        Some(("socket", path)) => Ok(SerialConfig::Socket(PathBuf::from(path))),
        _ => Err(OptionError::Serial(text.to_owned())),
    }
}

/// `key=value,flag,…`: a comma in a value is written twice.
pub struct Options {
    values: BTreeMap<String, String>,
}

impl Options {
    /// Splits `text`. Its first part may lack a key, which is then `first`.
    pub fn parse(text: &str, first: Option<&str>, known: &[&str]) -> Result<Self, OptionError> {
        let mut values = BTreeMap::new();
        for (index, part) in split(text).into_iter().enumerate() {
            let (key, value) = match (part.split_once('='), first) {
                (Some((key, value)), _) => (key.to_owned(), value.to_owned()),
                (None, Some(first)) if index == 0 => (first.to_owned(), part),
                (None, _) => (part, "true".to_owned()),
            };
            if !known.contains(&key.as_str()) {
                let known = known.join(", ");
                return Err(OptionError::Unknown { key, known });
            }
            if values.insert(key.clone(), value).is_some() {
                return Err(OptionError::Twice(key));
            }
        }
        Ok(Self { values })
    }

    /// The value of `key`, parsed.
    pub fn take<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, OptionError> {
        let Some(value) = self.values.remove(key) else {
            return Ok(None);
        };
        match parse(&value) {
            Ok(parsed) => Ok(Some(parsed)),
            Err(error) => Err(OptionError::Value {
                key: key.to_owned(),
                value,
                reason: error.to_string(),
            }),
        }
    }

    /// A number.
    pub fn number<T: std::str::FromStr>(&mut self, key: &str) -> Result<Option<T>, OptionError>
    where
        T::Err: std::fmt::Display,
    {
        self.take(key, str::parse)
    }

    /// A choice by the name that it has in a configuration file.
    pub fn choice<T: for<'de> Deserialize<'de>>(
        &mut self,
        key: &str,
    ) -> Result<Option<T>, OptionError> {
        self.take(key, parse_choice)
    }

    /// Text as it is.
    pub fn text(&mut self, key: &str) -> Option<String> {
        self.values.remove(key)
    }

    /// `key`, `key=true` or `key=false`.
    pub fn flag(&mut self, key: &str) -> Result<bool, OptionError> {
        Ok(self.number(key)?.unwrap_or(false))
    }
}

fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_needs_a_unit_and_fits() {
        for (text, expected) in [
            ("512M", Some(512 << 20)),
            ("2g", Some(2 << 30)),
            ("1GiB", Some(1 << 30)),
            ("4096B", Some(4096)),
            ("16777215T", Some(16_777_215 << 40)),
            ("16777216T", None),
            ("512", None),
            ("M", None),
            ("-1M", None),
            ("1.5G", None),
            ("1X", None),
            ("", None),
            ("1é", None),
        ] {
            assert_eq!(parse_size(text).ok(), expected, "{text}");
        }
        assert_eq!(parse_mib("1K"), Err(OptionError::NotMib("1K".into())));
    }

    #[test]
    fn serial_is_one_of_four() {
        assert_eq!(parse_serial("stdio"), Ok(SerialConfig::Stdio));
        assert_eq!(
            parse_serial("file:/a:b"),
            Ok(SerialConfig::File("/a:b".into()))
        );
        assert!(parse_serial("tcp:1").is_err());
        assert!(parse_serial("file").is_err());
    }

    #[test]
    fn options_have_keys_flags_and_doubled_commas() {
        let known = ["path", "format", "readonly"];
        let mut options = Options::parse("path=/a,,b,readonly,format=raw", None, &known).unwrap();
        assert_eq!(options.text("path").as_deref(), Some("/a,b"));
        assert!(options.flag("readonly").unwrap());
        assert_eq!(options.text("format").as_deref(), Some("raw"));
        let error = Options::parse("pth=/a", None, &known).err().unwrap();
        assert_eq!(
            error.to_string(),
            "unknown option \"pth\"; there are path, format, readonly"
        );
        let twice = Options::parse("path=/a,path=/b", None, &known)
            .err()
            .unwrap();
        assert_eq!(twice, OptionError::Twice("path".into()));
        let mut first = Options::parse("/a", Some("path"), &known).unwrap();
        assert_eq!(first.text("path").as_deref(), Some("/a"));
        let mut wrong = Options::parse("readonly=maybe", None, &known).unwrap();
        assert!(wrong.flag("readonly").is_err());
    }
}
