//! What features are called: the flags of Linux's `/proc/cpuinfo` (`cpufeatures.h`), where their
//! bits come from CPUID as it is.

use super::CpuidRegister::{self, Eax, Ebx, Ecx, Edx};

/// Names of the bits of one register, from bit 0 on; `-` for those without.
type Row = (u32, u32, CpuidRegister, &'static str);

const ROWS: [Row; 14] = [
    (
        1,
        0,
        Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts \
         acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    (
        1,
        0,
        Ecx,
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - \
         pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c \
         rdrand hypervisor",
    ),
    (
        7,
        0,
        Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm \
         zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb \
         intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    (
        7,
        0,
        Ecx,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq \
         avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid key_locker \
         bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    ),
    (
        7,
        0,
        Edx,
        "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear \
         rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - \
         amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities \
         core_capabilities spec_ctrl_ssbd",
    ),
    (
        7,
        1,
        Eax,
        "- - - - avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - \
         amx_fp16 - avx_ifma - - lam",
    ),
    (
        7,
        2,
        Edx,
        "psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no",
    ),
    (
        0xd,
        0,
        Eax,
        "x87_state sse_state avx_state bndregs_state bndcsr_state opmask_state zmm_hi256_state hi16_zmm_state pt_state pkru_state - cet_u_state cet_s_state - - - - amx_tilecfg_state amx_tiledata_state",
    ),
    (0xd, 1, Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    (
        0x4000_0001,
        0,
        Eax,
        "kvmclock_old kvm_nop_io_delay kvm_mmu kvmclock kvm_asyncpf kvm_steal_time kvm_pv_eoi \
         kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_send_ipi kvm_poll_control \
         kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range \
         kvm_migration_control - - - - - - kvmclock_stable",
    ),
    (
        0x8000_0001,
        0,
        Edx,
        "amd_fpu amd_vme amd_de amd_pse amd_tsc amd_msr amd_pae amd_mce amd_cx8 amd_apic - syscall \
         amd_mtrr amd_pge amd_mca amd_cmov amd_pat amd_pse36 - mp nx - mmxext amd_mmx amd_fxsr \
         fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    (
        0x8000_0001,
        0,
        Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop \
         skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc \
         perfctr_llc mwaitx",
    ),
    (
        0x8000_0008,
        0,
        Ebx,
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - \
         amd_stibp_always_on - - - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no",
    ),
    (
        0x8000_0021,
        0,
        Eax,
        "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs no_smm_ctl_msr",
    ),
];

/// The name of one bit.
pub(super) fn of(leaf: u32, index: u32, register: CpuidRegister, bit: u32) -> Option<&'static str> {
    let row = ROWS
        .iter()
        .find(|row| (row.0, row.1, row.2) == (leaf, index, register))?;
    let name = row.3.split_ascii_whitespace().nth(bit as usize)?;
    (name != "-").then_some(name)
}
