//! What `pindah-vmm` does with unmodified Debian guests.
//!
//! One server serves all tests, two at a time. Names that begin with `full_`
//! are the rest of the matrix, for `ci/test --full`.

#[path = "vmm/boot.rs"]
mod boot;
#[path = "vmm/host.rs"]
mod host;
