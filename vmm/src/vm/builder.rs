//! From a configuration and open resources to a machine that stands by, part by part in their
//! order.

use std::io;
use std::sync::{Arc, Mutex};

use pindah_vmm_api::{Baseline, Initiator, VmConfig};
use thiserror::Error;

use super::devices::{ConsoleSide, HostSides, Slots};
use super::events::Events;
use super::lifecycle::{Life, Request};
use super::ownership::DiskLocks;
use super::platform::{Platform, PlatformError};
use super::resources::Resources;
use super::saving;
use super::termination::Termination;
use super::wiring::Requests;
use super::{PowerOn, Vm};
use crate::arch::x86_64::cpuid::{CpuidError, GuestCpuid};
use crate::arch::x86_64::msr;
use crate::arch::x86_64::topology::Topology;
use crate::bus::Bus;
use crate::config::Config;
use crate::devices::chardev::Chardev;
use crate::devices::virtio::block::BlockError;
use crate::devices::virtio::transport::TransportError;
use crate::kvm::{KvmError, KvmVm};
use crate::memory::{self, DirtyLog, MemoryError};
use crate::vcpu::{Buses, StateShape, Vcpu, VcpuError, VcpuSetup};

/// Why a machine cannot be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM, by the name of the call.
    #[error("{call} failed")]
    KvmCall {
        /// The call.
        call: &'static str,
        /// KVM's answer.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The CPU baseline.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// A vCPU.
    #[error("cannot set up vCPU {index}")]
    Vcpu {
        /// Which.
        index: u8,
        /// Why.
        #[source]
        source: VcpuError,
    },
    /// Fixed devices.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// A virtio device's transport.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] BlockError),
    /// The host refuses what every machine needs.
    #[error("cannot start {what}")]
    Host {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

pub(super) fn failed(what: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |source| BuildError::Host { what, source }
}

fn kvm_call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::KvmCall { call, source }
}

impl Vm {
    /// Builds the machine; all its threads stand by.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is left behind.
    pub fn build(config: &Config, resources: Resources) -> Result<Arc<Self>, BuildError> {
        let config = VmConfig::clone(config);
        let firmware_bytes = resources.boot.firmware_len().unwrap_or(0);
        let memory = Arc::new(memory::build(&config.memory, firmware_bytes)?);
        let kvm = KvmVm::new(resources.kvm, &memory)?;
        let (control, requests) = Requests::channel();
        let (ports, mmio) = (Arc::new(Bus::default()), Arc::new(Bus::default()));

        let start_chardev = |name, resources| {
            let control = control.clone();
            let quit = move || control.send(Request::PowerOff(Initiator::Host));
            Chardev::start(name, resources, quit)
                .map(Arc::new)
                .map_err(failed("a console's thread"))
        };
        let serial_host = start_chardev("serial", resources.serial)?;
        let platform = Platform::new(&config, &kvm.vm, &memory, &ports, serial_host, &control)?;
        let slots = Slots::new(&kvm, &platform, &memory, &mmio, &control)?;
        let console = match resources.console {
            Some(console) => {
                let size = console.terminal_size();
                let chardev = start_chardev("console", console)?;
                Some(ConsoleSide { chardev, size })
            }
            None => None,
        };
        let host_sides = HostSides {
            disks: resources.disks,
            nets: resources.nets,
            console,
        };
        let devices = slots.fill(&config, host_sides)?;
        let (vcpus, host_cpuid) = build_vcpus(&config, &kvm, &ports, &mmio, &control)?;
        let power_on = power_on(&kvm, &vcpus)?;
        Ok(Arc::new(Self {
            dirty_log: DirtyLog::new(Arc::clone(&kvm.vm), Arc::clone(&memory), kvm.manual_protect),
            boot: resources.boot,
            page_map: resources.page_map,
            ownership: Box::new(DiskLocks::new(&config, &devices.handles.disks)),
            config,
            vcpus,
            host_cpuid,
            virtio: devices.transports,
            handles: devices.handles,
            platform,
            kvm,
            memory,
            power_on,
            life: Life::default(),
            events: Events::default(),
            requests: Mutex::new(requests),
            requester: control.clone(),
            _termination: Termination::start(control).map_err(failed("the signals' thread"))?,
        }))
    }
}

fn build_vcpus(
    config: &VmConfig,
    kvm: &KvmVm,
    ports: &Arc<Bus>,
    mmio: &Arc<Bus>,
    control: &Requests,
) -> Result<(Vec<Vcpu>, GuestCpuid), BuildError> {
    let topology = Topology::new(&config.cpus);
    let supported = kvm
        .kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_call("KVM_GET_SUPPORTED_CPUID"))?;
    let cpuid = GuestCpuid::new(
        supported.as_slice(),
        config.cpus.baseline,
        config.cpus.features.as_ref(),
        topology,
    )?;
    let host_cpuid = GuestCpuid::new(supported.as_slice(), Baseline::Host, None, topology)?;
    let mut shape = None;
    let mut vcpus = Vec::new();
    for index in 0..config.cpus.count {
        let id = topology.apic_id(index);
        let fd = kvm
            .vm
            .create_vcpu(id.into())
            .map_err(kvm_call("KVM_CREATE_VCPU"))?;
        let vcpu = |source| BuildError::Vcpu { index, source };
        let cpuid = cpuid.for_vcpu(index);
        let entries = kvm_bindings::CpuId::from_entries(&cpuid)
            .expect("fewer entries than KVM itself gave, and three");
        fd.set_cpuid2(&entries)
            .map_err(kvm_call("KVM_SET_CPUID2"))?;
        let boot_msrs =
            kvm_bindings::Msrs::from_entries(&msr::boot_values()).expect("a few entries");
        fd.set_msrs(&boot_msrs).map_err(kvm_call("KVM_SET_MSRS"))?;
        let shape = match &shape {
            Some(shape) => shape,
            None => shape.insert(StateShape::probe(&kvm.kvm, &kvm.vm, &fd).map_err(vcpu)?),
        };
        let control = control.clone();
        let setup = VcpuSetup {
            index,
            fd,
            cpuid,
            shape: shape.clone(),
            buses: Buses {
                port: Arc::clone(ports),
                mmio: Arc::clone(mmio),
            },
            on_crash: Box::new(move |crash| control.send(Request::Crash(crash))),
        };
        vcpus.push(Vcpu::spawn(setup).map_err(failed("a vCPU's thread"))?);
    }
    Ok((vcpus, host_cpuid))
}

fn power_on(kvm: &KvmVm, vcpus: &[Vcpu]) -> Result<PowerOn, BuildError> {
    let saves: Vec<_> = vcpus.iter().map(Vcpu::begin_save).collect();
    let vcpus = (0..)
        .zip(saves)
        .map(|(index, save)| {
            save.recv()
                .expect("a vCPU's thread answers")
                .map_err(|source| BuildError::Vcpu { index, source })
        })
        .collect::<Result<_, _>>()?;
    let (irqchips, pit) =
        saving::save_kvm_devices(&kvm.vm).map_err(kvm_call("KVM_GET_IRQCHIP or KVM_GET_PIT2"))?;
    Ok(PowerOn {
        vcpus,
        irqchips,
        pit,
    })
}
