//! State of all parts, in the order in which it is set: KVM's interrupt controllers and timer,
//! vCPUs with their local APICs, then the devices, the clock last. A device may raise an
//! interrupt as it is restored, and all controllers on its way must have their state by then.

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Vm;
use super::state::{VmState, VmStateError};
use crate::arch::x86_64::features;
use crate::clock::now_unix_ns;
use crate::state::{Section, StateError};
use crate::vcpu::{Vcpu, VcpuError, VcpuState};

const KIND_KVM: &str = "kvm";
const KIND_VCPU: &str = "vcpu";
/// Kinds of sections that a machine of this program has or can do without. State of any other is
/// of a machine with more than ours, and leaving it out would lose it.
const KNOWN_KINDS: [&str; 19] = [
    KIND_KVM,
    KIND_VCPU,
    "acpi-pm",
    "chardev",
    "fw_cfg",
    "i440fx",
    "i8042",
    "pci-bus",
    "piix3-isa",
    "piix4-pm",
    "reset-control",
    "rtc",
    "serial",
    "virtio-balloon",
    "virtio-blk",
    "virtio-console",
    "virtio-net",
    "virtio-pci",
    "virtio-rng",
];
const VERSION_KVM: u16 = 1;
const VERSION_VCPU: u16 = 1;

/// Why a machine's state cannot be read or set.
#[derive(Debug, Error)]
pub enum SavingError {
    /// A section is missing, malformed or from the future.
    #[error(transparent)]
    Section(#[from] StateError),
    /// The state as a whole cannot be ours.
    #[error(transparent)]
    State(#[from] VmStateError),
    /// The guest was shown features that this host's processor or KVM does not have.
    #[error(
        "this host's processor lacks {} of what the guest was started with; start it with a \
         common baseline, or choose another host",
        .missing.join(", ")
    )]
    Processor {
        /// Their names.
        missing: Vec<String>,
    },
    /// A vCPU.
    #[error("vCPU state")]
    Vcpu(#[from] VcpuError),
    /// KVM's devices.
    #[error("state of KVM's {part}")]
    Kvm {
        /// Which.
        part: &'static str,
        /// KVM's answer.
        #[source]
        source: kvm_ioctls::Error,
    },
}

fn kvm(part: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> SavingError {
    move |source| SavingError::Kvm { part, source }
}

/// What KVM holds of the machine beside vCPUs.
#[derive(Serialize, Deserialize)]
struct KvmState {
    irqchips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
    /// When the state was saved, in nanoseconds since the Unix epoch; 0 if unknown.
    #[serde(default)]
    saved_unix_ns: u64,
    /// What the guest has asked for and did not get yet.
    #[serde(default)]
    open_requests: u8,
}

/// The state of the PICs and the I/O APIC, and of the PIT.
pub(super) fn save_kvm_devices(
    vm: &VmFd,
) -> Result<(Vec<kvm_irqchip>, kvm_pit_state2), kvm_ioctls::Error> {
    let chips = [
        KVM_IRQCHIP_PIC_MASTER,
        KVM_IRQCHIP_PIC_SLAVE,
        KVM_IRQCHIP_IOAPIC,
    ];
    let irqchips = chips
        .into_iter()
        .map(|chip_id| {
            let mut irqchip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut irqchip)?;
            Ok(irqchip)
        })
        .collect::<Result<_, kvm_ioctls::Error>>()?;
    Ok((irqchips, vm.get_pit2()?))
}

/// Sets what [`save_kvm_devices`] gave.
pub(super) fn restore_kvm_devices(
    vm: &VmFd,
    irqchips: &[kvm_irqchip],
    pit: &kvm_pit_state2,
) -> Result<(), kvm_ioctls::Error> {
    for irqchip in irqchips {
        vm.set_irqchip(irqchip)?;
    }
    vm.set_pit2(pit)
}

impl Vm {
    /// State of everything but RAM. Only while nothing runs.
    pub(super) fn save_state(&self) -> Result<VmState, SavingError> {
        let vm = &self.kvm.vm;
        // Time goes on while the rest is saved: the clock is read first, together with the
        // host's, and set last, moved on by what the host's has gained.
        let clock = vm.get_clock().map_err(kvm("clock"))?;
        // Before the TSCs are read: a TSC may run a little ahead of it, and never steps back.
        let saved_unix_ns = now_unix_ns();
        let vcpus: Vec<_> = self.vcpus.iter().map(Vcpu::begin_save).collect();
        let (irqchips, pit) = save_kvm_devices(vm).map_err(kvm("devices"))?;
        let state = KvmState {
            irqchips,
            pit,
            clock,
            saved_unix_ns,
            open_requests: self.requester.save_open(),
        };
        let mut sections = vec![Section::new(KIND_KVM, "", VERSION_KVM, &state)?];
        sections.extend(self.platform.save()?);
        if let Some(console) = &self.handles.console {
            sections.push(console.save("console")?);
        }
        for device in &self.virtio {
            sections.extend(device.save()?);
        }
        for (index, answer) in vcpus.into_iter().enumerate() {
            let state = answer.recv().expect("a vCPU's thread answers")?;
            let id = index.to_string();
            sections.push(Section::new(KIND_VCPU, &id, VERSION_VCPU, &state)?);
        }
        Ok(VmState::new(self.current_config(), sections))
    }

    /// Sets the state of everything but RAM, which must be there already. Call instead of
    /// [`Self::boot`], on a machine built from `state.config`.
    ///
    /// # Errors
    /// [`SavingError`]; the machine must not run then.
    pub fn restore(&self, state: &VmState) -> Result<(), SavingError> {
        self.restore_saved(state, 0)
    }

    /// The same where this host's wall clock is `clock_ahead_ns` nanoseconds ahead of that by
    /// which the state was saved.
    pub(super) fn restore_saved(
        &self,
        state: &VmState,
        clock_ahead_ns: i64,
    ) -> Result<(), SavingError> {
        state.require_known_kinds(&KNOWN_KINDS)?;
        let section = state.section(KIND_KVM, "")?;
        let saved: KvmState = section.parse(VERSION_KVM)?;
        let vm = &self.kvm.vm;
        restore_kvm_devices(vm, &saved.irqchips, &saved.pit).map_err(kvm("devices"))?;
        let vcpus = (0..self.vcpus.len())
            .map(|index| {
                let section = state.section(KIND_VCPU, &index.to_string())?;
                Ok(section.parse(VERSION_VCPU)?)
            })
            .collect::<Result<Vec<VcpuState>, SavingError>>()?;
        let host = features::of(&self.host_cpuid.for_vcpu(0));
        for vcpu in &vcpus {
            let missing = features::of(&vcpu.cpuid).lacking_in(&host);
            if !missing.is_empty() {
                return Err(SavingError::Processor { missing });
            }
        }
        let stood_ns = match saved.saved_unix_ns {
            0 => 0,
            then => now_unix_ns().saturating_sub(then.saturating_add_signed(clock_ahead_ns)),
        };
        // The time stamp counter goes on while the guest stands, as kvmclock does.
        let vcpus = vcpus.into_iter().map(|vcpu| vcpu.aged(stood_ns));
        self.restore_vcpus(vcpus.collect())?;
        self.platform.restore(state)?;
        if let Some(console) = &self.handles.console {
            console.restore(state.section("chardev", "console")?)?;
        }
        for device in &self.virtio {
            device.restore(&state.sections)?;
        }
        self.restore_clock(&saved.clock, clock_ahead_ns)
            .map_err(kvm("clock"))?;
        // An earlier restore may have asked for what its state held open.
        self.life.now().deferred.clear();
        self.requester.begin_power_cycle();
        self.requester.restore_open(saved.open_requests);
        Ok(())
    }

    fn restore_clock(
        &self,
        saved: &kvm_clock_data,
        clock_ahead_ns: i64,
    ) -> Result<(), kvm_ioctls::Error> {
        let mut clock = kvm_clock_data {
            clock: saved.clock,
            ..Default::default()
        };
        if saved.flags & KVM_CLOCK_REALTIME != 0 {
            clock.flags = KVM_CLOCK_REALTIME;
            clock.realtime = saved.realtime.saturating_add_signed(clock_ahead_ns);
        }
        self.kvm.vm.set_clock(&clock)
    }

    /// Sets the state of all vCPUs at once.
    pub(super) fn restore_vcpus(&self, states: Vec<VcpuState>) -> Result<(), VcpuError> {
        let answers: Vec<_> = self
            .vcpus
            .iter()
            .zip(states)
            .map(|(vcpu, state)| vcpu.begin_restore(state))
            .collect();
        answers
            .into_iter()
            .try_for_each(|answer| answer.recv().expect("a vCPU's thread answers"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::super::resources::Resources;
    use super::*;
    use crate::config::Config;

    const SERIAL_PIN: usize = 4;
    const VECTOR: u8 = 0x34;
    /// The local APIC's spurious interrupt vector and first interrupt request register (AMD64
    /// Architecture Programmer's Manual, volume 2, section 16.3.2).
    const LAPIC_SVR: usize = 0xf0;
    const LAPIC_IRR: usize = 0x200;
    const LAPIC_ENABLED: u8 = 1;

    /// Of the serial port: received data interrupts, and says so.
    #[derive(Serialize)]
    struct InputWaits {
        ier: u8,
        iir: u8,
    }

    fn vm() -> Option<Arc<Vm>> {
        if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
            eprintln!("skipped: /dev/kvm does not open: {error}");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        // Nothing runs in these tests.
        fs::write(path("firmware"), [0xf4; 4096]).unwrap();
        let config = format!(
            "serial = \"off\"\nmemory = {{ size_mib = 64 }}\nboot = {{ firmware = '{}' }}\n",
            path("firmware").display()
        );
        fs::write(path("guest.toml"), config).unwrap();
        let config = Config::load(&path("guest.toml")).unwrap();
        Some(Vm::build(&config, Resources::open(&config).unwrap()).unwrap())
    }

    fn change<T: Serialize + serde::de::DeserializeOwned>(
        state: &mut VmState,
        kind: &str,
        edit: impl FnOnce(&mut T),
    ) {
        let mut sections = state.sections.iter_mut();
        let section = sections.find(|section| section.kind == kind).unwrap();
        let mut body: T = section.parse(1).unwrap();
        edit(&mut body);
        *section = Section::new(kind, &section.id, 1, &body).unwrap();
    }

    #[test]
    fn interrupt_that_a_device_raises_as_it_is_restored_reaches_the_vcpu() {
        let (Some(first), Some(second)) = (vm(), vm()) else {
            return;
        };
        let mut state = first.save_state().unwrap();
        change(&mut state, KIND_KVM, |kvm: &mut KvmState| {
            let mut chips = kvm.irqchips.iter_mut();
            let ioapic = chips.find(|chip| chip.chip_id == KVM_IRQCHIP_IOAPIC);
            // Edge-triggered, unmasked, to the first local APIC.
            // SAFETY: this chip is the I/O APIC, whose state is plain integers.
            let ioapic = unsafe { &mut ioapic.unwrap().chip.ioapic };
            ioapic.redirtbl[SERIAL_PIN].bits = VECTOR.into();
        });
        change(&mut state, KIND_VCPU, |vcpu: &mut VcpuState| {
            vcpu.lapic.regs[LAPIC_SVR + 1] |= LAPIC_ENABLED as std::ffi::c_char;
        });
        let mut sections = state.sections.iter_mut();
        let serial = sections.find(|section| section.kind == "serial").unwrap();
        *serial = Section::new("serial", "", 1, &InputWaits { ier: 1, iir: 4 }).unwrap();

        second.restore(&state).unwrap();

        let saved = second.save_state().unwrap();
        let vcpu: VcpuState = saved.section(KIND_VCPU, "0").unwrap().parse(1).unwrap();
        let request = LAPIC_IRR + usize::from(VECTOR / 32) * 0x10 + usize::from(VECTOR % 32 / 8);
        assert_ne!(vcpu.lapic.regs[request] as u8 & 1 << (VECTOR % 8), 0);
    }
}
