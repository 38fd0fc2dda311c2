//! One guest: its parts, its life and its doors to the outside.
//!
//! ```text
//! builder ─► Vm ── boot | restore ── run ─► ExitReason
//!             ├─ lifecycle   who may change the state, and how it ends
//!             ├─ transition  run, pause, reset: vCPUs and devices in their order
//!             ├─ saving      VmState of all parts, and back
//!             ├─ ownership   who may run the guest
//!             ├─ carry, moving   snapshot and migration
//!             └─ control     Machine, for the API
//! ```
//! [`machine::Machine`] is what the API may ask of it, [`migratable::Migratable`] is the only
//! door for snapshot and migration, and [`events::Events`] tells who listens.

pub mod builder;
mod carry;
mod control;
mod devices;
pub mod events;
mod lifecycle;
pub mod machine;
pub mod migratable;
mod moving;
pub mod ownership;
mod platform;
pub mod resources;
mod rtc_timer;
mod saving;
pub mod state;
pub mod termination;
mod transition;
mod wiring;

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use kvm_bindings::{kvm_irqchip, kvm_pit_state2};
use pindah_vmm_api::VmConfig;

use crate::arch::x86_64::cpuid::GuestCpuid;
use crate::boot::BootResources;
use crate::devices::virtio::transport::Transport;
use crate::kvm::KvmVm;
use crate::memory::{DirtyLog, GuestMemory, PageMap};
use crate::vcpu::{Vcpu, VcpuState};
use events::Events;
use lifecycle::{Life, Request};
use ownership::Ownership;
use platform::Platform;
use termination::Termination;
use wiring::Requests;

/// One guest. Its threads stand by from the start; nothing runs before [`Self::run`].
pub struct Vm {
    config: VmConfig,
    vcpus: Vec<Vcpu>,
    /// What a guest could be shown at most on this host.
    host_cpuid: GuestCpuid,
    virtio: Vec<Arc<Transport>>,
    handles: devices::Handles,
    platform: Platform,
    kvm: KvmVm,
    memory: Arc<GuestMemory>,
    dirty_log: DirtyLog,
    page_map: PageMap,
    boot: BootResources,
    ownership: Box<dyn Ownership>,
    power_on: PowerOn,
    life: Life,
    events: Events,
    requests: Mutex<Receiver<(u64, Request)>>,
    requester: Requests,
    _termination: Termination,
}

/// What KVM's part of the machine is at power-on, and becomes again at each reset.
struct PowerOn {
    vcpus: Vec<VcpuState>,
    irqchips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
}
