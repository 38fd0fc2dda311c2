//! What the fuzz targets do with one input.
//!
//! Each target builds something mostly valid from the bytes, corrupts a part of it and feeds it
//! to the real code, whose threads, rings and files are made once and reset for each case. A case
//! fails by a panic, by never ending, or by an assertion: the guest's neighbours are untouched, and
//! after a reset the device works.
//!
//! `cargo fuzz run NAME` (in `vmm/`) looks for new inputs; `tests/bounded.rs` runs the same bodies
//! on stable for a bounded time.

pub mod api;
pub mod block;
pub mod config;
mod driver;
mod input;
pub mod kernel;
mod machine;
pub mod net;
pub mod pages;
pub mod pci;
mod platform;
pub mod queue;
pub mod state;
pub mod stream;
