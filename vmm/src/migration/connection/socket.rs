//! What a migration wants of a TCP socket.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use vmm_sys_util::syscall::SyscallReturnCode;

/// Unsent bytes beyond which the socket takes no more (`TCP_NOTSENT_LOWAT`, tcp(7)).
///
/// On a slow link they are what waits in front of a page that is sent now: 10 ms at 100 Mbit/s.
pub const NOT_SENT_LOW_WATER_BYTES: u32 = 128 << 10;

/// No waiting in the kernel, for either side's sake.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    set_not_sent_low_water(stream, NOT_SENT_LOW_WATER_BYTES)
}

fn set_not_sent_low_water(stream: &TcpStream, bytes: u32) -> io::Result<()> {
    let bytes = bytes as libc::c_int;
    // SAFETY: the value is an int that lives through the call, as long as it says.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    SyscallReturnCode(result).into_empty_result()
}
