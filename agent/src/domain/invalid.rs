//! Why a value is refused.

use thiserror::Error;

/// A value that cannot be: one sentence with the field, what it says, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field} = {value}: {must}")]
pub struct Invalid {
    /// The field, as the request names it.
    pub field: String,
    /// What it says, shortened.
    pub value: String,
    /// What it must be.
    pub must: String,
}

/// Longest part of a value that an error repeats, in characters.
const SHOWN: usize = 60;

impl Invalid {
    /// A text that cannot be.
    pub fn text(field: impl Into<String>, value: &str, must: impl Into<String>) -> Self {
        let mut shown: String = value.chars().take(SHOWN).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        Self {
            field: field.into(),
            value: format!("{shown:?}"),
            must: must.into(),
        }
    }

    /// A number that cannot be.
    pub fn number(
        field: impl Into<String>,
        value: impl std::fmt::Display,
        must: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            value: value.to_string(),
            must: must.into(),
        }
    }
}

/// Refuses `value` outside of `range`.
pub(crate) fn within(
    field: &str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
    unit: &str,
) -> Result<(), Invalid> {
    if range.contains(&value) {
        return Ok(());
    }
    let must = format!("must be {} to {}{unit}", range.start(), range.end());
    Err(Invalid::number(field, value, must))
}
