//! `pindah-vmm`: one process a guest, straight on KVM.
//!
//! ```text
//! main ─► config ─► api ─► migration, snapshot ─► vm ─► devices, vcpu ─► bus, memory ─► kvm
//! ```
//!
//! Imports point to the right only. [`state`], [`causes`], [`sandbox`] and [`startup`] know nothing of the
//! machine and may be used by all.

pub mod api;
pub mod arch;
pub mod boot;
pub mod bus;
pub mod causes;
pub mod check;
mod clock;
pub mod config;
pub mod devices;
pub mod kvm;
pub mod memory;
pub mod migration;
pub mod sandbox;
pub mod snapshot;
pub mod startup;
pub mod state;
pub mod vcpu;
pub mod vm;
