//! Names of guests and files: what is safe in a path, a host name and a terminal.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Invalid;

/// Whether `text` is a host name's label in lower case: 1 to 63 letters, digits and inner hyphens,
/// from a letter on (RFC 1035, section 2.3.1).
pub fn is_label(text: &str) -> bool {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.chars().all(valid)
}

/// A guest's name: a label that is no UUID, unique in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "web", pattern = "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")]
pub struct GuestName(String);

impl GuestName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for GuestName {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        if is_label(&text) && uuid::Uuid::parse_str(&text).is_err() {
            return Ok(Self(text));
        }
        let must = "must be 1 to 63 lower-case letters, digits and hyphens, from a letter on, \
                    and no UUID";
        Err(Invalid::text("name", &text, must))
    }
}

impl From<GuestName> for String {
    fn from(name: GuestName) -> Self {
        name.0
    }
}

impl std::fmt::Display for GuestName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Name of a file in a pool: nothing that leads out of a directory or hides in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "debian.qcow2", pattern = "^[A-Za-z0-9][-+._A-Za-z0-9]{0,99}$")]
pub struct FileName(String);

impl FileName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same with another end, `extension`, which is short and plain.
    #[must_use]
    pub fn with_extension(&self, extension: &str) -> Self {
        let stem = self.0.rsplit_once('.').map_or(&*self.0, |(stem, _)| stem);
        Self(format!("{stem}.{extension}"))
    }
}

impl TryFrom<String> for FileName {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let valid = |c: char| c.is_ascii_alphanumeric() || "-+._".contains(c);
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts && text.len() <= 100 && text.chars().all(valid) {
            return Ok(Self(text));
        }
        let must = "must be 1 to 100 letters, digits and -+._, from a letter or digit on";
        Err(Invalid::text("file name", &text, must))
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn guest_name_is_a_label_and_no_uuid() {
        for name in ["web", "a", "db-2", &"a".repeat(63)] {
            assert!(GuestName::try_from(name.to_owned()).is_ok(), "{name}");
        }
        for name in [
            "",
            "Web",
            "2a",
            "-a",
            "a-",
            "a_b",
            "a.b",
            "a/b",
            "..",
            "wéb",
            "a b",
            "a\n",
            &"a".repeat(64),
            "a1a2a3a4-b1b2-c1c2-d1d2-d3d4d5d6d7d8",
            "a1a2a3a4b1b2c1c2d1d2d3d4d5d6d7d8",
        ] {
            assert!(GuestName::try_from(name.to_owned()).is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn file_name_never_leaves_its_directory(text in ".{0,120}") {
            if let Ok(name) = FileName::try_from(text) {
                let path = std::path::Path::new("/pool").join(name.as_str());
                prop_assert_eq!(path.parent(), Some(std::path::Path::new("/pool")));
                prop_assert_eq!(path.components().count(), 3);
                prop_assert!(!name.as_str().starts_with('.'));
            }
        }
    }
}
