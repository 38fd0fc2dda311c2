//! Model-specific registers: which make up a guest's state, and what they hold at first
//! (Intel SDM volume 4; AMD APM volume 2, appendix A).

use kvm_bindings::kvm_msr_entry;

/// Time stamp counter.
pub const IA32_TSC: u32 = 0x10;
/// Miscellaneous features.
pub const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Page attribute table.
pub const IA32_PAT: u32 = 0x277;
/// Default memory type.
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// When the local APIC's timer fires in deadline mode.
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// What a processor can do, as opposed to what a guest did: such registers follow from CPUID
/// and the host. Setting them to another host's value fails.
const CAPABILITIES: [std::ops::RangeInclusive<u32>; 5] = [
    0x8b..=0x8b,   // microcode revision
    0xce..=0xcf,   // platform information, core capabilities
    0x10a..=0x10a, // architectural capabilities
    0x345..=0x345, // performance monitoring capabilities
    0x480..=0x493, // VMX capabilities
];

/// Not in KVM's list, yet the guest writes them: variable and fixed memory type ranges.
const UNLISTED: [std::ops::RangeInclusive<u32>; 5] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    IA32_MTRR_DEF_TYPE..=IA32_MTRR_DEF_TYPE,
];

/// From the MSRs that KVM lists, those that belong to a guest's state, in rising order.
pub fn saved(listed: &[u32]) -> Vec<u32> {
    let is_state = |index: &u32| !CAPABILITIES.iter().any(|range| range.contains(index));
    let unlisted = UNLISTED.iter().cloned().flatten();
    let mut indices: Vec<u32> = listed
        .iter()
        .copied()
        .filter(is_state)
        .chain(unlisted)
        .chain([IA32_PAT])
        .collect();
    indices.sort_unstable();
    indices.dedup();
    indices
}

/// What firmware would have set before it enters a kernel.
pub fn boot_values() -> [kvm_msr_entry; 2] {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    [
        // Fast string instructions.
        entry(IA32_MISC_ENABLE, 1),
        // Memory type ranges on, all RAM write-back.
        entry(IA32_MTRR_DEF_TYPE, (1 << 11) | 6),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_leaves_capabilities_out_and_adds_memory_types() {
        let saved = saved(&[IA32_TSC, 0x10a, 0x480, 0x4b56_4d01, IA32_PAT]);
        assert!(saved.contains(&IA32_TSC) && saved.contains(&0x4b56_4d01));
        assert!(saved.contains(&IA32_MTRR_DEF_TYPE) && saved.contains(&0x20f));
        assert!(!saved.contains(&0x10a) && !saved.contains(&0x480));
        assert!(saved.is_sorted_by(|a, b| a < b));
    }
}
