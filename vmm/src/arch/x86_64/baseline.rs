//! CPU feature baselines: what a guest may see, so that it can move to another host.
//!
//! A named baseline is an allow-list. It holds the bits that its micro-architecture level
//! requires (System V AMD64 psABI, section 3.1.1), those that no 64-bit system runs without, and
//! the ones that KVM provides itself on every host. All else is hidden, the mitigations' bits
//! among them, as they differ from host to host.

use kvm_bindings::kvm_cpuid_entry2;
use pindah_vmm_api::{Baseline, CpuidRegister as Register, cpu_feature_name};

use super::features::register;

/// One bit that a level requires.
struct Feature {
    level: Baseline,
    leaf: u32,
    register: Register,
    bit: u32,
}

const fn feature(level: Baseline, leaf: u32, register: Register, bit: u32) -> Feature {
    Feature {
        level,
        leaf,
        register,
        bit,
    }
}

const REQUIRED: [Feature; 24] = [
    feature(Baseline::V1, 1, Register::Edx, 0),
    feature(Baseline::V1, 1, Register::Edx, 8),
    feature(Baseline::V1, 1, Register::Edx, 15),
    feature(Baseline::V1, 1, Register::Edx, 23),
    feature(Baseline::V1, 1, Register::Edx, 24),
    feature(Baseline::V1, 1, Register::Edx, 25),
    feature(Baseline::V1, 1, Register::Edx, 26),
    feature(Baseline::V1, 0x8000_0001, Register::Edx, 11),
    feature(Baseline::V2, 1, Register::Ecx, 0),
    feature(Baseline::V2, 1, Register::Ecx, 9),
    feature(Baseline::V2, 1, Register::Ecx, 13),
    feature(Baseline::V2, 1, Register::Ecx, 19),
    feature(Baseline::V2, 1, Register::Ecx, 20),
    feature(Baseline::V2, 1, Register::Ecx, 23),
    feature(Baseline::V2, 0x8000_0001, Register::Ecx, 0),
    feature(Baseline::V3, 1, Register::Ecx, 12),
    feature(Baseline::V3, 1, Register::Ecx, 22),
    feature(Baseline::V3, 1, Register::Ecx, 26),
    feature(Baseline::V3, 1, Register::Ecx, 28),
    feature(Baseline::V3, 1, Register::Ecx, 29),
    feature(Baseline::V3, 7, Register::Ebx, 3),
    feature(Baseline::V3, 7, Register::Ebx, 5),
    feature(Baseline::V3, 7, Register::Ebx, 8),
    // LZCNT, which AMD calls ABM.
    feature(Baseline::V3, 0x8000_0001, Register::Ecx, 5),
];

/// Bits that are shown at every level where the host has them: `(leaf, register, mask)`.
const COMMON: [(u32, Register, u32); 6] = [
    // vme de pse tsc msr pae mce apic sep mtrr pge mca pat pse36 clflush htt
    (1, Register::Edx, 0x100b_7afe),
    // x2apic, tsc-deadline, hypervisor
    (1, Register::Ecx, 1 << 21 | 1 << 24 | 1 << 31),
    // the copies of leaf 1 that AMD has, nx, lm
    (0x8000_0001, Register::Edx, 0x2193_fbff),
    // cmp-legacy, topology extensions
    (0x8000_0001, Register::Ecx, 1 << 1 | 1 << 22),
    // kvmclock, async page faults, steal time, PV EOI, unhalt, TLB flush, IPIs, stable clock
    (0x4000_0001, Register::Eax, 0x0100_0afb),
    (0x4000_0001, Register::Edx, 0),
];

fn level(baseline: Baseline) -> u8 {
    match baseline {
        Baseline::Host => 0,
        Baseline::V1 => 1,
        Baseline::V2 => 2,
        Baseline::V3 => 3,
    }
}

fn required(baseline: Baseline) -> impl Iterator<Item = &'static Feature> {
    REQUIRED
        .iter()
        .filter(move |feature| level(feature.level) <= level(baseline))
}

/// Names of the features that `baseline` needs and `supported` lacks, lowest level first.
pub fn missing(baseline: Baseline, supported: &[kvm_cpuid_entry2]) -> Vec<String> {
    required(baseline)
        .filter(|feature| {
            !supported.iter().any(|entry| {
                entry.function == feature.leaf
                    && entry.index == 0
                    && *register(&mut entry.clone(), feature.register) & (1 << feature.bit) != 0
            })
        })
        .map(|feature| cpu_feature_name(feature.leaf, 0, feature.register, feature.bit))
        .collect()
}

/// The bits of `register` of `leaf` that `baseline`, which is not `host`, lets through.
pub fn mask(baseline: Baseline, leaf: u32, register: Register) -> u32 {
    let needed = required(baseline)
        .filter(|feature| feature.leaf == leaf && feature.register == register)
        .fold(0, |mask, feature| mask | 1 << feature.bit);
    let common = COMMON
        .iter()
        .filter(|&&(of, at, _)| of == leaf && at == register)
        .fold(0, |mask, &(_, _, bits)| mask | bits);
    needed | common
}

/// The leaves that a named baseline shows at all; the rest would tell of the host.
pub fn shows_leaf(baseline: Baseline, leaf: u32) -> bool {
    match leaf {
        0xd => baseline == Baseline::V3,
        0
        | 1
        | 2
        | 4
        | 7
        | 0xb
        | 0x4000_0000
        | 0x4000_0001
        | 0x8000_0000..=0x8000_0008
        | 0x8000_001d
        | 0x8000_001e => true,
        _ => false,
    }
}
