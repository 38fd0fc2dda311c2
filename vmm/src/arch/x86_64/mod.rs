//! Tables of the x86-64 PC: where things lie, and what a CPU shows.

pub mod baseline;
pub mod cpuid;
pub mod layout;
pub mod memory_map;
pub mod msr;
pub mod topology;
