//! KVM: whether it is there, and what it can do of what we use.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::MetadataExt;

use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD, KVM_CAP_IRQ_ROUTING, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD,
    KVM_CAP_KVMCLOCK_CTRL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_NESTED_STATE, KVM_CAP_PIT2,
    KVM_CAP_READONLY_MEM, KVM_CAP_STEAL_TIME, KVM_CAP_SYNC_REGS, KVM_CAP_TSC_CONTROL,
    KVM_CAP_USER_MEMORY, KVM_CAP_XSAVE2, KVM_CLOCK_REALTIME, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_MAX_CPUID_ENTRIES,
};
use kvm_ioctls::Kvm;
use pindah_vmm_api::{Baseline, CpuFeatures, CpusConfig};

use crate::arch::x86_64::cpuid::GuestCpuid;
use crate::arch::x86_64::topology::Topology;

use super::processor::{self, Vendor};
use super::{Finding, Host, Section};

/// KVM API, section 4.1.
const API_VERSION: i32 = 12;

/// What no guest runs without.
const REQUIRED: [(u32, &str); 8] = [
    (KVM_CAP_USER_MEMORY, "memory slots"),
    (KVM_CAP_IRQCHIP, "interrupt controllers"),
    (KVM_CAP_PIT2, "timer"),
    (KVM_CAP_IRQFD, "irqfd"),
    (KVM_CAP_IOEVENTFD, "ioeventfd"),
    (KVM_CAP_IRQ_ROUTING, "interrupt routing"),
    (KVM_CAP_IMMEDIATE_EXIT, "immediate exit"),
    (KVM_CAP_ADJUST_CLOCK, "guest clock"),
];

/// Size of `struct kvm_dirty_gfn`; the capability's value is the ring's largest size in bytes.
const DIRTY_ENTRY_BYTES: u32 = 16;

/// What `KVM_CHECK_EXTENSION` answers; 0: not there.
fn extent(kvm: &Kvm, capability: u32) -> u32 {
    kvm.check_extension_raw(capability.into()).max(0) as u32
}

fn open(host: &Host) -> io::Result<Kvm> {
    let file = host.open_device("dev/kvm")?;
    // SAFETY: the descriptor is open and nobody else's.
    Ok(unsafe { Kvm::from_raw_fd(file.into_raw_fd()) })
}

/// What a guest of baseline `host` is shown here; `None` without KVM.
pub(super) fn features(host: &Host) -> Option<CpuFeatures> {
    let kvm = open(host).ok()?;
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).ok()?;
    let topology = Topology::new(&CpusConfig::default());
    let shown = GuestCpuid::new(supported.as_slice(), Baseline::Host, None, topology).ok()?;
    Some(shown.features())
}

pub(super) fn look(host: &Host) -> Section {
    let mut findings = vec![module(host)];
    match open(host) {
        Ok(kvm) => {
            findings.push(Finding::good("/dev/kvm", "can be opened"));
            abilities(&kvm, &mut findings);
        }
        Err(error) => findings.push(no_device(host, &error)),
    }
    Section {
        name: "KVM",
        findings,
    }
}

fn module(host: &Host) -> Finding {
    let loaded: Vec<_> = ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .filter(|module| host.exists(&format!("sys/module/{module}")))
        .collect();
    let release = host.text("proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = if loaded.is_empty() {
        "none seen".to_owned()
    } else {
        loaded.join(", ")
    };
    Finding::good("module", format!("{modules}; Linux {release}"))
}

fn no_device(host: &Host, error: &io::Error) -> Finding {
    let vendor = Vendor::of(host);
    let finding = Finding::fatal("/dev/kvm", error.to_string());
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let group = std::fs::metadata(host.path("dev/kvm")).map_or(0, |file| file.gid());
            finding.mend(format!(
                "join the group that owns it (gid {group}, usually kvm): usermod -aG kvm USER, \
                 then log in anew"
            ))
        }
        io::ErrorKind::NotFound => {
            let flags = processor::flags(host);
            let able = flags.contains("vmx") || flags.contains("svm");
            let load = format!("load the module: modprobe {}", vendor.module());
            finding.mend(if able {
                format!(
                    "{load}; if it says \"disabled by bios\", switch on {} in the firmware",
                    vendor.firmware_switch()
                )
            } else {
                format!(
                    "switch on {} in the firmware, then {load}; in a container, pass the device in",
                    vendor.firmware_switch()
                )
            })
        }
        _ => finding.mend("see dmesg for what KVM says"),
    }
}

fn abilities(kvm: &Kvm, findings: &mut Vec<Finding>) {
    let version = kvm.get_api_version();
    if version != API_VERSION {
        let value = format!("version {version}; {API_VERSION} is needed");
        findings.push(Finding::fatal("API", value).mend("use a Linux of this decade"));
        return;
    }
    findings.push(Finding::good("API", format!("version {version}")));
    findings.push(required(kvm));
    findings.push(Finding::good(
        "limits",
        format!(
            "{} vCPUs, {} memory slots",
            kvm.get_max_vcpus(),
            kvm.get_nr_memslots()
        ),
    ));
    findings.push(dirty_log(kvm));
    findings.push(dirty_ring(kvm));
    for ability in &OPTIONAL {
        findings.push(optional(kvm, ability));
    }
}

fn required(kvm: &Kvm) -> Finding {
    let missing: Vec<_> = REQUIRED
        .iter()
        .filter(|(capability, _)| extent(kvm, *capability) == 0)
        .map(|&(_, name)| name)
        .collect();
    if missing.is_empty() {
        Finding::good("needed abilities", "all")
    } else {
        let value = format!("without {}", missing.join(", "));
        Finding::fatal("needed abilities", value).mend("use a newer kernel")
    }
}

fn dirty_log(kvm: &Kvm) -> Finding {
    let name = "dirty log";
    let bits = extent(kvm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
    if bits & KVM_DIRTY_LOG_INITIALLY_SET != 0 {
        Finding::good(name, "manual protection, initially all set")
    } else if bits != 0 {
        Finding::limited(
            name,
            "manual protection",
            "starting a migration write-protects all memory at once: the guest stumbles",
        )
    } else {
        Finding::limited(
            name,
            "whole slots only",
            "migrations send pages more often than they need",
        )
        .mend("use Linux 5.7 or newer")
    }
}

fn dirty_ring(kvm: &Kvm) -> Finding {
    let entries = [KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL]
        .map(|capability| extent(kvm, capability) / DIRTY_ENTRY_BYTES);
    let value = match entries.into_iter().max() {
        Some(0) | None => "none (not used)".to_owned(),
        Some(entries) => format!("{entries} entries (not used)"),
    };
    Finding::good("dirty ring", value)
}

struct Ability {
    name: &'static str,
    capability: u32,
    /// Bits that must be in the capability's value; 0: any that is positive.
    bits: u32,
    cost: &'static str,
}

const OPTIONAL: [Ability; 8] = [
    Ability {
        name: "TSC scaling",
        capability: KVM_CAP_TSC_CONTROL,
        bits: 0,
        cost: "a guest moves only to hosts with the same TSC frequency, or without TSC deadline",
    },
    Ability {
        name: "wall clock",
        capability: KVM_CAP_ADJUST_CLOCK,
        bits: KVM_CLOCK_REALTIME,
        cost: "a moved guest's clock is off by the time that the move took",
    },
    Ability {
        name: "read-only memory",
        capability: KVM_CAP_READONLY_MEM,
        bits: 0,
        cost: "a guest could overwrite its firmware",
    },
    Ability {
        name: "XSAVE2",
        capability: KVM_CAP_XSAVE2,
        bits: 0,
        cost: "guests cannot use AMX",
    },
    Ability {
        name: "kvmclock control",
        capability: KVM_CAP_KVMCLOCK_CTRL,
        bits: 0,
        cost: "a guest may report a soft lockup after a long pause",
    },
    Ability {
        name: "steal time",
        capability: KVM_CAP_STEAL_TIME,
        bits: 0,
        cost: "guests do not see when they wait for a CPU",
    },
    Ability {
        name: "nested state",
        capability: KVM_CAP_NESTED_STATE,
        bits: 0,
        cost: "a guest that runs guests itself cannot be moved or saved",
    },
    Ability {
        name: "register sync",
        capability: KVM_CAP_SYNC_REGS,
        bits: 0,
        cost: "a little more time for each exit that needs registers",
    },
];

fn optional(kvm: &Kvm, ability: &Ability) -> Finding {
    let value = extent(kvm, ability.capability);
    if value != 0 && value & ability.bits == ability.bits {
        Finding::good(ability.name, "yes")
    } else {
        Finding::limited(ability.name, "no", ability.cost)
    }
}
