//! Whether a processor can go on with what another one has shown to a guest.

use kvm_bindings::kvm_cpuid_entry2;

use super::baseline::{self, Register};

const REGISTERS: [(Register, &str); 4] = [
    (Register::Eax, "EAX"),
    (Register::Ebx, "EBX"),
    (Register::Ecx, "ECX"),
    (Register::Edx, "EDX"),
];

/// Names of the features that `guest` was shown and `host` does not have; empty if the guest can
/// run on. `host` is what a guest of baseline `host` would be shown here.
pub fn lacking(guest: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut lacking = Vec::new();
    if let (Some(theirs), Some(ours)) = (vendor(guest), vendor(host))
        && theirs != ours
    {
        lacking.push(format!("the vendor ({theirs}, this is {ours})"));
    }
    for entry in guest {
        let ours = find(host, entry.function, entry.index).unwrap_or_default();
        for (register, name) in REGISTERS {
            if !is_feature_register(entry.function, entry.index, register) {
                continue;
            }
            let missing = *register.of(&mut entry.clone()) & !*register.of(&mut ours.clone());
            let bits = (0..32).filter(|bit| missing >> bit & 1 == 1);
            lacking.extend(bits.map(|bit| {
                baseline::name(entry.function, entry.index, register, bit).map_or_else(
                    || {
                        let (leaf, index) = (entry.function, entry.index);
                        format!("CPUID {leaf:#x}.{index} {name} bit {bit}")
                    },
                    str::to_owned,
                )
            }));
        }
        if entry.function == 0xd && entry.index >= 2 && (entry.eax, entry.ebx) != (0, 0) {
            let place = |entry: &kvm_cpuid_entry2| (entry.eax, entry.ebx);
            if place(entry) != place(&ours) {
                let index = entry.index;
                lacking.push(format!("the place of XSAVE component {index}"));
            }
        }
        if entry.function == 0x8000_0008 && entry.eax & 0xff > ours.eax & 0xff {
            lacking.push(format!("{} physical address bits", entry.eax & 0xff));
        }
    }
    lacking
}

fn find(entries: &[kvm_cpuid_entry2], leaf: u32, index: u32) -> Option<kvm_cpuid_entry2> {
    let mut entries = entries.iter();
    entries
        .find(|entry| entry.function == leaf && entry.index == index)
        .copied()
}

fn vendor(entries: &[kvm_cpuid_entry2]) -> Option<String> {
    let entry = find(entries, 0, 0)?;
    let bytes = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
    Some(String::from_utf8_lossy(bytes.as_flattened()).into_owned())
}

/// Whether each bit says that something is there (Intel SDM volume 2, CPUID; AMD APM volume 3,
/// appendix E).
fn is_feature_register(leaf: u32, index: u32, register: Register) -> bool {
    match (leaf, index) {
        (7 | 0xd, 1) | (0x8000_0021, _) => register == Register::Eax,
        // XSAVE components.
        (0xd, 0) => matches!(register, Register::Eax | Register::Edx),
        _ => index == 0 && baseline::is_feature_register(leaf, register),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn amd() -> kvm_cpuid_entry2 {
        let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
        leaf(0, word(b"Auth"), word(b"cAMD"), word(b"enti"))
    }

    #[test]
    fn host_with_more_lacks_nothing() {
        let guest = [amd(), leaf(1, 0, 1 << 13, 1 << 26), leaf(7, 1 << 5, 0, 0)];
        let host = [
            amd(),
            leaf(1, 7, u32::MAX, u32::MAX),
            leaf(7, u32::MAX, 0, 0),
        ];
        assert_eq!(lacking(&guest, &host), Vec::<String>::new());
    }

    #[test]
    fn what_a_poorer_host_lacks_is_named() {
        let guest = [
            amd(),
            leaf(1, 0, 1 << 13, 0),
            leaf(7, 1 << 5 | 1 << 16, 0, 0),
        ];
        let intel = leaf(0, 0x756e_6547, 0x6c65_746e, 0x4965_6e69);
        let host = [intel, leaf(1, 0, 0, 0)];
        assert_eq!(
            lacking(&guest, &host),
            [
                "the vendor (AuthenticAMD, this is GenuineIntel)",
                "cx16",
                "avx2",
                "CPUID 0x7.0 EBX bit 16"
            ]
        );
    }

    #[test]
    fn wider_addresses_and_another_xsave_layout_are_named() {
        let entry = |function, index, eax, ebx| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ..Default::default()
        };
        let guest = [entry(0x8000_0008, 0, 48, 0), entry(0xd, 2, 256, 576)];
        let host = [entry(0x8000_0008, 0, 40, 0), entry(0xd, 2, 256, 832)];
        let found = lacking(&guest, &host);
        assert_eq!(
            found,
            ["48 physical address bits", "the place of XSAVE component 2"]
        );
    }
}
