//! Wire types of `pindah-vmm`: what a configuration file, the API socket and [`User`] on the command
//! line say.
//!
//! These are plain data. `pindah-vmm` validates them once (`pindah_vmm::config`); the agent
//! depends on this crate and never on the VMM itself. Units stand in the names of fields. What a
//! person or a client writes (configuration, request bodies) refuses unknown fields; what the VMM
//! answers may grow new ones, which readers pass over.
//!
//! `openapi.json` beside this crate's manifest is the API's description, made from these types.

mod config;
mod cpu;
mod disk_limits;
mod error;
mod event;
mod info;
mod metrics;
mod migration;
pub mod report;
mod request;
mod user;

pub use config::*;
pub use cpu::*;
pub use disk_limits::*;
pub use error::*;
pub use event::*;
pub use info::*;
pub use metrics::*;
pub use migration::*;
pub use request::*;
pub use user::*;

/// The OpenAPI 3.1 description of the API, as the VMM serves it.
pub const OPENAPI: &str = include_str!("../openapi.json");
