//! State of one vCPU, and the order in which KVM wants it.
//!
//! Save: MP_STATE first, as reading it lets KVM deliver a pending INIT or SIPI; VCPU_EVENTS last,
//! as the calls before may still change what is pending. Restore: what decides on the meaning of
//! the rest first (TSC frequency, CPUID), the TSC deadline after the TSC and the LAPIC that it
//! fires in, and VCPU_EVENTS last again.

use kvm_bindings::{
    CpuId, Msrs, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use pindah_vmm_api::Registers;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::arch::x86_64::msr;

/// Why the state of a vCPU cannot be read or set.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// A call was refused.
    #[error("{call} failed")]
    Call {
        /// KVM's name of it.
        call: &'static str,
        /// KVM's answer.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// This host's processor or KVM does not take the value of an MSR.
    #[error("this host refuses value {value:#x} in MSR {index:#x}")]
    Msr {
        /// Which.
        index: u32,
        /// What it should hold.
        value: u64,
    },
    /// The state does not fit this host.
    #[error("vCPU state does not fit this host: {reason}")]
    Shape {
        /// How.
        reason: String,
    },
}

fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuError {
    move |source| VcpuError::Call { call, source }
}

/// MSRs that are saved: those which this host's KVM lists and lets us read.
#[derive(Clone, Debug)]
pub struct MsrSet {
    indices: Vec<u32>,
}

impl MsrSet {
    /// Finds them out by reading each once from `vcpu`.
    ///
    /// # Errors
    /// [`VcpuError::Call`] if KVM does not give its list.
    pub fn probe(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Self, VcpuError> {
        let list = kvm
            .get_msr_index_list()
            .map_err(call("KVM_GET_MSR_INDEX_LIST"))?;
        let readable = |&index: &u32| {
            let entry = kvm_msr_entry {
                index,
                ..Default::default()
            };
            Msrs::from_entries(&[entry])
                .is_ok_and(|mut entries| vcpu.get_msrs(&mut entries) == Ok(1))
        };
        let indices = msr::saved(list.as_slice()).into_iter().filter(readable);
        Ok(Self {
            indices: indices.collect(),
        })
    }
}

/// What the state of a vCPU consists of on this host.
#[derive(Clone, Debug)]
pub struct StateShape {
    /// MSRs to save.
    pub msrs: MsrSet,
    /// Size of the XSAVE area in bytes (`KVM_CAP_XSAVE2`), 4096 or more.
    pub xsave_bytes: usize,
    /// There are extended control registers.
    pub has_xcrs: bool,
    /// The TSC's frequency can be set.
    pub has_tsc_control: bool,
}

impl StateShape {
    /// Asks KVM.
    ///
    /// # Errors
    /// [`VcpuError::Call`].
    pub fn probe(kvm: &Kvm, vm: &kvm_ioctls::VmFd, vcpu: &VcpuFd) -> Result<Self, VcpuError> {
        // KVM_CAP_XSAVE2 answers per VM and is zero before Linux 5.17.
        let xsave_bytes = vm.check_extension_int(Cap::Xsave2).max(4096) as usize;
        Ok(Self {
            msrs: MsrSet::probe(kvm, vcpu)?,
            xsave_bytes,
            has_xcrs: kvm.check_extension(Cap::Xcrs),
            has_tsc_control: kvm.check_extension(Cap::TscControl),
        })
    }
}

/// Everything that KVM holds of one vCPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// Running, halted, or waiting for a start-up message.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segment and control registers.
    pub sregs: kvm_sregs,
    /// x87, SSE and AVX registers, as 32-bit words in XSAVE's standard format.
    pub xsave: Vec<u32>,
    /// Extended control registers; absent on a processor without XSAVE.
    #[serde(default)]
    pub xcrs: Option<kvm_xcrs>,
    /// Debug registers.
    pub debug_regs: kvm_debugregs,
    /// Local APIC registers.
    pub lapic: kvm_lapic_state,
    /// Frequency of the TSC that the guest sees, in kHz; 0 if KVM did not say.
    #[serde(default)]
    pub tsc_khz: u32,
    /// What CPUID answers.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Model-specific registers as `(index, value)`.
    pub msrs: Vec<(u32, u64)>,
    /// Exceptions, interrupts and NMIs on their way.
    pub events: kvm_vcpu_events,
}

impl VcpuState {
    /// The same `elapsed_ns` nanoseconds later: the time stamp counter has gone on.
    #[must_use]
    pub fn aged(mut self, elapsed_ns: u64) -> Self {
        let ticks = u128::from(elapsed_ns) * u128::from(self.tsc_khz) / 1_000_000;
        for (index, value) in &mut self.msrs {
            if *index == msr::IA32_TSC {
                *value = value.wrapping_add(ticks as u64);
            }
        }
        self
    }
}

/// Reads the state of a parked vCPU.
///
/// `cpuid` is what it was given: KVM's own answer holds what the guest has switched on, and some
/// KVMs answer with the host's.
pub(super) fn save(
    fd: &VcpuFd,
    shape: &StateShape,
    cpuid: &[kvm_cpuid_entry2],
) -> Result<VcpuState, VcpuError> {
    let mp_state = fd.get_mp_state().map_err(call("KVM_GET_MP_STATE"))?;
    let regs = fd.get_regs().map_err(call("KVM_GET_REGS"))?;
    let sregs = fd.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    let xsave = save_xsave(fd, shape.xsave_bytes)?;
    let xcrs = shape
        .has_xcrs
        .then(|| fd.get_xcrs().map_err(call("KVM_GET_XCRS")))
        .transpose()?;
    let debug_regs = fd.get_debug_regs().map_err(call("KVM_GET_DEBUGREGS"))?;
    let lapic = fd.get_lapic().map_err(call("KVM_GET_LAPIC"))?;
    let msrs = save_msrs(fd, &shape.msrs)?;
    let events = fd.get_vcpu_events().map_err(call("KVM_GET_VCPU_EVENTS"))?;
    Ok(VcpuState {
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debug_regs,
        lapic,
        tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        cpuid: cpuid.to_vec(),
        msrs,
        events,
    })
}

/// Sets the state of a parked vCPU that has no access half done.
///
/// `cpuid` is what it has: a vCPU that has run takes no other.
pub(super) fn restore(
    fd: &VcpuFd,
    shape: &StateShape,
    cpuid: &[kvm_cpuid_entry2],
    state: &VcpuState,
) -> Result<(), VcpuError> {
    restore_tsc_khz(fd, state.tsc_khz)?;
    if cpuid != state.cpuid {
        let entries = CpuId::from_entries(&state.cpuid).map_err(|_| VcpuError::Shape {
            reason: format!("{} CPUID entries are too many", state.cpuid.len()),
        })?;
        fd.set_cpuid2(&entries).map_err(call("KVM_SET_CPUID2"))?;
    }
    fd.set_mp_state(state.mp_state)
        .map_err(call("KVM_SET_MP_STATE"))?;
    fd.set_regs(&state.regs).map_err(call("KVM_SET_REGS"))?;
    fd.set_sregs(&state.sregs).map_err(call("KVM_SET_SREGS"))?;
    restore_xsave(fd, shape.xsave_bytes, &state.xsave)?;
    if let Some(xcrs) = &state.xcrs {
        fd.set_xcrs(xcrs).map_err(call("KVM_SET_XCRS"))?;
    }
    fd.set_debug_regs(&state.debug_regs)
        .map_err(call("KVM_SET_DEBUGREGS"))?;
    fd.set_lapic(&state.lapic).map_err(call("KVM_SET_LAPIC"))?;
    restore_msrs(fd, &state.msrs)?;
    fd.set_vcpu_events(&state.events)
        .map_err(call("KVM_SET_VCPU_EVENTS"))
}

fn save_xsave(fd: &VcpuFd, bytes: usize) -> Result<Vec<u32>, VcpuError> {
    let extra = (bytes - 4096).div_ceil(4);
    let mut xsave = Xsave::new(extra).map_err(|_| VcpuError::Shape {
        reason: format!("an XSAVE area of {bytes} bytes is too large"),
    })?;
    // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 asks for.
    unsafe { fd.get_xsave2(&mut xsave) }.map_err(call("KVM_GET_XSAVE2"))?;
    let mut words = xsave.as_fam_struct_ref().xsave.region.to_vec();
    words.extend_from_slice(xsave.as_slice());
    Ok(words)
}

fn restore_xsave(fd: &VcpuFd, bytes: usize, words: &[u32]) -> Result<(), VcpuError> {
    let wrong_size = || VcpuError::Shape {
        reason: format!("an XSAVE area of {} bytes", words.len() * 4),
    };
    // The area lies in the state of some host: ours may know more components, and KVM reads as
    // much as it knows, so what is missing is zero. More than we know must be zero too.
    let known = bytes.div_ceil(4);
    if words.len() < 1024 || words.iter().skip(known).any(|&word| word != 0) {
        return Err(wrong_size());
    }
    let mut xsave = Xsave::new(known.saturating_sub(1024)).map_err(|_| wrong_size())?;
    for (to, &from) in xsave.as_mut_slice().iter_mut().zip(&words[1024..]) {
        *to = from;
    }
    // SAFETY: the length of the flexible member is not touched.
    let fixed = unsafe { xsave.as_mut_fam_struct() };
    fixed.xsave.region.copy_from_slice(&words[..1024]);
    // SAFETY: the buffer has at least the size that KVM reads on this host.
    unsafe { fd.set_xsave2(&xsave) }.map_err(call("KVM_SET_XSAVE"))
}

fn restore_tsc_khz(fd: &VcpuFd, khz: u32) -> Result<(), VcpuError> {
    let host = fd.get_tsc_khz().unwrap_or(0);
    if khz == 0 || host == khz {
        return Ok(());
    }
    // A guest keeps time by kvmclock, which bears a deviation like NTP's largest (250 ppm).
    if host.abs_diff(khz) <= host / 4000 {
        return Ok(());
    }
    fd.set_tsc_khz(khz).map_err(|_| VcpuError::Shape {
        reason: format!("its TSC runs at {khz} kHz, this host's at {host} kHz without scaling"),
    })
}

fn save_msrs(fd: &VcpuFd, set: &MsrSet) -> Result<Vec<(u32, u64)>, VcpuError> {
    let entries: Vec<kvm_msr_entry> = set
        .indices
        .iter()
        .map(|&index| kvm_msr_entry {
            index,
            ..Default::default()
        })
        .collect();
    let mut saved = Vec::with_capacity(entries.len());
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let mut msrs = msr_list(rest)?;
        let count = fd.get_msrs(&mut msrs).map_err(call("KVM_GET_MSRS"))?;
        let read = msrs.as_slice().iter().take(count);
        saved.extend(read.map(|entry| (entry.index, entry.data)));
        // One that has become unreadable is passed over.
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    Ok(saved)
}

fn restore_msrs(fd: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), VcpuError> {
    let (last, first): (Vec<_>, Vec<_>) = msrs
        .iter()
        .map(|&(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .partition(|entry| entry.index == msr::IA32_TSC_DEADLINE);
    let entries: Vec<kvm_msr_entry> = first.into_iter().chain(last).collect();
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let count = fd
            .set_msrs(&msr_list(rest)?)
            .map_err(call("KVM_SET_MSRS"))?;
        if let Some(refused) = rest.get(count) {
            tolerate(fd, *refused)?;
        }
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    Ok(())
}

/// An MSR that cannot be set does no harm if it holds the value already.
fn tolerate(fd: &VcpuFd, wanted: kvm_msr_entry) -> Result<(), VcpuError> {
    let mut current = msr_list(&[wanted])?;
    let same = fd.get_msrs(&mut current) == Ok(1) && current.as_slice()[0].data == wanted.data;
    if same {
        return Ok(());
    }
    Err(VcpuError::Msr {
        index: wanted.index,
        value: wanted.data,
    })
}

fn msr_list(entries: &[kvm_msr_entry]) -> Result<Msrs, VcpuError> {
    Msrs::from_entries(entries).map_err(|_| VcpuError::Shape {
        reason: format!("{} MSRs are too many", entries.len()),
    })
}

/// The registers that tell most of a crash.
pub(super) fn registers(fd: &VcpuFd) -> Option<Registers> {
    let regs = fd.get_regs().ok()?;
    let sregs = fd.get_sregs().ok()?;
    Some(Registers {
        rax: regs.rax,
        rbx: regs.rbx,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        rsp: regs.rsp,
        rbp: regs.rbp,
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        rip: regs.rip,
        rflags: regs.rflags,
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
        cs: sregs.cs.selector,
        ss: sregs.ss.selector,
    })
}
