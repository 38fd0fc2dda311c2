//! Gives up all capabilities (capabilities(7)): what is open stays open, but root is nobody.

use std::io;

use super::SandboxError;

/// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h): two words a set.
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    /// 0: the calling thread.
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Empties the ambient and the bounding set of the calling thread: no program that it might start
/// gets any; threads that it starts have none either.
///
/// The bounding set can only be emptied by who has CAP_SETPCAP. Without it there is nothing that
/// `no_new_privs` would let through it.
///
/// # Errors
/// [`SandboxError::Capabilities`].
pub(super) fn drop_ambient_and_bounding() -> Result<(), SandboxError> {
    clear_ambient().map_err(failed("ambient"))?;
    clear_bounding().map_err(failed("bounding"))
}

/// Empties the other three: from here on the calling thread has none.
///
/// # Errors
/// [`SandboxError::Capabilities`].
pub(super) fn drop_own() -> Result<(), SandboxError> {
    clear_others().map_err(failed("permitted"))
}

fn failed(set: &'static str) -> impl Fn(io::Error) -> SandboxError {
    move |source| SandboxError::Capabilities { set, source }
}

fn clear_ambient() -> io::Result<()> {
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL;
    // SAFETY: this operation takes no pointers.
    match unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn clear_bounding() -> io::Result<()> {
    // The kernel knows fewer than 64, and says where they end.
    for capability in 0..64 {
        // SAFETY: this operation takes no pointers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EINVAL | libc::EPERM) => Ok(()),
            _ => Err(error),
        };
    }
    Ok(())
}

fn clear_others() -> io::Result<()> {
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let none = [Sets {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    }; 2];
    // SAFETY: version 3 reads one header and two words a set, and both are there.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
