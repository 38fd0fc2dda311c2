//! MSI-X against the host's KVM: what is unmasked reaches the local APIC, what is masked waits
//! and is not lost. Where `/dev/kvm` does not open, each test says so and ends.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd};
use pindah_vmm::devices::pci::msix::Msix;
use pindah_vmm::kvm::irq::IrqRouter;

const GSI: u32 = 24;
const VECTOR: u32 = 0x41;
const ENABLE: u16 = 1 << 15;
/// Fixed delivery to APIC id 0 (Intel SDM volume 3, section 12.11).
const MESSAGE_ADDRESS: u64 = 0xfee0_0000;

// Registers of the local APIC (section 12.4.1).
const SPURIOUS: usize = 0xf0;
const REQUESTS: usize = 0x200;

struct Machine {
    msix: Msix,
    vcpu: VcpuFd,
}

impl Machine {
    fn new() -> Option<Self> {
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => {
                eprintln!("skipped: /dev/kvm does not open: {error}");
                return None;
            }
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut lapic = vcpu.get_lapic().unwrap();
        // Enabled by software, spurious vector 0xff.
        lapic.regs[SPURIOUS] = -1;
        lapic.regs[SPURIOUS + 1] = 1;
        vcpu.set_lapic(&lapic).unwrap();
        let router = Arc::new(IrqRouter::new(vm).unwrap());
        let msix = Msix::new(1, GSI, router).unwrap();
        msix.write_table(0, &MESSAGE_ADDRESS.to_le_bytes());
        msix.write_table(8, &VECTOR.to_le_bytes());
        msix.set_control(ENABLE);
        Some(Self { msix, vcpu })
    }

    fn mask(&self, masked: bool) {
        self.msix.write_table(12, &u32::from(masked).to_le_bytes());
    }

    fn is_pending(&self) -> bool {
        let mut bits = [0; 4];
        self.msix.read_pba(0, &mut bits);
        bits != [0; 4]
    }

    /// Whether the local APIC has the request; takes it away.
    fn take_request(&self) -> bool {
        let mut lapic = self.vcpu.get_lapic().unwrap();
        let byte = REQUESTS + VECTOR as usize / 32 * 0x10 + VECTOR as usize % 32 / 8;
        let bit = 1 << (VECTOR % 8);
        let requested = lapic.regs[byte] & bit != 0;
        lapic.regs[byte] &= !bit;
        self.vcpu.set_lapic(&lapic).unwrap();
        requested
    }
}

#[test]
fn unmasked_vector_reaches_the_local_apic() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.mask(false);
    assert!(!machine.take_request());
    machine.msix.trigger(0);
    assert!(machine.take_request());
    assert!(!machine.take_request());
    assert!(!machine.msix.save().entries[0].pending, "KVM has taken it");
}

#[test]
fn vector_masked_and_unmasked_again_loses_nothing() {
    let Some(machine) = Machine::new() else {
        return;
    };
    for _ in 0..100 {
        machine.mask(false);
        machine.mask(true);
        assert!(!machine.is_pending() && !machine.take_request());
        machine.msix.trigger(0);
        assert!(machine.is_pending() && !machine.take_request());
        machine.mask(false);
        assert!(!machine.is_pending() && machine.take_request());
    }
}

#[test]
fn pending_vector_restored_in_another_machine_fires_there() {
    let (Some(source), Some(target)) = (Machine::new(), Machine::new()) else {
        return;
    };
    source.msix.trigger(0);
    let saved = source.msix.save();
    assert!(saved.entries[0].pending);

    target.msix.restore(&saved, ENABLE);
    assert!(target.is_pending() && !target.take_request());
    target.mask(false);
    assert!(!target.is_pending() && target.take_request());
}
