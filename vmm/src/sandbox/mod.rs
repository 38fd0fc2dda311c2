//! What the process may still do once a guest runs, so that a guest that takes over a device
//! model holds as little as possible.
//!
//! ```text
//! Resources::open ─► restrict ─► Vm::build ── spawn(kind) ─► enter(Control) ─► boot | restore, run
//!  paths, sockets,    whole       every thread starts         this thread too
//!  taps, /dev/kvm     process     under its kind's filter
//! ```
//! The layers, each of which holds when another has a hole:
//!
//! | layer | scope | what it keeps from whoever runs code in here |
//! |---|---|---|
//! | `no_new_privs` | process | set-user-id programs and file capabilities |
//! | a user of its own ([`user`]), if one is named | process | what belongs to root without any capability: files, and what the kernel lets their owner do |
//! | no capabilities ([`capabilities`]) | process | all that root may do: mount, ptrace others, raw network, kernel interfaces; none comes back, the bounding set is empty |
//! | Landlock ([`landlock`]) | process | every file by path (open, create, rename, remove, execute, resize), TCP, abstract sockets, signals to other processes; io_uring cannot go around it as it can around seccomp |
//! | io_uring restrictions (the block device) | ring | all but reading and writing the image it was made for |
//! | seccomp ([`seccomp`], [`rules`]) | thread | every system call, and every `ioctl` by its request, that this kind of thread has no need of: the kernel's attack surface |
//!
//! What arrives as a descriptor is not touched by any of this: disks, taps, `/dev/kvm`, clients'
//! files received over the API.
//!
//! Order: a thread inherits what its creator has, and nothing here reaches threads that exist.
//! [`restrict`] therefore refuses to run once there is a second thread, and the main thread comes
//! under its own filter last, by [`enter`], when all others are there; from then on nobody can
//! start another. Guest RAM, KVM's VM and the io_uring rings are made between the two, when there
//! is no path and no capability any more, but before a byte of the guest's, or of a state that is
//! restored, is looked at.
//!
//! What it costs: paths. Sockets that the VMM made stay in the file system when it ends; the next
//! one that wants the path finds that nobody listens and replaces them. Who has become another user
//! is not dumpable any more (prctl(2), `PR_SET_DUMPABLE`), so that the VMMs of other guests, which
//! may be the same user's, cannot trace it; root still can. Without that its memory is protected
//! from its peers by Landlock, which forbids tracing to who is in a sandbox. Guest RAM is left out
//! of core dumps by `MADV_DONTDUMP`.

mod capabilities;
mod ioctls;
mod landlock;
mod rules;
mod seccomp;
mod user;
mod violation;

use std::fmt::{Display, Formatter};
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use pindah_vmm_api::User;
use thiserror::Error;

pub use landlock::Landlock;
pub use violation::EXIT_CODE;

/// The kinds of threads, each with a filter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// The machine's own thread: runs its life, resets it, restores it.
    Control,
    /// Runs one vCPU, and with it whatever a device does on a register access.
    Vcpu,
    /// Serves virtio-blk queues.
    Block,
    /// Serves virtio-net queues.
    Net,
    /// Serves a console, a serial port, the random device or the balloon.
    Device,
    /// Talks to the API's clients.
    Api,
    /// Does what the API's clients asked for: pause, reset, resize, snapshot.
    Operation,
    /// Carries the guest to another machine, or takes one in.
    Migration,
    /// Makes frames of guest RAM for the thread that migrates.
    Encoding,
    /// Fetches the pages of a guest that runs already, and gives them to who waits for them.
    Postcopy,
}

impl ThreadKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Control,
        Self::Vcpu,
        Self::Block,
        Self::Net,
        Self::Device,
        Self::Api,
        Self::Operation,
        Self::Migration,
        Self::Encoding,
        Self::Postcopy,
    ];

    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Vcpu => "vcpu",
            Self::Block => "block",
            Self::Net => "net",
            Self::Device => "device",
            Self::Api => "api",
            Self::Operation => "operation",
            Self::Migration => "migration",
            Self::Encoding => "encoding",
            Self::Postcopy => "postcopy",
        }
    }
}

/// What becomes of a system call that a thread's filter does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeccompMode {
    /// It ends the process, with a message that names it.
    On,
    /// It is done, and the kernel's audit log names it.
    Log,
    /// There are no filters.
    Off,
}

impl Default for SeccompMode {
    /// On in release builds, off in debug builds.
    fn default() -> Self {
        if cfg!(debug_assertions) {
            Self::Off
        } else {
            Self::On
        }
    }
}

impl Display for SeccompMode {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Log => "log",
            Self::Off => "off",
        })
    }
}

impl FromStr for SeccompMode {
    type Err = ParseSeccompModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "on" => Ok(Self::On),
            "log" => Ok(Self::Log),
            "off" => Ok(Self::Off),
            _ => Err(ParseSeccompModeError),
        }
    }
}

/// The text is none of the modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("seccomp is `on`, `log` or `off`")]
pub struct ParseSeccompModeError;

/// Why the sandbox cannot be closed.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Threads that exist already would stay outside.
    #[error("the sandbox must be closed before there are threads; there are {0}")]
    Threads(u64),
    /// `no_new_privs` is refused, which no Linux since 3.5 does.
    #[error("cannot set no_new_privs")]
    NoNewPrivs(#[source] io::Error),
    /// A capability set cannot be emptied.
    #[error("cannot drop capabilities from the {set} set")]
    Capabilities {
        /// Which one.
        set: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The user cannot be changed.
    #[error("cannot become user {user}, which takes root's rights")]
    User {
        /// Who.
        user: User,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Landlock is there but fails.
    #[error("cannot enforce Landlock")]
    Landlock(#[from] ::landlock::RulesetError),
    /// The kernel has no seccomp filters.
    #[error(
        "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER); `--seccomp off` runs without them"
    )]
    NoSeccomp(#[source] io::Error),
    /// The handler that names forbidden calls cannot be installed.
    #[error("cannot handle SIGSYS")]
    Handler(#[source] io::Error),
    /// A filter cannot be installed.
    #[error("cannot install the seccomp filter for {kind} threads")]
    Filter {
        /// For which threads.
        kind: &'static str,
        /// Why.
        #[source]
        source: seccompiler::Error,
    },
}

/// What [`restrict`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxReport {
    /// What Landlock enforces.
    pub landlock: Landlock,
    /// What becomes of forbidden system calls.
    pub seccomp: SeccompMode,
}

impl Display for SandboxReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "sandbox closed: no capabilities, Landlock {}, seccomp {}",
            self.landlock, self.seccomp
        )
    }
}

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Closes the sandbox around the whole process. Call once, with everything open that has a path,
/// and every limit raised that only root may raise, before the first thread. It runs as `user` from
/// then on, if there is one.
///
/// `last_words` runs before a forbidden call ends the process, on the thread that made it and in a
/// signal handler: it must be async-signal-safe and keep to what every filter allows. It is there
/// to give a terminal back.
///
/// # Errors
/// [`SandboxError`]. Some layers may be in force then: the process cannot go on.
pub fn restrict(
    mode: SeccompMode,
    user: Option<User>,
    last_words: fn(),
) -> Result<SandboxReport, SandboxError> {
    refuse_threads()?;
    use_one_malloc_arena();
    set_no_new_privs().map_err(SandboxError::NoNewPrivs)?;
    capabilities::drop_ambient_and_bounding()?;
    if let Some(user) = user {
        user::become_user(user)?;
    }
    capabilities::drop_own()?;
    if mode != SeccompMode::Off {
        seccomp::check_support().map_err(SandboxError::NoSeccomp)?;
        violation::handle(last_words).map_err(SandboxError::Handler)?;
    }
    seccomp::set_mode(mode);
    let landlock = landlock::deny_all()?;
    CLOSED.store(true, Ordering::Release);
    Ok(SandboxReport {
        landlock,
        seccomp: mode,
    })
}

/// Whether [`restrict`] has run: nothing can be reached by path any more, and trying to may end
/// the process.
pub fn is_closed() -> bool {
    CLOSED.load(Ordering::Acquire)
}

/// Starts a thread of this kind, under its filter before `body` runs.
///
/// # Errors
/// The host refuses another thread.
pub fn spawn(
    name: &str,
    kind: ThreadKind,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let filter = seccomp::filter(kind);
    let label = violation::Label::new(name, kind);
    Builder::new().name(name.to_owned()).spawn(move || {
        violation::set_label(label);
        if let Some(filter) = filter
            && let Err(source) = seccomp::install(filter)
        {
            let kind = kind.name();
            violation::refuse_to_run(&SandboxError::Filter { kind, source });
        }
        body();
    })
}

/// Puts the calling thread under the filter of `kind`, for good. For the main thread, once all
/// others are there: threads that it would start then would be under its filter too.
///
/// # Errors
/// [`SandboxError::Filter`].
pub fn enter(kind: ThreadKind) -> Result<(), SandboxError> {
    let thread = std::thread::current();
    violation::set_label(violation::Label::new(thread.name().unwrap_or("?"), kind));
    match seccomp::filter(kind) {
        None => Ok(()),
        Some(filter) => seccomp::install(filter).map_err(|source| SandboxError::Filter {
            kind: kind.name(),
            source,
        }),
    }
}

/// Fails if there is a second thread, and lets it pass where `/proc` is not mounted.
fn refuse_threads() -> Result<(), SandboxError> {
    use std::os::unix::fs::MetadataExt;
    // The directory has a link for each thread's directory, and two of its own.
    let threads = std::fs::metadata("/proc/self/task").map_or(1, |task| task.nlink() - 2);
    if threads == 1 {
        Ok(())
    } else {
        Err(SandboxError::Threads(threads))
    }
}

/// glibc gives threads arenas of their own, and reads a file in /proc when it shrinks one. One
/// arena needs no file, and less memory; small allocations still go through each thread's cache.
#[cfg(target_env = "gnu")]
fn use_one_malloc_arena() {
    // SAFETY: takes no pointers, and no second thread allocates yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(not(target_env = "gnu"))]
fn use_one_malloc_arena() {}

fn set_no_new_privs() -> io::Result<()> {
    // SAFETY: this operation takes no pointers.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_survives_its_own_text() {
        for mode in [SeccompMode::On, SeccompMode::Log, SeccompMode::Off] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!("yes".parse::<SeccompMode>(), Err(ParseSeccompModeError));
    }

    #[test]
    fn restrict_beside_other_threads_is_refused() {
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        let refused = restrict(SeccompMode::Off, None, || ());
        assert!(matches!(refused, Err(SandboxError::Threads(2..))));
        assert!(!is_closed());
        drop(end);
        assert!(other.join().unwrap().is_err());
    }
}
