//! Guests that `pindah-vmm` runs in a server.

mod console;

pub use console::Console;
