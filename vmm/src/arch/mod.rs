//! What is x86-64 about the machine.

pub mod x86_64;
