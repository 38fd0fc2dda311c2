//! One queue of a tap (Linux `Documentation/networking/tuntap.rst`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::HEADER_BYTES;

/// One queue of a tap, non-blocking; its packets begin with a virtio-net header.
pub struct Tap {
    file: File,
}

impl Tap {
    /// Takes an open queue that was set up with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`.
    ///
    /// # Errors
    /// It is something else.
    pub fn new(file: File) -> io::Result<Self> {
        let tap = Self { file };
        let flags = i32::from(tap.flags()?);
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(io::Error::other("not a tap with virtio-net headers"));
        }
        let size = HEADER_BYTES as libc::c_int;
        // SAFETY: the kernel reads an integer through the reference.
        let result = unsafe { ioctl_with_ref(&tap, libc::TUNSETVNETHDRSZ, &size) };
        check(result)?;
        Ok(tap)
    }

    /// A tap for tests of the queues: any descriptor that keeps packets apart.
    #[cfg(test)]
    pub(super) fn unchecked(file: File) -> Self {
        Self { file }
    }

    /// `ifr_flags` of the queue.
    fn flags(&self) -> io::Result<u16> {
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes an ifreq through the reference.
        check(unsafe { ioctl_with_mut_ref(self, libc::TUNGETIFF, &mut request) })?;
        // SAFETY: TUNGETIFF has filled this member.
        Ok(unsafe { request.ifr_ifru.ifru_flags } as u16)
    }

    /// Whether the interface still exists.
    pub(super) fn is_alive(&self) -> bool {
        self.flags().is_ok()
    }

    /// Says what the guest can take: `TUN_F_CSUM`, `TUN_F_TSO4`, …
    ///
    /// # Errors
    /// The kernel does not know one of them, or the tap is gone.
    pub(super) fn set_offload(&self, flags: u32) -> io::Result<()> {
        // SAFETY: this ioctl takes its argument by value.
        check(unsafe { ioctl_with_val(self, libc::TUNSETOFFLOAD, flags.into()) })
    }

    /// Lets packets come to this queue of a tap with several, or not.
    ///
    /// # Errors
    /// It is so already, the tap has only one queue, or it is gone.
    pub(super) fn set_attached(&self, attached: bool) -> io::Result<()> {
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = if attached {
            libc::IFF_ATTACH_QUEUE as i16
        } else {
            libc::IFF_DETACH_QUEUE as i16
        };
        // SAFETY: the kernel reads an ifreq through the reference.
        check(unsafe { ioctl_with_ref(self, libc::TUNSETQUEUE, &request) })
    }

    /// Reads one packet into `buffers`. What they have no room for is lost.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    ///
    /// # Safety
    /// Each of the buffers is writable memory, and no reference to it exists.
    pub(super) unsafe fn read(&self, buffers: &[libc::iovec]) -> io::Result<usize> {
        let count = buffers.len() as libc::c_int;
        // SAFETY: pointer and count are those of a slice; the buffers are the caller's promise.
        let result = unsafe { libc::readv(self.as_raw_fd(), buffers.as_ptr(), count) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Writes one packet from `buffers`.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room; `InvalidInput` if the header makes no sense.
    ///
    /// # Safety
    /// Each of the buffers is readable memory.
    pub(super) unsafe fn write(&self, buffers: &[libc::iovec]) -> io::Result<usize> {
        let count = buffers.len() as libc::c_int;
        // SAFETY: pointer and count are those of a slice; the buffers are the caller's promise.
        let result = unsafe { libc::writev(self.as_raw_fd(), buffers.as_ptr(), count) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// The descriptor, for vhost.
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The result of an ioctl.
pub(super) fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
