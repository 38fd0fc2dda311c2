//! A real agent with real guests: the probe, on the host's KVM.
//!
//! Each test has an agent of its own, with its own state directory, on a port of its own. Where
//! `/dev/kvm` does not open, tests that need a guest say so and end.

mod accounts;
mod clone;
mod containment;
mod crash;
mod details;
mod disk_failure;
mod disk_limits;
mod disk_move;
mod disk_resize;
mod export;
mod full_disk;
mod guests;
mod harness;
mod history;
mod interface_edit;
mod interfaces;
mod iscsi;
mod killed;
mod memory;
mod metrics;
mod network;
mod networks;
mod nfs;
mod permissions;
mod pools;
#[path = "../programs/mod.rs"]
mod programs;
mod refused;
mod report;
mod revocation;
mod routed;
mod session;
mod silence;
mod stall;
mod survival;
mod terminal;
mod update;
mod web;
mod wire;
