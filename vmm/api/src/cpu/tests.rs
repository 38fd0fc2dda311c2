use proptest::prelude::*;

use super::*;

fn leaf(leaf: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf {
        leaf,
        index,
        eax,
        ebx,
        ecx,
        edx,
    }
}

fn host(leaves: Vec<CpuidLeaf>) -> CpuFeatures {
    CpuFeatures {
        vendor: "AuthenticAMD".to_owned(),
        physical_address_bits: 48,
        leaves,
    }
}

#[test]
fn names_stand_at_their_bits() {
    use CpuidRegister::{Eax, Ebx, Ecx, Edx};
    for (leaf, index, register, bit, expected) in [
        (1, 0, Edx, 26, "sse2"),
        (1, 0, Ecx, 13, "cx16"),
        (1, 0, Ecx, 20, "sse4_2"),
        (1, 0, Ecx, 26, "xsave"),
        (1, 0, Ecx, 31, "hypervisor"),
        (7, 0, Ebx, 5, "avx2"),
        (7, 0, Ebx, 29, "sha_ni"),
        (7, 0, Ebx, 31, "avx512vl"),
        (7, 0, Ecx, 16, "la57"),
        (7, 0, Ecx, 31, "pks"),
        (7, 0, Edx, 31, "spec_ctrl_ssbd"),
        (7, 1, Eax, 26, "lam"),
        (0xd, 0, Eax, 18, "amx_tiledata_state"),
        (0x4000_0001, 0, Eax, 24, "kvmclock_stable"),
        (0x8000_0001, 0, Edx, 29, "lm"),
        (0x8000_0001, 0, Ecx, 5, "abm"),
        (0x8000_0001, 0, Ecx, 22, "topoext"),
        (0x8000_0008, 0, Ebx, 24, "amd_ssbd"),
        (0x8000_0021, 0, Eax, 8, "autoibrs"),
        (7, 0, Ecx, 15, "CPUID 0x7.0 ECX bit 15"),
        (0x1_0000, 2, Eax, 3, "CPUID 0x10000.2 EAX bit 3"),
    ] {
        assert_eq!(cpu_feature_name(leaf, index, register, bit), expected);
    }
}

#[test]
fn what_a_poorer_host_lacks_is_named() {
    let guest = host(vec![
        leaf(1, 0, [0, 0, 1 << 13, 0]),
        leaf(7, 0, [0, 1 << 5 | 1 << 16, 0, 0]),
        leaf(0xd, 2, [256, 576, 0, 0]),
    ]);
    let mut poor = host(vec![leaf(0xd, 2, [256, 832, 0, 0])]);
    poor.vendor = "GenuineIntel".to_owned();
    poor.physical_address_bits = 40;
    assert_eq!(
        guest.lacking_in(&poor),
        [
            "the vendor (AuthenticAMD, this is GenuineIntel)",
            "cx16",
            "avx2",
            "avx512f",
            "the place of XSAVE component 2",
            "48 physical address bits",
        ]
    );
    assert_eq!(guest.lacking_in(&guest), Vec::<String>::new());
}

#[test]
fn component_without_a_common_place_is_left_out_with_its_bit() {
    let with = |place| {
        host(vec![
            leaf(0xd, 0, [0b111, 832, 832, 0]),
            leaf(0xd, 2, [256, place, 0, 0]),
        ])
    };
    let both = with(576).intersection(&with(832)).unwrap();
    assert_eq!(both.leaves, [leaf(0xd, 0, [0b11, 0, 0, 0])]);
    let same = with(576).intersection(&with(576)).unwrap();
    assert_eq!(same.leaf(0xd, 2).ebx, 576);
}

#[test]
fn vendors_do_not_mix() {
    let mut intel = host(vec![]);
    intel.vendor = "GenuineIntel".to_owned();
    let refused = host(vec![]).intersection(&intel).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("AuthenticAMD and GenuineIntel")
    );
}

fn any_host() -> impl Strategy<Value = CpuFeatures> {
    let places = [(1, 0), (7, 0), (7, 1), (0xd, 0), (0xd, 2), (0x8000_0001, 0)];
    (any::<[[u32; 4]; 6]>(), 36_u8..52).prop_map(move |(answers, bits)| {
        let leaves = places
            .iter()
            .zip(answers)
            .map(|(&(number, index), answer)| {
                let mut answer = leaf(number, index, answer);
                for register in CpuidRegister::ALL {
                    if !answer.is_component() && !is_feature_register(number, index, register) {
                        *answer.register_mut(register) = 0;
                    }
                }
                answer
            });
        CpuFeatures {
            physical_address_bits: bits,
            ..host(leaves.collect())
        }
    })
}

proptest! {
    #[test]
    fn guest_of_the_intersection_runs_on_both(one in any_host(), other in any_host()) {
        let both = one.intersection(&other).unwrap();
        prop_assert_eq!(both.lacking_in(&one), Vec::<String>::new());
        prop_assert_eq!(both.lacking_in(&other), Vec::<String>::new());
        prop_assert_eq!(other.intersection(&one).unwrap(), both);
    }
}
