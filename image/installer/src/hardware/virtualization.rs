//! Whether the processor runs guests: VT-x or SVM, and switched on.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use raw_cpuid::CpuId;

use super::{Facts, Finding, Level, switch};

/// Locked, and not allowed outside of SMX (Intel SDM vol. 3, `IA32_FEATURE_CONTROL`).
const FEATURE_CONTROL: u64 = 0x3a;
const LOCKED: u64 = 1;
const VMX_OUTSIDE_SMX: u64 = 1 << 2;
/// SVM is off (AMD APM vol. 2, `VM_CR.SVMDIS`).
const VM_CR: u64 = 0xc001_0114;
const SVM_OFF: u64 = 1 << 4;

/// What the processor itself can do, whatever firmware and kernel make of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpuid {
    /// VT-x (leaf 1, ECX bit 5).
    pub vmx: bool,
    /// SVM (leaf 0x80000001, ECX bit 2).
    pub svm: bool,
}

impl Cpuid {
    /// This machine's.
    pub fn of_this_machine() -> Self {
        let cpuid = CpuId::new();
        let extended = cpuid.get_extended_processor_and_feature_identifiers();
        Self {
            vmx: cpuid.get_feature_info().is_some_and(|it| it.has_vmx()),
            svm: extended.is_some_and(|it| it.has_svm()),
        }
    }
}

/// Whether the machine runs guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Virtualization {
    /// It does; by what.
    On(&'static str),
    /// It would, if it were switched on in the firmware; what.
    Off(&'static str),
    /// It cannot; the processor.
    Missing(String),
}

impl Virtualization {
    pub(super) fn of(facts: Facts<'_>) -> Self {
        let Facts { root, cpuid, .. } = facts;
        let cpuinfo = std::fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
        let has = |flag: &str| {
            let mut flags = field(&cpuinfo, "flags").split(' ');
            flags.any(|it| it == flag)
        };
        let name = match (cpuid.vmx || has("vmx"), cpuid.svm || has("svm")) {
            (true, _) => "VT-x",
            (_, true) => "AMD-V (SVM)",
            // A hypervisor that gives us a device of its own kind.
            _ if root.join("dev/kvm").exists() => return Self::On("/dev/kvm"),
            _ => return Self::Missing(field(&cpuinfo, "model name").to_owned()),
        };
        if root.join("dev/kvm").exists() {
            return Self::On(name);
        }
        let off = match name {
            // Linux hides the flag of a VT-x that the firmware has locked away.
            "VT-x" => {
                !has("vmx")
                    || msr(root, FEATURE_CONTROL)
                        .is_some_and(|value| value & LOCKED != 0 && value & VMX_OUTSIDE_SMX == 0)
            }
            _ => msr(root, VM_CR).is_some_and(|value| value & SVM_OFF != 0),
        };
        // Without the device and without a word from the processor the kernel's word counts.
        if off || kernel_says_off(facts.kernel_log) {
            Self::Off(name)
        } else {
            Self::On(name)
        }
    }

    /// Whether guests run here.
    pub fn runs_guests(&self) -> bool {
        matches!(self, Self::On(_))
    }

    pub(super) fn finding(&self, vendor: &str) -> Finding {
        let (level, text) = match self {
            Self::On(name) => (Level::Good, format!("{name} is there and switched on")),
            Self::Off(name) => {
                let how = switch::how(vendor);
                let text = format!(
                    "{name} is there but switched off in the firmware, so no guest can run here. \
                     To switch it on: {how}, save, and turn the power off once"
                );
                (Level::Warning, text)
            }
            Self::Missing(model) => {
                let model = if model.is_empty() {
                    "the processor"
                } else {
                    model
                };
                let text = format!(
                    "{model} has neither VT-x nor SVM, so no guest can run here. The machine can \
                     be a witness in a cluster, which votes, keep images and disks, or watch the \
                     others; it can be installed as that"
                );
                (Level::Warning, text)
            }
        };
        Finding::new(level, "Virtualization", text)
    }
}

fn kernel_says_off(log: &str) -> bool {
    let mut lines = log.lines().map(str::to_lowercase);
    lines.any(|line| line.contains("disabled by bios") || line.contains("svm disabled (by bios)"))
}

/// A model-specific register of the first processor, if its device is there.
fn msr(root: &Path, register: u64) -> Option<u64> {
    let device = File::open(root.join("dev/cpu/0/msr")).ok()?;
    let mut bytes = [0; 8];
    device.read_exact_at(&mut bytes, register).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// The first processor's field of `/proc/cpuinfo`.
fn field<'a>(cpuinfo: &'a str, name: &str) -> &'a str {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let found = fields.find(|(key, _)| key.trim() == name);
    found.map_or("", |(_, value)| value.trim())
}
