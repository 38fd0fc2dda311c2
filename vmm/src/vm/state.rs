//! The state of a whole machine, as a snapshot's file and a migration carry it.

use std::collections::BTreeSet;

use pindah_vmm_api::VmConfig;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::state::{Section, StateError};

/// What the state's own layout means; raised when an old reader would misread it.
pub const STATE_VERSION: u16 = 1;

/// Longest encoded state that is taken, in bytes. 64 vCPUs with 8 KiB of XSAVE each, and every
/// device there can be, stay under a hundredth of it.
pub const MAX_STATE_BYTES: usize = 64 << 20;

/// Most sections that are taken.
const MAX_SECTIONS: usize = 4096;

/// Everything about a machine that is not in its RAM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmState {
    /// [`STATE_VERSION`] of the writer.
    pub version: u16,
    /// What the machine was built from. Addresses, slots and GSIs follow from it alone.
    pub config: VmConfig,
    /// The parts, in the order in which they are restored.
    pub sections: Vec<Section>,
}

/// Why encoded state is refused.
#[derive(Debug, Error)]
pub enum VmStateError {
    /// It cannot be encoded.
    #[error("the machine's state cannot be encoded")]
    Encode(#[source] ciborium::ser::Error<std::io::Error>),
    /// It is not CBOR, or not of this shape.
    #[error("the machine's state does not decode")]
    Decode(#[source] ciborium::de::Error<std::io::Error>),
    /// It is too long.
    #[error("the machine's state is {bytes} bytes long; {MAX_STATE_BYTES} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Something follows it.
    #[error("{bytes} bytes follow the machine's state")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// It is newer than this program.
    #[error("the machine's state has version {version}, this program knows up to {STATE_VERSION}")]
    Version {
        /// Its version.
        version: u16,
    },
    /// More sections than any machine has.
    #[error("the machine's state has {count} sections; {MAX_SECTIONS} are allowed")]
    TooManySections {
        /// How many.
        count: usize,
    },
    /// Two sections claim the same part.
    #[error("the machine's state has section {kind} {id} twice")]
    Duplicate {
        /// Its kind.
        kind: String,
        /// Its id.
        id: String,
    },
    /// A part that this program does not know: leaving it out would lose state.
    #[error("the machine's state has section {kind} {id}, which this program does not know")]
    UnknownKind {
        /// Its kind.
        kind: String,
        /// Its id.
        id: String,
    },
}

impl VmState {
    /// State of the present version.
    pub fn new(config: VmConfig, sections: Vec<Section>) -> Self {
        Self {
            version: STATE_VERSION,
            config,
            sections,
        }
    }

    /// The CBOR form.
    ///
    /// # Errors
    /// [`VmStateError::Encode`] or [`VmStateError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, VmStateError> {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).map_err(VmStateError::Encode)?;
        match bytes.len() {
            0..=MAX_STATE_BYTES => Ok(bytes),
            len => Err(VmStateError::TooLong { bytes: len }),
        }
    }

    /// Reads what [`Self::encode`] gave. The bytes are hostile.
    ///
    /// # Errors
    /// [`VmStateError`]; bodies of sections are looked at by their owners.
    pub fn decode(bytes: &[u8]) -> Result<Self, VmStateError> {
        if bytes.len() > MAX_STATE_BYTES {
            return Err(VmStateError::TooLong { bytes: bytes.len() });
        }
        let mut rest = bytes;
        let state: Self = ciborium::from_reader(&mut rest).map_err(VmStateError::Decode)?;
        if !rest.is_empty() {
            return Err(VmStateError::Trailing { bytes: rest.len() });
        }
        state.check()?;
        Ok(state)
    }

    /// What can be seen to be wrong without knowing the parts.
    pub(crate) fn check(&self) -> Result<(), VmStateError> {
        if self.version > STATE_VERSION {
            return Err(VmStateError::Version {
                version: self.version,
            });
        }
        if self.sections.len() > MAX_SECTIONS {
            return Err(VmStateError::TooManySections {
                count: self.sections.len(),
            });
        }
        let mut seen = BTreeSet::new();
        for Section { kind, id, .. } in &self.sections {
            if !seen.insert((kind, id)) {
                return Err(VmStateError::Duplicate {
                    kind: kind.clone(),
                    id: id.clone(),
                });
            }
        }
        Ok(())
    }

    /// Refuses sections of a kind that is not in `known`.
    ///
    /// # Errors
    /// [`VmStateError::UnknownKind`].
    pub fn require_known_kinds(&self, known: &[&str]) -> Result<(), VmStateError> {
        let stranger = self
            .sections
            .iter()
            .find(|section| !known.contains(&section.kind.as_str()));
        match stranger {
            None => Ok(()),
            Some(Section { kind, id, .. }) => Err(VmStateError::UnknownKind {
                kind: kind.clone(),
                id: id.clone(),
            }),
        }
    }

    /// The section of one part.
    ///
    /// # Errors
    /// [`StateError::Missing`].
    pub fn section(&self, kind: &str, id: &str) -> Result<&Section, StateError> {
        self.sections
            .iter()
            .find(|section| section.kind == kind && section.id == id)
            .ok_or_else(|| StateError::Missing {
                kind: kind.to_owned(),
                id: id.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state(sections: Vec<Section>) -> VmState {
        let config = serde_json::from_str(r#"{"memory": {"size_mib": 64}}"#).unwrap();
        VmState::new(config, sections)
    }

    fn section(kind: &str, id: &str) -> Section {
        Section::new(kind, id, 1, &[1_u8, 2, 3]).unwrap()
    }

    #[test]
    fn state_encoded_and_decoded_is_the_same() {
        let state = state(vec![section("vcpu", "0"), section("vcpu", "1")]);
        let bytes = state.encode().unwrap();
        assert_eq!(VmState::decode(&bytes).unwrap(), state);
        assert!(state.section("vcpu", "1").is_ok());
        assert!(state.section("vcpu", "2").is_err());
    }

    #[test]
    fn state_with_unknown_fields_decodes() {
        #[derive(Serialize)]
        struct Newer {
            #[serde(flatten)]
            state: VmState,
            novelty: u32,
        }
        let state = state(vec![]);
        let mut bytes = Vec::new();
        let newer = Newer {
            state: state.clone(),
            novelty: 7,
        };
        ciborium::into_writer(&newer, &mut bytes).unwrap();
        assert_eq!(VmState::decode(&bytes).unwrap(), state);
    }

    #[test]
    fn malformed_state_is_refused_with_its_reason() {
        let good = state(vec![section("vcpu", "0")]);
        let bytes = good.encode().unwrap();
        let truncated = VmState::decode(&bytes[..bytes.len() - 1]);
        assert!(matches!(truncated, Err(VmStateError::Decode(_))));
        let longer = [&bytes[..], &[0]].concat();
        let trailing = VmState::decode(&longer);
        assert!(matches!(trailing, Err(VmStateError::Trailing { bytes: 1 })));
        let mut newer = good.clone();
        newer.version += 1;
        let newer = VmState::decode(&newer.encode().unwrap());
        assert!(matches!(newer, Err(VmStateError::Version { version: 2 })));
        let twice = state(vec![section("vcpu", "0"), section("vcpu", "0")]);
        let twice = VmState::decode(&twice.encode().unwrap());
        assert!(matches!(twice, Err(VmStateError::Duplicate { .. })));
        assert!(good.require_known_kinds(&["vcpu"]).is_ok());
        let unknown = good.require_known_kinds(&["serial"]);
        assert!(matches!(unknown, Err(VmStateError::UnknownKind { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = VmState::decode(&bytes);
        }

        #[test]
        fn state_with_any_byte_changed_decodes_or_is_refused(at in 0_usize..4096, to in any::<u8>()) {
            let mut bytes = state(vec![section("vcpu", "0")]).encode().unwrap();
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = VmState::decode(&bytes);
        }
    }
}
