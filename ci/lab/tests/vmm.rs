//! What `pindah-vmm` does with unmodified Debian guests.
//!
//! Each test has a server for itself while it runs; there are two. Names that begin with `full_`
//! are the rest of the matrix, for `ci/test --full`.

#[path = "vmm/boot.rs"]
mod boot;
#[path = "vmm/disk.rs"]
mod disk;
#[path = "vmm/firmware.rs"]
mod firmware;
#[path = "vmm/host.rs"]
mod host;
#[path = "vmm/lifecycle.rs"]
mod lifecycle;
#[path = "vmm/memory.rs"]
mod memory;
#[path = "vmm/network.rs"]
mod network;
#[path = "vmm/small_devices.rs"]
mod small_devices;
#[path = "vmm/snapshot.rs"]
mod snapshot;
