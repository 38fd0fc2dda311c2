//! What CPUID answers in the guest (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use pindah_vmm_api::{Baseline, CpuFeatures, CpuidRegister, is_feature_register};
use thiserror::Error;

use super::topology::Topology;
use super::{baseline, features};

/// This host cannot give what the guest asks for.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CpuidError {
    /// A level.
    #[error(
        "this host lacks {} of CPU baseline {}; choose a lower baseline or another host",
        missing.join(", "),
        baseline_name(*baseline)
    )]
    Baseline {
        /// The level.
        baseline: Baseline,
        /// Names of the features that it lacks.
        missing: Vec<String>,
    },
    /// A set of features.
    #[error(
        "this host lacks {} of cpus.features; leave that out of them or choose another host",
        missing.join(", ")
    )]
    Features {
        /// Names of what it lacks.
        missing: Vec<String>,
    },
}

fn baseline_name(baseline: Baseline) -> &'static str {
    match baseline {
        Baseline::Host => "host",
        Baseline::V1 => "x86-64-v1",
        Baseline::V2 => "x86-64-v2",
        Baseline::V3 => "x86-64-v3",
    }
}

/// CPUID of every vCPU of one guest.
pub struct GuestCpuid {
    entries: Vec<kvm_cpuid_entry2>,
    topology: Topology,
    is_amd: bool,
}

impl GuestCpuid {
    /// From what `KVM_GET_SUPPORTED_CPUID` answers on this host: what `wanted` lets through, and
    /// of that what is in `shown`.
    ///
    /// # Errors
    /// [`CpuidError`] naming the features that the host lacks.
    pub fn new(
        supported: &[kvm_cpuid_entry2],
        wanted: Baseline,
        shown: Option<&CpuFeatures>,
        topology: Topology,
    ) -> Result<Self, CpuidError> {
        let missing = baseline::missing(wanted, supported);
        if wanted != Baseline::Host && !missing.is_empty() {
            return Err(CpuidError::Baseline {
                baseline: wanted,
                missing,
            });
        }
        let mut entries: Vec<kvm_cpuid_entry2> = supported
            .iter()
            .copied()
            // Topology is written anew for each vCPU; the rest cannot move or is not ours.
            .filter(|entry| !matches!(entry.function, 0xb | 0x1f | 0x12 | 0x14 | 0x8000_0026))
            .filter(|entry| {
                wanted == Baseline::Host || baseline::shows_leaf(wanted, entry.function)
            })
            .filter(|entry| shown.is_none() || is_known_leaf(entry.function))
            .collect();
        let is_amd = entries
            .iter()
            .any(|entry| entry.function == 0 && entry.ecx == u32::from_le_bytes(*b"cAMD"));
        for entry in &mut entries {
            hide_what_cannot_move(entry);
            if wanted != Baseline::Host {
                apply(wanted, entry);
            }
        }
        if let Some(shown) = shown {
            let missing = shown.lacking_in(&features::of(&entries));
            if !missing.is_empty() {
                return Err(CpuidError::Features { missing });
            }
            features::hide_all_but(shown, &mut entries);
        }
        limit_leaves(&mut entries);
        Ok(Self {
            entries,
            topology,
            is_amd,
        })
    }

    /// The features in the answers, which are the same for each vCPU.
    pub fn features(&self) -> CpuFeatures {
        features::of(&self.entries)
    }

    /// The answers for vCPU `index`.
    pub fn for_vcpu(&self, index: u8) -> Vec<kvm_cpuid_entry2> {
        let apic_id = self.topology.apic_id(index);
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            self.set_topology(entry, apic_id);
        }
        entries.extend(extended_topology(self.topology, apic_id));
        entries
    }

    fn set_topology(&self, entry: &mut kvm_cpuid_entry2, apic_id: u32) {
        let topology = &self.topology;
        let threads = topology.threads_per_socket();
        match entry.function {
            1 => {
                let rounded = threads.next_power_of_two().min(255);
                entry.ebx = (entry.ebx & 0xffff) | apic_id << 24 | rounded << 16;
                set_bit(&mut entry.edx, 28, threads > 1);
            }
            4 if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = self.cache_sharing(level);
                let cores = (1 << (topology.socket_bits() - topology.thread_bits())) - 1;
                entry.eax = (entry.eax & 0x3fff) | sharing << 14 | cores << 26;
            }
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let sharing = self.cache_sharing(entry.eax >> 5 & 7);
                entry.eax = (entry.eax & 0x3fff) | sharing << 14;
            }
            0x8000_0001 if self.is_amd => set_bit(&mut entry.ecx, 1, threads > 1),
            0x8000_0008 if self.is_amd => {
                entry.ecx = topology.socket_bits() << 12 | (threads - 1);
            }
            0x8000_001e => {
                let core =
                    (apic_id & ((1 << topology.socket_bits()) - 1)) >> topology.thread_bits();
                entry.eax = apic_id;
                entry.ebx = u32::from(topology.threads_per_core - 1) << 8 | core;
                entry.ecx = apic_id >> topology.socket_bits();
            }
            _ => {}
        }
    }

    /// How many logical processors share a cache, less one: a core's own up to level 2.
    fn cache_sharing(&self, level: u32) -> u32 {
        let bits = if level <= 2 {
            self.topology.thread_bits()
        } else {
            self.topology.socket_bits()
        };
        (1 << bits) - 1
    }
}

fn set_bit(register: &mut u32, bit: u32, on: bool) {
    *register = (*register & !(1 << bit)) | u32::from(on) << bit;
}

/// Leaf 0xB: threads, then cores, then the end.
fn extended_topology(topology: Topology, apic_id: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: apic_id,
        ..Default::default()
    };
    [
        level(
            0,
            topology.thread_bits(),
            topology.threads_per_core.into(),
            1,
        ),
        level(1, topology.socket_bits(), topology.threads_per_socket(), 2),
        level(2, 0, 0, 0),
    ]
}

/// Nested virtualization, the performance monitor and the invariant TSC: their state is the
/// host's, or is not saved.
fn hide_what_cannot_move(entry: &mut kvm_cpuid_entry2) {
    match entry.function {
        1 => {
            set_bit(&mut entry.ecx, 5, false); // VMX
            set_bit(&mut entry.ecx, 15, false); // PDCM
            set_bit(&mut entry.ecx, 24, true); // the in-kernel LAPIC has the TSC deadline
            set_bit(&mut entry.ecx, 31, true); // there is a hypervisor
        }
        0xa | 0x8000_000a | 0x8000_0022 => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        0x8000_0001 => {
            for bit in [2, 23, 24, 28] {
                set_bit(&mut entry.ecx, bit, false); // SVM and performance counters
            }
        }
        0x8000_0007 => set_bit(&mut entry.edx, 8, false),
        _ => {}
    }
}

/// Leaves that a set of features is about, and those that hold none. What others tell is not in
/// the set, and may not be the same elsewhere.
fn is_known_leaf(leaf: u32) -> bool {
    baseline::shows_leaf(Baseline::V3, leaf) || leaf == 0x8000_0021
}

fn apply(wanted: Baseline, entry: &mut kvm_cpuid_entry2) {
    let leaf = entry.function;
    for register in CpuidRegister::ALL {
        if is_feature_register(leaf, entry.index, register) {
            let mask = if entry.index == 0 {
                baseline::mask(wanted, leaf, register)
            } else {
                0
            };
            *features::register(entry, register) &= mask;
        }
    }
    match (leaf, entry.index) {
        (7, 0) => entry.eax = 0,
        // x87, SSE and AVX: the standard format of these three is the same everywhere.
        (0xd, 0) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (7, 832, 832, 0),
        (0xd, 2) => {}
        (7 | 0xd, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        _ => {}
    }
}

/// The highest leaves become those that are there.
fn limit_leaves(entries: &mut [kvm_cpuid_entry2]) {
    let highest = |range: std::ops::Range<u32>| {
        let leaves = entries.iter().map(|entry| entry.function);
        leaves
            .filter(|leaf| range.contains(leaf))
            .max()
            .unwrap_or(range.start)
    };
    // Leaf 0xB is added for each vCPU.
    let basic = highest(0..0x100).max(0xb);
    let extended = highest(0x8000_0000..0x8000_0100);
    for entry in entries {
        match entry.function {
            0 => entry.eax = basic,
            0x8000_0000 => entry.eax = extended,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    /// A host of level 3 that has all there is.
    fn rich_host() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0x20, 0, 0, 0),
            leaf(1, 0, u32::MAX, u32::MAX, u32::MAX),
            leaf(7, 2, u32::MAX, u32::MAX, u32::MAX),
            leaf(0x14, 1, 1, 1, 1),
            leaf(0x8000_0000, 0x8000_0028, 0, 0, 0),
            leaf(0x8000_0001, 0, 0, u32::MAX, u32::MAX),
        ]
    }

    fn topology() -> Topology {
        Topology {
            vcpus: 4,
            threads_per_core: 2,
            cores_per_socket: 2,
        }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let matches =
            |entry: &&kvm_cpuid_entry2| entry.function == function && entry.index == index;
        *entries.iter().find(matches).unwrap()
    }

    #[test]
    fn host_baseline_hides_nested_virtualization_and_invariant_tsc() {
        let cpuid = GuestCpuid::new(&rich_host(), Baseline::Host, None, topology()).unwrap();
        let entries = cpuid.for_vcpu(3);
        assert_eq!(find(&entries, 1, 0).ecx & (1 << 5), 0);
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx & (1 << 2), 0);
        assert_eq!(find(&entries, 1, 0).ebx >> 24, 3);
        assert_eq!(find(&entries, 0xb, 1).ebx, 4);
        assert_eq!(find(&entries, 0xb, 0).edx, 3);
    }

    #[test]
    fn named_baseline_shows_its_own_bits_and_nothing_beyond() {
        let cpuid = GuestCpuid::new(&rich_host(), Baseline::V2, None, topology()).unwrap();
        let entries = cpuid.for_vcpu(0);
        let one = find(&entries, 1, 0);
        assert_ne!(one.ecx & (1 << 20), 0, "sse4.2");
        assert_eq!(one.ecx & (1 << 28 | 1 << 26), 0, "avx, xsave");
        assert_ne!(one.ecx & (1 << 31), 0, "hypervisor");
        assert_eq!(
            one.edx & 0x1783_fbff,
            0x1783_fbff,
            "what every 64-bit system needs"
        );
        assert_eq!(find(&entries, 7, 0).ebx, 0);
        assert_eq!(find(&entries, 0, 0).eax, 0xb);
        assert!(entries.iter().all(|entry| entry.function != 0x14));
        assert_ne!(
            find(&entries, 0x8000_0001, 0).edx & (1 << 29 | 1 << 20 | 1 << 11),
            0
        );
    }

    #[test]
    fn baseline_that_the_host_lacks_is_refused_by_name() {
        let mut host = rich_host();
        host[1].ecx &= !(1 << 13);
        let refused = GuestCpuid::new(&host, Baseline::V2, None, topology())
            .err()
            .unwrap();
        let text = refused.to_string();
        assert!(
            text.contains("lacks cx16 of CPU baseline x86-64-v2"),
            "{text}"
        );
        assert!(GuestCpuid::new(&host, Baseline::V1, None, topology()).is_ok());
    }

    #[test]
    fn set_of_features_is_shown_whole_or_refused_by_name() {
        let both = |host: &[kvm_cpuid_entry2], shown: &CpuFeatures| {
            GuestCpuid::new(host, Baseline::Host, Some(shown), topology())
        };
        let mut poor = rich_host();
        poor[1].ecx &= !(1 << 28);
        poor[2].ebx = 0;
        let shown = GuestCpuid::new(&poor, Baseline::Host, None, topology()).unwrap();
        let shown = shown.features();
        let entries = both(&rich_host(), &shown).unwrap().for_vcpu(0);
        assert_eq!(find(&entries, 1, 0).ecx & (1 << 28), 0, "avx");
        assert_eq!(find(&entries, 7, 0).ebx, 0);
        assert!(entries.iter().all(|entry| entry.function != 0x14));

        poor[1].ecx &= !(1 << 13);
        let refused = both(&poor, &shown).err().unwrap().to_string();
        assert!(refused.contains("lacks cx16 of cpus.features"), "{refused}");
    }
}
