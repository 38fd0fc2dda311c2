//! Wire types of `pindah-vmm`: what a configuration file and the API socket say.
//!
//! These are plain data. `pindah-vmm` validates them once (`pindah_vmm::config`); the agent
//! depends on this crate and never on the VMM itself. Units stand in the names of fields;
//! unknown fields are refused.

mod config;

pub use config::*;
