//! The kernel moves the packets (Linux `include/uapi/linux/vhost.h`, `drivers/vhost/net.c`).
//!
//! One vhost-net descriptor serves one queue pair: its vring 0 receives, its vring 1 transmits.
//! It moves packets as long as it has a backend, the tap.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{
    VHOST_F_LOG_ALL, VHOST_GET_FEATURES, VHOST_NET_SET_BACKEND, VHOST_SET_VRING_ADDR,
    VHOST_VRING_F_LOG, vhost_vring_addr, vhost_vring_file,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use super::tap::check;
use crate::devices::virtio::{ActiveQueue, Interrupt};
use crate::memory::{GuestMemory, PAGE_SIZE, mark_dirty};

/// Features that the kernel must know of, since it works on the rings. All others are the tap's.
const RING_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Whether this vhost-net lacks something that we offer to guests or need to migrate.
pub(super) fn lacks_features(fd: RawFd) -> io::Result<bool> {
    let mut features = 0_u64;
    // SAFETY: the kernel writes a u64 through the reference.
    check(unsafe { ioctl_with_mut_ref(&fd, VHOST_GET_FEATURES(), &mut features) })?;
    Ok(!features & (RING_FEATURES | 1 << VHOST_F_LOG_ALL) != 0)
}

/// The descriptor with the memory that it works on, as the `vhost` crate wants it.
struct Device {
    file: Arc<File>,
    memory: Arc<GuestMemory>,
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl VhostKernBackend for Device {
    type AS = Arc<GuestMemory>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }
}

/// The rings that the kernel has.
struct Session {
    device: Device,
    features: u64,
    /// By vring; the queue's positions are stale.
    rings: [Option<ActiveQueue>; 2],
    moving: bool,
}

/// Pages that the kernel has written.
struct DirtyLog {
    memory: Arc<GuestMemory>,
    /// One bit a page from guest physical address 0 on; the kernel sets them.
    bits: Box<[AtomicU64]>,
}

/// One queue pair of vhost-net.
pub(super) struct Vhost {
    file: Arc<File>,
    error: EventFd,
    session: Option<Session>,
    log: Option<DirtyLog>,
}

impl Vhost {
    /// Makes this process the owner, whose memory the kernel then works on.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let device = Device {
            file: Arc::new(file),
            memory: Arc::new(GuestMemory::new()),
        };
        device.set_owner().map_err(io_error)?;
        Ok(Self {
            file: device.file,
            error: EventFd::new(EFD_NONBLOCK)?,
            session: None,
            log: None,
        })
    }

    /// Tells the kernel all about the rings; packets move after [`Self::set_moving`]. Returns
    /// the descriptor that becomes readable when the kernel finds a ring broken.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn start(
        &mut self,
        memory: Arc<GuestMemory>,
        features: u64,
        rings: [Option<ActiveQueue>; 2],
        interrupt: &dyn Interrupt,
    ) -> io::Result<RawFd> {
        let device = Device {
            file: Arc::clone(&self.file),
            memory,
        };
        self.drain_error();
        let regions: Vec<_> = device.memory.iter().map(region_info).collect();
        device.set_mem_table(&regions).map_err(io_error)?;
        let session = Session {
            device,
            features: features & RING_FEATURES,
            rings,
            moving: false,
        };
        session.set_up_log(self.log.as_ref())?;
        for (index, ring) in session.rings() {
            let device = &session.device;
            let queue = &ring.queue;
            let call = interrupt.queue_event(ring.index);
            device
                .set_vring_num(index, queue.size())
                .and_then(|()| device.set_vring_base(index, queue.next_avail()))
                .and_then(|()| device.set_vring_kick(index, &ring.kick))
                .and_then(|()| device.set_vring_call(index, &call))
                .and_then(|()| device.set_vring_err(index, &self.error))
                .map_err(io_error)?;
        }
        self.session = Some(session);
        Ok(self.error.as_raw_fd())
    }

    /// Gives the tap to the kernel, or takes it back, with no packet on its way.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn set_moving(&mut self, moving: bool, tap: &File) -> io::Result<()> {
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        if session.moving == moving {
            return Ok(());
        }
        let backend = if moving { tap.as_raw_fd() } else { -1 };
        for (index, ring) in session.rings() {
            session.set_backend(index, backend)?;
            if moving {
                // What has waited in the ring meanwhile has kicked nobody who listened.
                let _ = ring.kick.write(1);
            }
        }
        session.moving = moving;
        Ok(())
    }

    /// Ends work on the rings and gives the queues back where the kernel has left them.
    pub(super) fn stop(&mut self) -> Vec<(u16, Queue)> {
        let Some(mut session) = self.session.take() else {
            return Vec::new();
        };
        for (index, _) in session.rings() {
            if let Err(error) = session.set_backend(index, -1) {
                tracing::warn!("vhost-net does not give the tap back: {error}");
            }
        }
        self.take_log();
        let mut queues = Vec::new();
        for (index, ring) in session.rings.iter_mut().enumerate() {
            let Some(ActiveQueue {
                index: id,
                mut queue,
                ..
            }) = ring.take()
            else {
                continue;
            };
            // The kernel keeps its position in the available ring to itself, and that in the
            // used ring is what the driver sees.
            if let Ok(next_avail) = session.device.get_vring_base(index) {
                queue.set_next_avail(next_avail as u16);
            }
            if let Ok(next_used) = queue.used_idx(&*session.device.memory, Ordering::Acquire) {
                queue.set_next_used(next_used.0);
            }
            queues.push((id, queue));
        }
        queues
    }

    /// Forgets that a ring was found broken.
    pub(super) fn drain_error(&self) {
        let _ = self.error.read();
    }

    /// Lets the kernel log what it writes.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn start_log(&mut self, memory: &Arc<GuestMemory>) -> io::Result<()> {
        let pages = memory.last_addr().raw_value() / PAGE_SIZE + 1;
        let words = pages.div_ceil(64) as usize;
        let log = DirtyLog {
            memory: Arc::clone(memory),
            bits: (0..words).map(|_| AtomicU64::new(0)).collect(),
        };
        if let Some(session) = &self.session {
            session.set_up_log(Some(&log))?;
        }
        self.log = Some(log);
        Ok(())
    }

    /// Marks what was logged since the last call in the dirty bitmap of guest RAM.
    pub(super) fn take_log(&self) {
        let Some(log) = &self.log else {
            return;
        };
        for (word, bits) in (0_u64..).zip(&log.bits) {
            if bits.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = bits.swap(0, Ordering::AcqRel);
            while bits != 0 {
                let page = word * 64 + u64::from(bits.trailing_zeros());
                mark_dirty(
                    &log.memory,
                    GuestAddress(page * PAGE_SIZE),
                    PAGE_SIZE as usize,
                );
                bits &= bits - 1;
            }
        }
    }

    /// Ends logging.
    ///
    /// # Errors
    /// The kernel's; it then goes on to log.
    pub(super) fn stop_log(&mut self) -> io::Result<()> {
        if let Some(session) = &self.session {
            session.set_up_log(None)?;
        }
        self.log = None;
        Ok(())
    }
}

impl Session {
    fn rings(&self) -> impl Iterator<Item = (usize, &ActiveQueue)> {
        let rings = self.rings.iter().enumerate();
        rings.filter_map(|(index, ring)| Some((index, ring.as_ref()?)))
    }

    /// Features and addresses, with logging to `log` or without.
    fn set_up_log(&self, log: Option<&DirtyLog>) -> io::Result<()> {
        let mut features = self.features;
        if let Some(log) = log {
            let base = log.bits.as_ptr() as u64;
            self.device.set_log_base(base, None).map_err(io_error)?;
            features |= 1 << VHOST_F_LOG_ALL;
        }
        self.device.set_features(features).map_err(io_error)?;
        for (index, ring) in self.rings() {
            self.set_address(index, &ring.queue, log.is_some())?;
        }
        Ok(())
    }

    /// The rings' addresses in this process. `vhost`'s own method refuses rings that end where
    /// RAM ends.
    fn set_address(&self, index: usize, queue: &Queue, log: bool) -> io::Result<()> {
        let size = usize::from(queue.size());
        let host = |address: u64, bytes: usize| {
            let slice = self.device.memory.get_slice(GuestAddress(address), bytes);
            let slice = slice.map_err(io::Error::other)?;
            io::Result::Ok(slice.ptr_guard_mut().as_ptr() as u64)
        };
        let address = vhost_vring_addr {
            index: index as u32,
            flags: u32::from(log) << VHOST_VRING_F_LOG,
            desc_user_addr: host(queue.desc_table(), 16 * size)?,
            avail_user_addr: host(queue.avail_ring(), 6 + 2 * size)?,
            used_user_addr: host(queue.used_ring(), 6 + 8 * size)?,
            log_guest_addr: queue.used_ring(),
        };
        // SAFETY: the kernel reads a vhost_vring_addr through the reference.
        check(unsafe { ioctl_with_ref(&self.device, VHOST_SET_VRING_ADDR(), &address) })
    }

    fn set_backend(&self, index: usize, fd: RawFd) -> io::Result<()> {
        let backend = vhost_vring_file {
            index: index as u32,
            fd,
        };
        // SAFETY: the kernel reads a vhost_vring_file through the reference.
        check(unsafe { ioctl_with_ref(&self.device, VHOST_NET_SET_BACKEND(), &backend) })
    }
}

fn region_info(region: &crate::memory::GuestRegion) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        // Of no meaning to the kernel, which works in this process's memory.
        mmap_offset: 0,
        mmap_handle: -1,
    }
}

fn io_error(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::IoctlError(error) | vhost::Error::IOError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}
