//! Tables of the x86-64 PC: where things lie, and what a CPU shows.

pub mod acpi;
pub mod baseline;
pub mod cpuid;
pub mod features;
pub mod layout;
pub mod memory_map;
pub mod msr;
pub mod smbios;
pub mod topology;
