//! The real binary on the host's KVM, with the probe as its guest.
//!
//! These run wherever `/dev/kvm` opens, nested or not: the probe lives in ring 3, which every
//! KVM runs natively. Where it does not open, each test says so and ends.

mod api_client;
mod disk_limits;
mod disk_locks;
mod harness;
mod life;
mod migration;
mod sandbox;
mod snapshot;
