//! One guest: its parts, its life and its doors to the outside.
//!
//! [`machine::Machine`] is what the API may ask of it, [`migratable::Migratable`] is the only
//! door for snapshot and migration, and [`events::Events`] tells who listens.

pub mod events;
pub mod machine;
pub mod migratable;
pub mod state;
