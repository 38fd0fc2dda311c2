//! SIGTERM, SIGINT and SIGHUP take the power away: the guest stops at once, its consoles and its
//! API hear the end, and the process ends as after any shutdown. Whoever wants the guest to shut
//! down by itself presses the power button first.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use pindah_vmm_api::Initiator;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::create_sigset;
use vmm_sys_util::syscall::SyscallReturnCode;

use super::lifecycle::Request;
use super::wiring::Requests;
use crate::sandbox::{self, ThreadKind};

const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
const SIGNAL: u64 = 0;
const STOP: u64 = 1;

/// Blocks the signals in this thread and in those that it starts from now on, so that only
/// [`Termination`] gets them. Call before the first thread.
///
/// # Errors
/// The host refuses; it never does.
pub fn block_signals() -> io::Result<()> {
    let signals = create_sigset(&SIGNALS)?;
    // SAFETY: the set is initialised, and the old mask is not asked for.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut()) };
    match result {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The thread that waits for the signals, until this is dropped.
pub(super) struct Termination {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Termination {
    /// Starts the thread.
    pub fn start(requests: Requests) -> io::Result<Self> {
        let signals = signal_fd()?;
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let epoll = Epoll::new()?;
        for (fd, token) in [(signals.as_raw_fd(), SIGNAL), (stop.as_raw_fd(), STOP)] {
            let event = EpollEvent::new(EventSet::IN, token);
            epoll.ctl(ControlOperation::Add, fd, event)?;
        }
        let thread = sandbox::spawn("signals", ThreadKind::Device, move || {
            // Open for as long as somebody waits for it.
            let _signals = signals;
            if wait(&epoll) == SIGNAL {
                requests.send(Request::PowerOff(Initiator::Host));
            }
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

/// A file from which each of the signals can be read, once they are blocked (signalfd(2)).
///
/// # Errors
/// The host has no descriptor left.
pub fn signal_fd() -> io::Result<std::fs::File> {
    use std::os::fd::FromRawFd;
    let signals = create_sigset(&SIGNALS)?;
    // SAFETY: the set is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const signals, libc::SFD_CLOEXEC) };
    let fd = SyscallReturnCode(fd).into_result()?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { std::fs::File::from_raw_fd(fd) })
}

/// The token of the first event.
fn wait(epoll: &Epoll) -> u64 {
    let mut events = [EpollEvent::default(); 2];
    loop {
        // Only a signal that is not blocked interrupts this.
        match epoll.wait(-1, &mut events) {
            Ok(count) if count > 0 => return events[0].data(),
            _ => {}
        }
    }
}

impl Drop for Termination {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
