//! The features in what KVM answers for CPUID, as a set that can be compared and cut down
//! ([`CpuFeatures`]).

use kvm_bindings::kvm_cpuid_entry2;
use pindah_vmm_api::{CpuFeatures, CpuidLeaf, CpuidRegister, is_feature_register};

/// CPUID leaf of XSAVE's components.
const XSAVE: u32 = 0xd;
/// What a processor has that does not say (Intel SDM volume 2, CPUID leaf 80000008H).
const LEAST_ADDRESS_BITS: u32 = 36;

/// A register of one of KVM's answers.
pub fn register(entry: &mut kvm_cpuid_entry2, register: CpuidRegister) -> &mut u32 {
    match register {
        CpuidRegister::Eax => &mut entry.eax,
        CpuidRegister::Ebx => &mut entry.ebx,
        CpuidRegister::Ecx => &mut entry.ecx,
        CpuidRegister::Edx => &mut entry.edx,
    }
}

/// What `entries` show. Of the host's: what a guest of baseline `host` is shown here.
pub fn of(entries: &[kvm_cpuid_entry2]) -> CpuFeatures {
    let find = |leaf| entries.iter().find(move |entry| entry.function == leaf);
    let vendor = find(0).map_or_else(String::new, |entry| {
        let bytes = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
        String::from_utf8_lossy(bytes.as_flattened()).into_owned()
    });
    let address_bits = find(0x8000_0008).map_or(LEAST_ADDRESS_BITS, |entry| entry.eax & 0xff);
    let mut leaves: Vec<_> = entries.iter().filter_map(leaf).collect();
    leaves.sort_by_key(|leaf| (leaf.leaf, leaf.index));
    CpuFeatures {
        vendor,
        physical_address_bits: address_bits as u8,
        leaves,
    }
}

/// The features of one answer; `None` if it has none.
fn leaf(entry: &kvm_cpuid_entry2) -> Option<CpuidLeaf> {
    let (number, index) = (entry.function, entry.index);
    let mut answer = CpuidLeaf {
        leaf: number,
        index,
        ..CpuidLeaf::default()
    };
    if answer.is_component() {
        (answer.eax, answer.ebx, answer.ecx) = (entry.eax, entry.ebx, entry.ecx);
    } else {
        for name in CpuidRegister::ALL {
            if is_feature_register(number, index, name) {
                *answer.register_mut(name) = *register(&mut entry.clone(), name);
            }
        }
    }
    (!answer.is_empty()).then_some(answer)
}

/// Hides from `entries` what is not in `shown`.
pub fn hide_all_but(shown: &CpuFeatures, entries: &mut [kvm_cpuid_entry2]) {
    for entry in &mut *entries {
        let (number, index) = (entry.function, entry.index);
        let answer = shown.leaf(number, index);
        if answer.is_component() {
            if answer.is_empty() {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            continue;
        }
        for name in CpuidRegister::ALL {
            if is_feature_register(number, index, name) {
                *register(entry, name) &= answer.register(name);
            }
        }
        if number == 0x8000_0008 {
            let bits = (entry.eax & 0xff).min(shown.physical_address_bits.into());
            entry.eax = (entry.eax & !0xff) | bits;
        }
    }
    size_xsave(entries);
}

/// The size of an XSAVE area with all components that are left.
fn size_xsave(entries: &mut [kvm_cpuid_entry2]) {
    /// The legacy region and the header.
    const LEGACY: u32 = 576;
    let components = entries
        .iter()
        .filter(|entry| entry.function == XSAVE && entry.index >= 2)
        // Those of the system have no place in the standard format.
        .filter(|entry| entry.ecx & 1 == 0)
        .map(|entry| entry.ebx.saturating_add(entry.eax));
    let size = components.max().unwrap_or(0).max(LEGACY);
    for entry in entries {
        if (entry.function, entry.index) == (XSAVE, 0) && entry.ecx != 0 {
            (entry.ebx, entry.ecx) = (size, size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn host() -> Vec<kvm_cpuid_entry2> {
        let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
        vec![
            entry(0, 0, [13, word(b"Auth"), word(b"cAMD"), word(b"enti")]),
            entry(1, 0, [0xa20, 7, 1 << 28 | 1 << 13, 1 << 26]),
            entry(7, 0, [1, 1 << 5 | 1 << 16, 0, 0]),
            entry(XSAVE, 0, [0xe7, 2440, 2440, 0]),
            entry(XSAVE, 2, [256, 576, 0, 0]),
            entry(XSAVE, 6, [512, 1152, 0, 0]),
            entry(0x8000_0008, 0, [0x3030, 1 << 12, 0, 0]),
        ]
    }

    #[test]
    fn set_of_a_host_holds_its_features_and_nothing_else() {
        let features = of(&host());
        assert_eq!(features.vendor, "AuthenticAMD");
        assert_eq!(features.physical_address_bits, 48);
        assert_eq!(features.leaf(0, 0), CpuidLeaf::default());
        let one = features.leaf(1, 0);
        assert_eq!((one.eax, one.ebx), (0, 0));
        assert_eq!((one.ecx, one.edx), (1 << 28 | 1 << 13, 1 << 26));
        assert_eq!(features.leaf(XSAVE, 6).ebx, 1152);
    }

    #[test]
    fn what_is_left_is_the_set() {
        let mut poor = host();
        poor[2].ebx = 1 << 5;
        poor[3].eax = 7;
        poor.remove(5);
        poor[5].eax = 0x3028;
        let shown = of(&poor);
        let mut entries = host();
        hide_all_but(&shown, &mut entries);
        assert_eq!(of(&entries), shown);
        assert_eq!((entries[3].ebx, entries[3].ecx), (832, 832));
        assert_eq!(entries[1].eax, 0xa20, "the model is not a feature");
    }
}
