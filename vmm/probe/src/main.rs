//! The guest. See the library's page for its command line and its lines.
#![no_std]
#![no_main]

mod apic;
mod boot;
mod boot_info;
mod end;
mod exits;
mod first;
mod listen;
mod machine;
mod memory;
mod paging;
mod pci;
mod report;
mod runtime;
mod serial;
mod shared;
mod smp;
mod tsc;
mod virtio;
mod window;
mod worker;
