//! The unit of saved state: a section that carries its kind, its owner and its version.
//!
//! A body is a CBOR map (RFC 8949): fields that a reader does not know are ignored and fields
//! that are missing take their default, so that a guest moves between neighbouring versions.

use ciborium::Value;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// State of one part of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// What it is the state of: `vcpu`, `virtio-blk`, `serial`, …
    pub kind: String,
    /// Which one: the device's id, the vCPU's number; empty where there is only one.
    pub id: String,
    /// Version of the body's meaning, raised when an old reader would misread it.
    pub version: u16,
    /// The state itself.
    pub body: Value,
}

/// Why state cannot be saved or restored.
#[derive(Debug, Error)]
pub enum StateError {
    /// A section that must be there is not.
    #[error("state has no section {kind} {id}")]
    Missing {
        /// Its kind.
        kind: String,
        /// Its id.
        id: String,
    },
    /// The section is newer than this program.
    #[error("state section {kind} {id} has version {version}, this program knows up to {known}")]
    Version {
        /// Its kind.
        kind: String,
        /// Its id.
        id: String,
        /// Its version.
        version: u16,
        /// The highest version that this program reads.
        known: u16,
    },
    /// The body does not decode, or cannot be encoded.
    #[error("state section {kind} {id} is malformed")]
    Body {
        /// Its kind.
        kind: String,
        /// Its id.
        id: String,
        /// What the codec found.
        #[source]
        source: ciborium::value::Error,
    },
    /// The body decodes, but what it says cannot be.
    #[error("state section {kind} {id} is invalid: {reason}")]
    Invalid {
        /// Its kind.
        kind: String,
        /// Its id.
        id: String,
        /// What is wrong.
        reason: String,
    },
}

impl Section {
    /// Encodes `body`.
    ///
    /// # Errors
    /// [`StateError::Body`] if it has no CBOR form.
    pub fn new<T: Serialize>(
        kind: &str,
        id: &str,
        version: u16,
        body: &T,
    ) -> Result<Self, StateError> {
        match Value::serialized(body) {
            Ok(body) => Ok(Self {
                kind: kind.to_owned(),
                id: id.to_owned(),
                version,
                body,
            }),
            Err(source) => Err(StateError::Body {
                kind: kind.to_owned(),
                id: id.to_owned(),
                source,
            }),
        }
    }

    /// Decodes the body, which must be of version `known` or older.
    ///
    /// # Errors
    /// [`StateError::Version`] or [`StateError::Body`].
    pub fn parse<T: DeserializeOwned>(&self, known: u16) -> Result<T, StateError> {
        if self.version > known {
            return Err(StateError::Version {
                kind: self.kind.clone(),
                id: self.id.clone(),
                version: self.version,
                known,
            });
        }
        self.body.deserialized().map_err(|source| StateError::Body {
            kind: self.kind.clone(),
            id: self.id.clone(),
            source,
        })
    }

    /// An error that says what is wrong in this section.
    pub fn invalid(&self, reason: impl Into<String>) -> StateError {
        StateError::Invalid {
            kind: self.kind.clone(),
            id: self.id.clone(),
            reason: reason.into(),
        }
    }
}
