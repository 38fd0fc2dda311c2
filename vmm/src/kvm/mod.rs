//! The VM file descriptor: what we need of KVM, and how it is set up.

pub mod ioctl;
pub mod irq;

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;
use vm_memory::GuestMemoryBackend;

use crate::arch::x86_64::layout;
use crate::memory::{GuestMemory, set_memslot};

/// Why the host's KVM does not serve.
#[derive(Debug, Error)]
pub enum KvmError {
    /// Another API than ours.
    #[error("KVM API version is {0}, not 12")]
    ApiVersion(i32),
    /// Something that we cannot do without is missing.
    #[error("this host's KVM lacks {0}; a newer kernel is needed")]
    Capability(&'static str),
    /// A call was refused.
    #[error("{action} failed")]
    Call {
        /// What was tried.
        action: &'static str,
        /// KVM's answer.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Names the call in an error.
fn call(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Call { action, source }
}

const REQUIRED: [(Cap, &str); 8] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
];

/// KVM and one VM in it, with its in-kernel interrupt controllers, timer and memory.
pub struct KvmVm {
    /// The system descriptor.
    pub kvm: Kvm,
    /// The VM.
    pub vm: Arc<VmFd>,
    /// Pages stay dirty until they are cleared (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`).
    pub manual_protect: bool,
}

impl KvmVm {
    /// Makes a VM with `memory` in it from an open `/dev/kvm`.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn new(device: File, memory: &GuestMemory) -> Result<Self, KvmError> {
        // SAFETY: the descriptor is open, ours, and given away.
        let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(KvmError::ApiVersion(version));
        }
        for (capability, name) in REQUIRED {
            if !kvm.check_extension(capability) {
                return Err(KvmError::Capability(name));
            }
        }
        let vm = kvm.create_vm().map_err(call("KVM_CREATE_VM"))?;
        let manual_protect = enable_manual_protect(&vm);
        // Before the interrupt controllers: their places on KVM's buses are made known by RCU, and
        // a memslot would wait milliseconds for that.
        for (slot, region) in (0..).zip(memory.iter()) {
            set_memslot(&vm, slot, region, 0).map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(layout::KVM_TSS as usize)
            .map_err(call("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).map_err(call("KVM_CREATE_PIT2"))?;
        Ok(Self {
            kvm,
            vm: Arc::new(vm),
            manual_protect,
        })
    }
}

fn enable_manual_protect(vm: &VmFd) -> bool {
    let wanted = u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
    let offered = vm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
    let flags = wanted & u64::try_from(offered).unwrap_or(0);
    if flags & u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) == 0 {
        return false;
    }
    let capability = kvm_enable_cap {
        cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        args: [flags, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&capability).is_ok()
}
