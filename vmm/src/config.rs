//! One guest's configuration: a TOML or JSON file, or flags, through the wire type
//! [`VmConfig`] into [`Config`], validated once. Nothing checks again.
//!
//! ```text
//! file ─ source ─► VmConfig ─ validate ─► Config ─► builder
//! flags ─────────►
//! ```

mod devices;
mod source;
mod validate;

use std::ops::Deref;
use std::path::{Path, PathBuf};

pub use pindah_vmm_api::{SerialConfig, VmConfig};
use thiserror::Error;

pub use source::{Format, Location};
pub use validate::Invalid;

/// Largest configuration file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most vCPUs.
pub const MAX_VCPUS: u8 = 64;
/// Least guest RAM in MiB.
pub const MIN_MEMORY_MIB: u64 = 16;
/// Most guest RAM in MiB: 4 TiB, below the 46 address bits of the smallest server processors.
pub const MAX_MEMORY_MIB: u64 = 4 << 20;

/// Everything that the builder must know, and nothing that could be wrong by itself: ids and MAC
/// addresses are filled in, and no two claim the same. Whether the host has it all (files, taps,
/// memory) shows when it is opened.
///
/// Made only by validation; reads as the wire type that it was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config(VmConfig);

impl Deref for Config {
    type Target = VmConfig;

    fn deref(&self) -> &VmConfig {
        &self.0
    }
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is too long to be a configuration.
    #[error("configuration {path} is longer than {MAX_FILE_BYTES} bytes")]
    TooLong {
        /// Which file.
        path: PathBuf,
    },
    /// The text is not TOML or JSON, or not of the configuration's shape: an unknown field, a
    /// missing one, a value of another type.
    #[error("{at}: {message}")]
    Syntax {
        /// Where.
        at: Location,
        /// What is wrong.
        message: String,
    },
    /// A value cannot be.
    #[error("{at}: {invalid}")]
    Invalid {
        /// Where; only the file when the value stands nowhere in it.
        at: Location,
        /// Which value, and what is allowed.
        invalid: Invalid,
    },
}

impl Config {
    /// Reads and validates a file: JSON if its name ends in `.json`, TOML if in `.toml`, else
    /// whichever its first character says.
    ///
    /// # Errors
    /// [`ConfigError`], with file, line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = source::read(path)?;
        Self::parse(&text, Format::of(path, &text), &path.display().to_string())
    }

    /// Validates the text of a configuration that messages call `origin`.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] or [`ConfigError::Invalid`].
    pub fn parse(text: &str, format: Format, origin: &str) -> Result<Self, ConfigError> {
        let wire = source::parse(text, format, origin)?;
        Self::try_from(wire).map_err(|invalid| ConfigError::Invalid {
            at: source::locate(text, format, origin, &invalid.field),
            invalid,
        })
    }
}

#[cfg(test)]
mod tests;
