//! Puts Pindah on a bare server: from an answer file, or asking on the console.
//!
//! ```text
//! answer file ─┐
//!              ├─> answers ─> disk ─> plan ─> steps ─> a disk that boots
//! screens ─────┘
//! ```
//!
//! What it asks of the live system, and what it leaves on the disk, is in [`install`].

#![forbid(unsafe_code)]

pub mod answers;
pub mod boot_sector;
pub mod disks;
pub mod end;
pub mod first_boot;
pub mod hardware;
pub mod install;
pub mod log;
pub mod machine;
pub mod menu;
pub mod program;
pub mod screens;
mod size;
pub mod turn;
pub mod unattended;
