//! Saving the history.

use serde::{Deserialize, Serialize};

use super::{Chardev, HISTORY_BYTES};
use crate::state::{Section, StateError};

const KIND: &str = "chardev";
const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct ChardevState {
    #[serde(default, with = "byte_string")]
    history: Vec<u8>,
}

impl Chardev {
    /// The history, as section `chardev` of this id. The guest does not depend on it, so a
    /// migration may send it while the guest still runs.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be encoded.
    pub fn save(&self, id: &str) -> Result<Section, StateError> {
        let history = self.history();
        Section::new(KIND, id, VERSION, &ChardevState { history })
    }

    /// Shows the saved history to everyone who connects from now on.
    ///
    /// # Errors
    /// [`StateError`]; the history is unchanged.
    pub fn restore(&self, section: &Section) -> Result<(), StateError> {
        let state: ChardevState = section.parse(VERSION)?;
        if state.history.len() > HISTORY_BYTES {
            return Err(section.invalid(format!("history of {} bytes", state.history.len())));
        }
        self.shared.output().restore(&state.history);
        Ok(())
    }
}

/// Bytes as a CBOR byte string (major type 2) instead of an array of numbers.
pub(crate) mod byte_string {
    use std::fmt;

    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    /// Writes a byte string.
    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    /// Reads a byte string.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("a byte string")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        from.deserialize_byte_buf(Bytes)
    }
}
