//! Three real agents with a real etcd of three members, each in a network namespace of its own.
//!
//! Tests that need what the host does not have (root, etcd, `/dev/kvm`) say so and end.

mod balance;
mod cpu;
mod disk_failure;
mod drain;
mod entry;
mod failure;
mod formation;
mod harness;
mod history;
mod majority;
mod migration;
mod networks;
mod pools;
#[path = "../programs/mod.rs"]
mod programs;
mod recovery;
mod roles;
mod traveller;
mod update;
