//! From a configuration to a machine that stands by: what is opened on the host, then the parts
//! in their order. Only this module reads the configuration.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use pindah_vmm_api::{Initiator, SerialConfig, VmConfig};
use thiserror::Error;

use super::events::Events;
use super::lifecycle::{Life, Request};
use super::platform::{Platform, PlatformError};
use super::saving::{self, SavingError};
use super::wiring::{IoEvents, Requests};
use super::{PowerOn, Vm};
use crate::arch::x86_64::cpuid::{CpuidError, GuestCpuid};
use crate::arch::x86_64::layout;
use crate::arch::x86_64::msr;
use crate::arch::x86_64::topology::Topology;
use crate::boot::{self, BootResources, OpenBootError};
use crate::bus::Bus;
use crate::config::Config;
use crate::devices::chardev::{self, Chardev, ChardevResources, OpenChardevError};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::transport::{Transport, TransportError, vectors};
use crate::kvm::irq::IrqRouter;
use crate::kvm::{KvmError, KvmVm};
use crate::memory::{self, DirtyLog, GuestMemory, MemoryError};
use crate::vcpu::{Buses, StateShape, Vcpu, VcpuError, VcpuSetup};

/// Everything that a machine needs of the host, open.
pub struct Resources {
    kvm: File,
    boot: BootResources,
    serial: ChardevResources,
    console: Option<ChardevResources>,
}

/// Why something cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No KVM.
    #[error("cannot open /dev/kvm: run `pindah-vmm check` to see what this host lacks")]
    Kvm(#[source] io::Error),
    /// Kernel, initial RAM disk or firmware.
    #[error(transparent)]
    Boot(#[from] OpenBootError),
    /// The serial port's or console's host side.
    #[error("{device}")]
    Chardev {
        /// `serial` or `console`.
        device: &'static str,
        /// Why.
        #[source]
        source: OpenChardevError,
    },
}

impl Resources {
    /// Opens all that `config` names, by path: the last time that paths matter.
    ///
    /// # Errors
    /// [`OpenError`] naming the thing.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let config = config.wire();
        let kvm = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open("/dev/kvm")
            .map_err(OpenError::Kvm)?;
        let open_chardev = |device, config: &SerialConfig| {
            chardev::open(config).map_err(|source| OpenError::Chardev { device, source })
        };
        Ok(Self {
            kvm,
            boot: boot::open(&config.boot)?,
            serial: open_chardev("serial", &config.serial)?,
            console: config
                .console
                .as_ref()
                .map(|config| open_chardev("console", config))
                .transpose()?,
        })
    }
}

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
    /// KVM's first state.
    #[error(transparent)]
    Saving(#[from] SavingError),
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

fn host(what: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |source| BuildError::Host { what, source }
}

fn kvm_call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::KvmCall { call, source }
}

/// Handles to the devices that the API reaches.
#[derive(Default)]
pub(super) struct Handles {
    /// virtio-console's host side.
    pub console: Option<Arc<Chardev>>,
}

/// Puts virtio devices into slots. A device's slot and GSIs follow from the configuration alone.
struct Slots<'a> {
    platform: &'a Platform,
    memory: &'a Arc<GuestMemory>,
    mmio: &'a Arc<Bus>,
    router: Arc<IrqRouter>,
    notifier: Arc<IoEvents>,
    gsi_next: u32,
    transports: Vec<Arc<Transport>>,
}

impl Slots<'_> {
    fn insert(&mut self, slot: u8, device: Box<dyn VirtioDevice>) -> Result<(), BuildError> {
        let gsis = vectors(device.queue_sizes().len());
        let transport = Transport::new(
            slot,
            device,
            Arc::clone(self.memory),
            Arc::clone(self.mmio),
            self.gsi_next,
            Arc::clone(&self.router) as _,
            Arc::clone(&self.notifier) as _,
        )?;
        self.gsi_next += gsis;
        self.platform
            .pci
            .insert(slot, 0, Arc::clone(&transport) as _)
            .map_err(PlatformError::from)?;
        self.transports.push(transport);
        Ok(())
    }
}

impl Vm {
    /// Builds the machine; all its threads stand by.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is left behind.
    pub fn build(config: &Config, resources: Resources) -> Result<Arc<Self>, BuildError> {
        let config = config.wire().clone();
        let firmware_bytes = resources.boot.firmware_len().unwrap_or(0);
        let memory = Arc::new(memory::build(&config.memory, firmware_bytes)?);
        let kvm = KvmVm::new(resources.kvm, &memory)?;
        let (requester, requests) = channel();
        let control = Requests(requester.clone());
        let (ports, mmio) = (Arc::new(Bus::default()), Arc::new(Bus::default()));

        let start_chardev = |name, resources| {
            let control = control.clone();
            let quit = move || control.send(Request::PowerOff(Initiator::Host));
            Chardev::start(name, resources, quit)
                .map(Arc::new)
                .map_err(host("a console's thread"))
        };
        let serial_host = start_chardev("serial", resources.serial)?;
        let platform = Platform::new(&kvm.vm, &ports, serial_host)?;
        let router = IrqRouter::new(Arc::clone(&kvm.vm)).map_err(host("interrupt routing"))?;
        let mut slots = Slots {
            platform: &platform,
            memory: &memory,
            mmio: &mmio,
            router: Arc::new(router),
            notifier: Arc::new(IoEvents(Arc::clone(&kvm.vm))),
            gsi_next: layout::GSI_MSI_FIRST,
            transports: Vec::new(),
        };
        let handles = Handles::default();
        let virtio = std::mem::take(&mut slots.transports);

        let vcpus = build_vcpus(&config, &kvm, &ports, &mmio, &control)?;
        let power_on = power_on(&kvm, &vcpus)?;
        Ok(Arc::new(Self {
            dirty_log: DirtyLog::new(Arc::clone(&kvm.vm), Arc::clone(&memory), kvm.manual_protect),
            boot: resources.boot,
            config,
            vcpus,
            virtio,
            handles,
            platform,
            kvm,
            memory,
            power_on,
            life: Life::default(),
            events: Events::default(),
            requests: Mutex::new(requests),
            requester,
        }))
    }
}

fn build_vcpus(
    config: &VmConfig,
    kvm: &KvmVm,
    ports: &Arc<Bus>,
    mmio: &Arc<Bus>,
    control: &Requests,
) -> Result<Vec<Vcpu>, BuildError> {
    let topology = Topology::new(&config.cpus);
    let supported = kvm
        .kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_call("KVM_GET_SUPPORTED_CPUID"))?;
    let cpuid = GuestCpuid::new(supported.as_slice(), config.cpus.baseline, topology)?;
    let mut shape = None;
    let mut vcpus = Vec::new();
    for index in 0..config.cpus.count {
        let id = topology.apic_id(index);
        let fd = kvm
            .vm
            .create_vcpu(id.into())
            .map_err(kvm_call("KVM_CREATE_VCPU"))?;
        let vcpu = |source| BuildError::Vcpu { index, source };
        let entries = kvm_bindings::CpuId::from_entries(&cpuid.for_vcpu(index))
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
            shape: shape.clone(),
            buses: Buses {
                port: Arc::clone(ports),
                mmio: Arc::clone(mmio),
            },
            on_crash: Box::new(move |crash| control.send(Request::Crash(crash))),
        };
        vcpus.push(Vcpu::spawn(setup).map_err(host("a vCPU's thread"))?);
    }
    Ok(vcpus)
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
