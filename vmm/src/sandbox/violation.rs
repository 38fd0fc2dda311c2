//! The last thing that a forbidden call does: one line that names it, then the end.
//!
//! All of this runs in a signal handler, on the thread that made the call and under its filter:
//! no allocation, no lock, and no call that some filter does not allow.
//!
//! A forbidden call made while SIGSYS is blocked ends the process by that very signal, without the
//! line. The C library blocks all signals while it makes a thread, and nowhere else for long.

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use syscalls::Sysno;

use super::{SandboxError, ThreadKind};

/// The process's exit code when its own code did what its sandbox forbids: a host error.
pub const EXIT_CODE: i32 = 1;

/// `SYS_SECCOMP` (asm-generic/siginfo.h): the `si_code` of a filter's SIGSYS.
const SI_CODE_SECCOMP: c_int = 1;

/// A thread's name and kind, to be read in the handler.
#[derive(Clone, Copy)]
pub(super) struct Label {
    name: [u8; 32],
    name_len: u8,
    kind: &'static str,
}

impl Label {
    /// The name is cut to 32 bytes.
    pub(super) const fn new(name: &str, kind: ThreadKind) -> Self {
        Self::of(name.as_bytes(), kind.name())
    }

    const fn of(bytes: &[u8], kind: &'static str) -> Self {
        let mut name = [0; 32];
        let mut len = 0;
        while len < bytes.len() && len < name.len() {
            name[len] = bytes[len];
            len += 1;
        }
        Self {
            name,
            name_len: len as u8,
            kind,
        }
    }
}

thread_local! {
    // Constant and without a destructor: a plain load for the handler.
    static LABEL: Cell<Label> = const { Cell::new(Label::of(b"?", "unknown")) };
}

static LAST_WORDS: OnceLock<fn()> = OnceLock::new();

/// Names the calling thread.
pub(super) fn set_label(label: Label) {
    LABEL.set(label);
}

/// Installs the handler for the whole process.
///
/// # Errors
/// The kernel refuses it.
pub(super) fn handle(last_words: fn()) -> io::Result<()> {
    LAST_WORDS.get_or_init(|| last_words);
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeroes are a valid sigaction: no handler, no flags, an empty mask.
    let action = unsafe { action.assume_init_mut() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigsys;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the mask is ours to fill.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    // SAFETY: the handler is async-signal-safe and lives for ever; the old one is not asked for.
    match unsafe { libc::sigaction(libc::SIGSYS, action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the process because a thread cannot be put under its filter.
pub(super) fn refuse_to_run(error: &SandboxError) -> ! {
    tracing::error!(error = error as &dyn std::error::Error, "{error}");
    std::process::exit(EXIT_CODE);
}

/// `siginfo_t` as the kernel fills it for SIGSYS (asm-generic/siginfo.h).
#[repr(C)]
struct SigsysInfo {
    signo: c_int,
    errno: c_int,
    code: c_int,
    /// The union that follows is aligned for pointers.
    _pad: c_int,
    call_address: *const c_void,
    syscall: c_int,
    arch: c_uint,
}

extern "C" fn on_sigsys(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a SA_SIGINFO handler a valid siginfo, larger than this view of it.
    let info = unsafe { &*info.cast::<SigsysInfo>() };
    // SAFETY: as above, the context is a ucontext of this architecture.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let arguments = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX]
        .map(|register| registers[register as usize] as u64);
    let line = if info.code == SI_CODE_SECCOMP {
        describe(&LABEL.get(), info.syscall, arguments)
    } else {
        let mut line = Line::default();
        line.text(b"pindah-vmm: somebody sent SIGSYS; the process ends");
        line
    };
    if let Some(last_words) = LAST_WORDS.get() {
        last_words();
    }
    line.write_to_stderr();
    // SAFETY: ends the process; nothing follows.
    unsafe { libc::_exit(EXIT_CODE) };
}

fn describe(label: &Label, number: c_int, arguments: [u64; 3]) -> Line {
    let mut line = Line::default();
    line.text(b"pindah-vmm: thread ");
    line.text(&label.name[..usize::from(label.name_len)]);
    line.text(b" (");
    line.text(label.kind.as_bytes());
    line.text(b") made a system call that its sandbox forbids: ");
    let known = usize::try_from(number).ok().and_then(Sysno::new);
    line.text(known.map_or("unknown", |call| call.name()).as_bytes());
    line.text(b" (number ");
    line.number(u64::from(number.unsigned_abs()), 10);
    line.text(b", arguments");
    for argument in arguments {
        line.text(b" 0x");
        line.number(argument, 16);
    }
    line.text(b" ...); the process ends. `--seccomp log` lets such calls pass");
    line
}

/// One line of text on the stack; what does not fit is cut.
struct Line {
    bytes: [u8; 320],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 320],
            len: 0,
        }
    }
}

impl Line {
    fn text(&mut self, text: &[u8]) {
        // One byte is kept for the end of the line.
        let room = (self.bytes.len() - 1).saturating_sub(self.len);
        let count = text.len().min(room);
        self.bytes[self.len..self.len + count].copy_from_slice(&text[..count]);
        self.len += count;
    }

    fn number(&mut self, mut value: u64, base: u64) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdef"[(value % base) as usize];
            value /= base;
            if value == 0 {
                break;
            }
        }
        self.text(&digits[at..]);
    }

    fn write_to_stderr(mut self) {
        self.bytes[self.len] = b'\n';
        let line = &self.bytes[..=self.len];
        // SAFETY: the pointer and the length are those of a live slice. Nobody is left to hear of
        // a failure.
        unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::machine::ExitReason;

    #[test]
    fn description_names_thread_call_and_arguments() {
        let label = Label::new("vcpu0", ThreadKind::Vcpu);
        let line = describe(&label, libc::SYS_socket as c_int, [1, 0x80801, 0]);
        let text = std::str::from_utf8(&line.bytes[..line.len]).unwrap();
        assert!(text.contains("thread vcpu0 (vcpu) made"), "{text}");
        assert!(text.contains("socket (number 41, arguments 0x1 0x80801 0x0"));
        assert!(text.ends_with("`--seccomp log` lets such calls pass"));
    }

    #[test]
    fn description_of_the_longest_is_not_cut() {
        let label = Label::new(&"n".repeat(100), ThreadKind::Operation);
        let line = describe(
            &label,
            libc::SYS_sched_get_priority_max as c_int,
            [u64::MAX; 3],
        );
        assert!(line.len < line.bytes.len() - 1);
    }

    #[test]
    fn description_of_a_number_without_a_name_says_so() {
        let label = Label::new("a", ThreadKind::Api);
        let line = describe(&label, 100_000, [0; 3]);
        let text = std::str::from_utf8(&line.bytes[..line.len]).unwrap();
        assert!(text.contains("unknown (number 100000"), "{text}");
    }

    #[test]
    fn exit_code_is_the_documented_one() {
        assert_eq!(EXIT_CODE, i32::from(ExitReason::HostError.code()));
    }
}
