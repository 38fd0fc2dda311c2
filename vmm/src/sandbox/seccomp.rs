//! From rules to BPF programs (seccomp(2)), each compiled once, when its first thread is made.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::rules::{Rule, Test};
use super::{SeccompMode, ThreadKind, rules};

struct Filters {
    mode: SeccompMode,
    programs: [OnceLock<BpfProgram>; ThreadKind::ALL.len()],
}

static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Decides for all threads that come; only the first call counts.
pub(super) fn set_mode(mode: SeccompMode) {
    FILTERS.get_or_init(|| Filters {
        mode,
        programs: Default::default(),
    });
}

/// Whether the kernel can end a thread's forbidden call with a signal.
///
/// # Errors
/// It cannot.
pub(super) fn check_support() -> io::Result<()> {
    let action = libc::SECCOMP_RET_TRAP;
    let operation = libc::SECCOMP_GET_ACTION_AVAIL;
    // SAFETY: this operation reads one u32 from the pointer.
    match unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, &raw const action) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The program for threads of this kind; `None` without filters.
pub(super) fn filter(kind: ThreadKind) -> Option<&'static BpfProgram> {
    let filters = FILTERS.get()?;
    let mismatch = match filters.mode {
        SeccompMode::On => SeccompAction::Trap,
        SeccompMode::Log => SeccompAction::Log,
        SeccompMode::Off => return None,
    };
    Some(filters.programs[kind as usize].get_or_init(|| compile(kind, mismatch)))
}

/// Puts the calling thread under `program`.
///
/// # Errors
/// The kernel refuses.
pub(super) fn install(program: &BpfProgram) -> Result<(), seccompiler::Error> {
    seccompiler::apply_filter(program)
}

fn compile(kind: ThreadKind, mismatch: SeccompAction) -> BpfProgram {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in rules::of(kind).iter().copied().flatten() {
        calls
            .entry(rule.syscall)
            .or_default()
            .extend(alternatives(rule));
    }
    let filter = SeccompFilter::new(calls, mismatch, SeccompAction::Allow, TargetArch::x86_64);
    filter
        .and_then(BpfProgram::try_from)
        .expect("the rules are constants, and tests compile all of them")
}

/// The conditions of which one must hold; none for a call that is free.
fn alternatives(rule: &Rule) -> Vec<SeccompRule> {
    let one = |argument, operator, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
            .expect("a call has six arguments")
    };
    let all = |conditions| SeccompRule::new(conditions).expect("there is one at least");
    let condition = |argument, operator, value| all(vec![one(argument, operator, value)]);
    match rule.test {
        Test::Free => Vec::new(),
        Test::OneOf(argument, values) => values
            .iter()
            .map(|&value| condition(argument, SeccompCmpOp::Eq, value.into()))
            .collect(),
        Test::With(argument, value, (other, values)) => values
            .iter()
            .map(|&choice| {
                let with = one(argument, SeccompCmpOp::Eq, value.into());
                all(vec![with, one(other, SeccompCmpOp::Eq, choice.into())])
            })
            .collect(),
        Test::Lacks(argument, bits) => {
            let operator = SeccompCmpOp::MaskedEq(bits.into());
            vec![condition(argument, operator, 0)]
        }
        Test::Has(argument, bits) => {
            let operator = SeccompCmpOp::MaskedEq(bits.into());
            vec![condition(argument, operator, bits.into())]
        }
        Test::OwnProcess(argument) => {
            let pid = std::process::id();
            vec![condition(argument, SeccompCmpOp::Eq, pid.into())]
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn compile_of_each_kind_fits_the_kernel() {
        for kind in ThreadKind::ALL {
            let program = compile(kind, SeccompAction::Trap);
            // BPF_MAXINSNS (linux/bpf_common.h).
            assert!(program.len() < 4096, "{kind:?}: {}", program.len());
        }
    }

    #[test]
    fn rules_allow_a_call_freely_or_by_argument_but_not_both() {
        for kind in ThreadKind::ALL {
            let all = || rules::of(kind).iter().copied().flatten();
            let free: BTreeSet<i64> = all()
                .filter(|rule| matches!(rule.test, Test::Free))
                .map(|rule| rule.syscall)
                .collect();
            for rule in all().filter(|rule| !matches!(rule.test, Test::Free)) {
                assert!(
                    !free.contains(&rule.syscall),
                    "{kind:?}: {} would lose its freedom",
                    rule.syscall
                );
            }
        }
    }

    #[test]
    fn no_kind_may_open_connect_execute_or_start_a_thread() {
        let never = [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_creat,
            libc::SYS_unlink,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_prctl,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
        ];
        for kind in ThreadKind::ALL {
            for rule in rules::of(kind).iter().copied().flatten() {
                assert!(!never.contains(&rule.syscall), "{kind:?}: {}", rule.syscall);
            }
        }
    }
}
