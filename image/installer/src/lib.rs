//! Puts Pindah on a bare server: from an answer file, or asking on the console.
//!
//! ```text
//! answer file ─┐
//!              ├─> answers ─> disk ─> plan ─> steps ─> a disk that boots
//! screens ─────┘
//! ```

#![forbid(unsafe_code)]

pub mod answers;
pub mod disks;
pub mod hardware;
pub mod program;
mod size;
