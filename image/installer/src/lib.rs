//! Puts Pindah on a bare server: from an answer file, or asking on the console.
//!
//! ```text
//! answer file ─┐
//!              ├─> answers ─> disk ─> plan ─> steps ─> a disk that boots
//! screens ─────┘
//! ```

#![forbid(unsafe_code)]

pub mod answers;
