//! The probe: a bare-metal guest that lives in ring 3 and measures what its VMM does to it.
//!
//! This half is the pure logic, which is tested on any host; `main.rs` is the guest.
#![no_std]

pub mod cmdline;
pub mod command;
pub mod content;
pub mod frame;
pub mod gap;
pub mod histogram;
pub mod json;
pub mod pace;
