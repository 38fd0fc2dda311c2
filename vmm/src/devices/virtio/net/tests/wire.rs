//! A network namespace with a tap in it, and a packet socket on the tap's other side.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};

use pindah_vmm_api::{NetConfig, VhostMode};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::super::{NetResources, OpenNetError, open};

/// Runs `body` in a network namespace of its own; says so and does nothing where this user may
/// not have one.
pub fn in_namespace(body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: takes no pointers; only this thread changes its namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!(
                "skipped: no network namespace: {}",
                io::Error::last_os_error()
            );
            return;
        }
        if !std::path::Path::new("/dev/net/tun").exists() {
            eprintln!("skipped: no /dev/net/tun");
            return;
        }
        // The host's own chatter would be in the way.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        body();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn config(tap: &str, pairs: u8) -> NetConfig {
    NetConfig {
        id: None,
        tap: tap.to_owned(),
        mac: None,
        queue_pairs: pairs,
        queue_size: super::driver::SIZE,
        vhost: VhostMode::Off,
    }
}

pub fn open_tap(tap: &str, pairs: u8) -> Result<NetResources, OpenNetError> {
    open(&config(tap, pairs), "net0", "guest")
}

/// The network behind a tap. Only frames of [`Wire::TYPE`] are seen.
pub struct Wire {
    socket: File,
}

impl Wire {
    /// For local experiments (IEEE 802).
    const TYPE: u16 = 0x88b5;

    pub fn new(tap: &str) -> Self {
        let protocol = Self::TYPE.to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, protocol.into()) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor is ours alone.
        let socket = unsafe { File::from_raw_fd(fd) };
        let name = std::ffi::CString::new(tap).unwrap();
        // SAFETY: all-zero bytes are a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        // SAFETY: the pointer is to a C string.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        let size = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: pointer and length are those of a valid address.
        let result = unsafe { libc::bind(fd, (&raw const address).cast(), size) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        let wire = Self { socket };
        wire.set_mtu(tap, 65_000);
        wire
    }

    fn set_mtu(&self, tap: &str, mtu: i32) {
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(tap.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_mtu = mtu;
        // SAFETY: the kernel reads an ifreq through the reference.
        let result = unsafe { ioctl_with_ref(&self.socket, libc::SIOCSIFMTU, &request) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// A frame of this length in all, with content that follows from `seed`.
    pub fn frame(seed: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        frame.extend(Self::TYPE.to_be_bytes());
        frame.push(seed);
        let content = (0_u32..).map(|at| (at.wrapping_mul(31) >> 3) as u8 ^ seed);
        frame.extend(content.take(length - frame.len()));
        frame
    }

    /// To the guest.
    pub fn send(&self, frame: &[u8]) {
        (&self.socket).write_all(frame).unwrap();
    }

    /// From the guest, if there is any.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        match (&self.socket).read(&mut frame) {
            Ok(length) => {
                frame.truncate(length);
                Some(frame)
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                None
            }
        }
    }
}

/// Removes the interface.
pub fn remove(tap: &str) {
    let status = std::process::Command::new("ip")
        .args(["link", "del", tap])
        .status();
    assert!(status.unwrap().success());
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}
