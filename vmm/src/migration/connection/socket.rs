//! What a migration wants of a TCP socket.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

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
    set(stream, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes)
}

/// Lets segments go no faster than this, in bytes a second; `None` for as fast as TCP finds good
/// (`SO_MAX_PACING_RATE`, socket(7); the kernel's TCP does it itself where the queueing discipline
/// does not).
pub(super) fn set_pace(stream: &TcpStream, pace: Option<u64>) -> io::Result<()> {
    let pace = pace.unwrap_or(u64::MAX);
    set(stream, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, pace)
}

/// Sets an option that is one integer of this type.
fn set<T: Copy>(
    stream: &TcpStream,
    level: libc::c_int,
    option: libc::c_int,
    value: T,
) -> io::Result<()> {
    // SAFETY: the kernel reads the value, which lives through the call and is as long as it says.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    SyscallReturnCode(result).into_empty_result()
}

/// What the kernel has measured on one connection (`TCP_INFO`, tcp(7)): neither side's threads are
/// part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkTime {
    /// From a segment to its acknowledgement, smoothed over some eight of them.
    pub rtt: Duration,
    /// The least of some minutes.
    pub min_rtt: Duration,
}

/// What is known about the link of `stream`; `None` before anything was measured.
pub(super) fn link_time(stream: &TcpStream) -> io::Result<Option<LinkTime>> {
    // SAFETY: integers, for which zeroes are values.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes no more than `length` bytes, which `info` has.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    SyscallReturnCode(result).into_empty_result()?;
    // `u32::MAX` stands for no sample.
    let known = info.tcpi_rtt > 0 && info.tcpi_min_rtt != u32::MAX;
    Ok(known.then(|| LinkTime {
        rtt: Duration::from_micros(info.tcpi_rtt.into()),
        min_rtt: Duration::from_micros(info.tcpi_min_rtt.into()),
    }))
}
