//! The installer's screens: keyboard only, on a VGA console or a serial one.
//!
//! ```text
//! key ─> state ─> command ─> terminal ─> installation (a thread)
//!          │                                  │ steps, bytes, result
//!        view <───────────────────────────────┘
//! ```

mod form;
mod page;
mod state;
mod terminal;
mod view;

pub use terminal::run;

#[cfg(test)]
mod tests;
