//! A terminal in raw mode, and the way back that must work however the process ends.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

struct Saved {
    fd: RawFd,
    attributes: libc::termios,
}

/// What [`restore`] puts back; null if no terminal is in raw mode. Never freed, so that a signal
/// handler may read it at any time.
static SAVED: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());

/// A terminal in raw mode until this is dropped.
pub(super) struct RawMode(());

impl RawMode {
    /// Puts the terminal at `fd` into raw mode: keys arrive as they are typed, unechoed, and make
    /// no signals. Output is still processed, for the sake of log messages on the same terminal.
    ///
    /// `None` where that is not to be: `fd` is no terminal, or another process group owns it and
    /// the kernel would stop us for trying.
    pub(super) fn enter(fd: BorrowedFd<'_>) -> Option<Self> {
        let fd = fd.as_raw_fd();
        let attributes = attributes(fd)?;
        // SAFETY: takes no pointers, and has no preconditions.
        let foreground = unsafe { libc::tcgetpgrp(fd) };
        // SAFETY: as above.
        if foreground != unsafe { libc::getpgrp() } {
            return None;
        }
        SAVED.store(
            Box::into_raw(Box::new(Saved { fd, attributes })),
            Ordering::SeqCst,
        );
        restore_on_every_exit();
        let mut raw = attributes;
        raw.c_iflag &= !(libc::IGNBRK
            | libc::BRKINT
            | libc::PARMRK
            | libc::ISTRIP
            | libc::INLCR
            | libc::IGNCR
            | libc::ICRNL
            | libc::IXON);
        raw.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::IEXTEN | libc::ISIG);
        raw.c_cc[libc::VMIN] = 1;
        raw.c_cc[libc::VTIME] = 0;
        set_attributes(fd, &raw);
        Some(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether `fd` is a terminal.
pub(super) fn is_terminal(fd: RawFd) -> bool {
    attributes(fd).is_some()
}

/// Columns and rows of the terminal at `fd`.
pub(super) fn size(fd: RawFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: `size` is a valid winsize, which this ioctl fills.
    let result = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Gives the terminal back as it was; nothing happens if none is in raw mode. Safe in a signal
/// handler (it only calls tcsetattr), and safe to call twice.
pub fn restore() {
    let saved = SAVED.swap(ptr::null_mut(), Ordering::SeqCst);
    // SAFETY: either null or a leaked box, which lives for ever.
    if let Some(saved) = unsafe { saved.as_ref() } {
        set_attributes(saved.fd, &saved.attributes);
    }
}

extern "C" fn restore_at_exit() {
    restore();
}

/// Drop does not run after `exit()` or a panic that aborts.
fn restore_on_every_exit() {
    static HOOKS: Once = Once::new();
    HOOKS.call_once(|| {
        // SAFETY: the function lives for ever and does not unwind.
        unsafe { libc::atexit(restore_at_exit) };
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            before(panic);
        }));
    });
}

fn attributes(fd: RawFd) -> Option<libc::termios> {
    let mut attributes = std::mem::MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the pointer is to memory of a termios, which is only written to.
    if unsafe { libc::tcgetattr(fd, attributes.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: tcgetattr has filled it.
    Some(unsafe { attributes.assume_init() })
}

fn set_attributes(fd: RawFd, attributes: &libc::termios) {
    // SAFETY: the pointer is to a valid termios.
    unsafe { libc::tcsetattr(fd, libc::TCSANOW, attributes) };
}
