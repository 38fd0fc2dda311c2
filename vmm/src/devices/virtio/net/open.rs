//! What a network device needs from the host, opened before the sandbox closes.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

use pindah_vmm_api::{NetConfig, VhostMode};
use thiserror::Error;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use super::mac::{MacAddress, ParseMacError};
use super::tap::{Tap, check};
use super::{QUEUE_PAIRS_MAX, vhost};

const TUN: &str = "/dev/net/tun";
const VHOST_NET: &str = "/dev/vhost-net";

/// Open descriptors behind a network device, and what follows from the configuration.
pub struct NetResources {
    /// One queue of the tap for each queue pair: 1 to [`QUEUE_PAIRS_MAX`].
    pub taps: Vec<Tap>,
    /// `/dev/vhost-net`, once for each queue pair; empty: the VMM moves the packets.
    pub vhosts: Vec<File>,
    /// The device's address.
    pub mac: MacAddress,
    /// Size of each queue but the control queue.
    pub queue_size: u16,
    /// The largest payload of a frame that the driver is told (5.1.4); `None`: its own default.
    pub mtu: Option<u16>,
    /// The host's kernel segments UDP (Linux 6.2).
    pub segments_udp: bool,
}

/// Why a network device's resources cannot be opened.
#[derive(Debug, Error)]
pub enum OpenNetError {
    /// The MAC address is not one.
    #[error("network device {id}")]
    Mac {
        /// The device.
        id: String,
        /// What is wrong with it.
        #[source]
        source: ParseMacError,
    },
    /// The kernel takes 1 to 15 bytes, without `/`, `:`, `%` and white space.
    #[error("{tap:?} cannot be the name of a network interface")]
    Name {
        /// The name.
        tap: String,
    },
    /// The number of queue pairs is out of range.
    #[error("network device {id} cannot have {pairs} queue pairs: 1 to {QUEUE_PAIRS_MAX}")]
    QueuePairs {
        /// The device.
        id: String,
        /// What was asked for.
        pairs: u8,
    },
    /// The host has no tun driver.
    #[error("{TUN} is not there: the tun module is not loaded")]
    NoTun(#[source] io::Error),
    /// The tun driver's device cannot be opened.
    #[error("cannot open {TUN}")]
    OpenTun(#[source] io::Error),
    /// Neither the right to create the tap, nor one that belongs to this user.
    #[error("no right to use tap {tap}: CAP_NET_ADMIN, or a tap that was made for this user")]
    Permission {
        /// The tap.
        tap: String,
    },
    /// Another process has it.
    #[error("tap {tap} is in use by another process")]
    Busy {
        /// The tap.
        tap: String,
    },
    /// An interface of this name exists and is no tap, or a tap of another kind.
    #[error(
        "interface {tap} is not a tap with {} (`ip tuntap add {tap} mode tap{}`)",
        if *.multi_queue { "several queues" } else { "one queue" },
        if *.multi_queue { " multi_queue" } else { "" },
    )]
    Kind {
        /// The interface.
        tap: String,
        /// Several queues are wanted.
        multi_queue: bool,
    },
    /// The tap cannot be set up.
    #[error("cannot {action} tap {tap}")]
    SetUp {
        /// The tap.
        tap: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// vhost-net is asked for and cannot be had.
    #[error("cannot use {VHOST_NET} for network device {id}")]
    Vhost {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Opens the tap of device `id` of the guest `name`, or creates it, and vhost-net.
///
/// # Errors
/// [`OpenNetError`].
pub fn open(config: &NetConfig, id: &str, name: &str) -> Result<NetResources, OpenNetError> {
    let mac = match &config.mac {
        Some(text) => text.parse().map_err(|source| OpenNetError::Mac {
            id: id.to_owned(),
            source,
        })?,
        None => MacAddress::derive(name, id),
    };
    let pairs = usize::from(config.queue_pairs);
    if pairs == 0 || pairs > QUEUE_PAIRS_MAX {
        return Err(OpenNetError::QueuePairs {
            id: id.to_owned(),
            pairs: config.queue_pairs,
        });
    }
    let taps = open_taps(&config.tap, pairs)?;
    bring_up(&config.tap).map_err(|source| set_up(&config.tap, "bring up", source))?;
    let segments_udp = taps[0].set_offload(UDP_PROBE).is_ok();
    for tap in &taps {
        tap.set_offload(0)
            .map_err(|source| set_up(&config.tap, "set the offloads of", source))?;
    }
    Ok(NetResources {
        taps,
        vhosts: open_vhosts(config.vhost, id, pairs)?,
        mac,
        queue_size: config.queue_size,
        mtu: None,
        segments_udp,
    })
}

/// All that a kernel with UDP segmentation takes.
const UDP_PROBE: u32 =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_USO4 | libc::TUN_F_USO6;

fn set_up(tap: &str, action: &'static str, source: io::Error) -> OpenNetError {
    OpenNetError::SetUp {
        tap: tap.to_owned(),
        action,
        source,
    }
}

fn open_taps(name: &str, pairs: usize) -> Result<Vec<Tap>, OpenNetError> {
    let mut request = interface_request(name)?;
    let mut files = Vec::with_capacity(pairs);
    let mut multi_queue = pairs > 1;
    while files.len() < pairs {
        let file = open_tun()?;
        match attach(&file, &mut request, multi_queue) {
            Ok(()) => files.push(file),
            // Somebody may have made the tap for more queues than we need.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !multi_queue => {
                multi_queue = true;
            }
            Err(error) => return Err(attach_error(name, pairs > 1, error)),
        }
    }
    files
        .into_iter()
        .map(|file| Tap::new(file).map_err(|source| set_up(name, "use", source)))
        .collect()
}

fn open_tun() -> Result<File, OpenNetError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    options.open(TUN).map_err(|error| {
        match error.raw_os_error() {
            // The node may be there without its driver.
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => OpenNetError::NoTun(error),
            _ => OpenNetError::OpenTun(error),
        }
    })
}

fn attach(file: &File, request: &mut libc::ifreq, multi_queue: bool) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: the kernel reads and writes an ifreq through the reference.
    check(unsafe { ioctl_with_mut_ref(file, libc::TUNSETIFF, request) })
}

fn attach_error(name: &str, multi_queue: bool, error: io::Error) -> OpenNetError {
    let tap = name.to_owned();
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => OpenNetError::Permission { tap },
        Some(libc::EBUSY) => OpenNetError::Busy { tap },
        Some(libc::EINVAL) => OpenNetError::Kind { tap, multi_queue },
        _ => set_up(name, "attach to", error),
    }
}

/// An `ifreq` for this name; its flags are zero.
fn interface_request(name: &str) -> Result<libc::ifreq, OpenNetError> {
    // The kernel fills in numbers for %, and calls no interface by the others.
    let forbidden = |byte: u8| b"/:%".contains(&byte) || !byte.is_ascii_graphic();
    let fits = !name.is_empty() && name.len() < libc::IFNAMSIZ;
    if !fits || matches!(name, "." | "..") || name.bytes().any(forbidden) {
        return Err(OpenNetError::Name {
            tap: name.to_owned(),
        });
    }
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// Sets `IFF_UP`, which needs CAP_NET_ADMIN only if it is not set.
fn bring_up(name: &str) -> io::Result<()> {
    let mut request = interface_request(name).map_err(io::Error::other)?;
    // Any socket will do to name an interface.
    let socket = UnixDatagram::unbound()?;
    // SAFETY: the kernel reads and writes an ifreq through the reference.
    check(unsafe { ioctl_with_mut_ref(&socket, libc::SIOCGIFFLAGS, &mut request) })?;
    // SAFETY: SIOCGIFFLAGS has filled this member.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    if flags & libc::IFF_UP != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = (flags | libc::IFF_UP) as i16;
    // SAFETY: the kernel reads an ifreq through the reference.
    check(unsafe { ioctl_with_ref(&socket, libc::SIOCSIFFLAGS, &request) })
}

fn open_vhosts(mode: VhostMode, id: &str, pairs: usize) -> Result<Vec<File>, OpenNetError> {
    let opened = match mode {
        VhostMode::Off => return Ok(Vec::new()),
        VhostMode::Auto | VhostMode::On => (0..pairs).map(|_| open_vhost()).collect(),
    };
    match (opened, mode) {
        (Ok(vhosts), _) => Ok(vhosts),
        (Err(error), VhostMode::Auto) => {
            if error.kind() != ErrorKind::NotFound {
                tracing::info!("{id}: {VHOST_NET} is not used: {error}");
            }
            Ok(Vec::new())
        }
        (Err(source), _) => Err(OpenNetError::Vhost {
            id: id.to_owned(),
            source,
        }),
    }
}

fn open_vhost() -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(VHOST_NET)?;
    if vhost::lacks_features(file.as_raw_fd())? {
        return Err(io::Error::other("this kernel's vhost-net is too old"));
    }
    Ok(file)
}
