//! virtio-net (virtio 1.2, section 5.1) on a tap, with the kernel's vhost-net where it is there.
//!
//! ```text
//! guest ─ receiveq n ◄─ readv ─┐                    announce, link, metrics
//!       ─ transmitq n ─ writev ┴─ tap queue n           NetHandle
//!       ─ controlq ──► pair 0's thread ──► Shared ◄────────┘
//! ```
//!
//! Each queue pair has a thread of its own ([`pair`]), which moves packets between descriptor
//! chains and one queue of the tap without a copy: checksum and segmentation are left to the
//! kernel, by the header that virtio-net and the tap share. With vhost-net the kernel moves the
//! packets and the thread only serves the control queue.
//!
//! Not offered, on purpose: receive filters (CTRL_RX, CTRL_VLAN), since the bridge decides what
//! reaches the tap; RSS and hash reports, since the tap spreads flows by itself; UFO, which Linux
//! has given up.

mod buffers;
mod config_space;
mod control;
mod counters;
mod features;
mod handle;
mod mac;
mod open;
mod pair;
mod ring;
mod rx;
mod shared;
mod state;
mod tap;
mod tx;
mod vhost;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};
use virtio_queue::Queue;

pub use self::handle::NetHandle;
pub use self::mac::{MacAddress, ParseMacError};
pub use self::open::{NetResources, OpenNetError, open};
pub use self::tap::Tap;

use self::pair::QueuePair;
use self::shared::Shared;
use super::worker::Worker;
use super::{ActivateError, Activation, ActiveQueue, VirtioDevice};
use crate::sandbox::ThreadKind;
use crate::state::{Section, StateError};

/// Size of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// `struct virtio_net_hdr_v1` (5.1.6), which begins every packet in every queue.
const HEADER_BYTES: usize = 12;
/// The largest packet: header, Ethernet header with two VLAN tags, and 64 KiB to be segmented.
const PACKET_BYTES_MAX: usize = HEADER_BYTES + 22 + (64 << 10);

/// Queue pairs of one device, at most.
pub const QUEUE_PAIRS_MAX: usize = 16;

/// One network device.
pub struct Net {
    shared: Arc<Shared>,
    workers: Arc<[Worker<QueuePair>]>,
    queue_sizes: Vec<u16>,
    features: u64,
    /// The worker of each queue pair, and of the control queue, has its queues.
    active: bool,
}

impl Net {
    /// A device `id` over `resources`, with its threads started and parked.
    ///
    /// # Errors
    /// Whatever the host refuses: epoll, eventfd, thread.
    pub fn new(id: &str, resources: NetResources) -> io::Result<(Self, NetHandle)> {
        let pairs = resources.taps.len();
        let features = features::offered(&resources);
        let mut queue_sizes = vec![resources.queue_size; 2 * pairs];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        let mut vhosts = resources.vhosts.into_iter();
        let shared = Arc::new(Shared::new(
            id,
            resources.mac,
            resources.mtu,
            resources.taps,
        ));
        let mut workers = Vec::with_capacity(pairs);
        for index in 0..pairs {
            let pair = QueuePair::new(Arc::clone(&shared), index, vhosts.next())?;
            let name = format!("{id}.{index}");
            workers.push(Worker::spawn(&name, ThreadKind::Net, pair)?);
        }
        let workers: Arc<[_]> = workers.into();
        let handle = NetHandle::new(Arc::clone(&shared), Arc::clone(&workers));
        let device = Self {
            shared,
            workers,
            queue_sizes,
            features,
            active: false,
        };
        Ok((device, handle))
    }

    /// The control queue follows the pairs that the driver may use (5.1.2).
    fn control_index(&self, features: u64) -> Option<u16> {
        let pairs = match features & (1 << VIRTIO_NET_F_MQ) {
            0 => 1,
            _ => self.workers.len() as u16,
        };
        (features & (1 << VIRTIO_NET_F_CTRL_VQ) != 0).then_some(2 * pairs)
    }

    fn distribute(&self, activation: Activation) -> Result<(), ActivateError> {
        let control_index = self.control_index(activation.features);
        let mut shares: Vec<Vec<ActiveQueue>> = self.workers.iter().map(|_| Vec::new()).collect();
        for queue in activation.queues {
            let pair = match control_index {
                Some(control) if queue.index == control => 0,
                Some(control) if queue.index > control => {
                    return Err(self.unusable(format!("queue {} has no meaning", queue.index)));
                }
                _ => usize::from(queue.index / 2),
            };
            let Some(share) = shares.get_mut(pair) else {
                return Err(self.unusable(format!("queue {} has no meaning", queue.index)));
            };
            share.push(queue);
        }
        for (worker, queues) in self.workers.iter().zip(shares) {
            worker.activate(Activation {
                memory: Arc::clone(&activation.memory),
                features: activation.features,
                queues,
                interrupt: Arc::clone(&activation.interrupt),
            })?;
        }
        Ok(())
    }

    fn unusable(&self, reason: String) -> ActivateError {
        ActivateError::Queues {
            id: self.shared.id.clone(),
            reason,
        }
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> &str {
        &self.shared.id
    }

    fn device_type(&self) -> u16 {
        VIRTIO_ID_NET as u16
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.shared.read_config(offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // All of it is read-only since virtio 1.0 (5.1.4.1).
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let control_index = self.control_index(activation.features);
        let control = activation
            .queues
            .iter()
            .find(|queue| Some(queue.index) == control_index);
        // The position of the control queue says whether the driver has given any command since
        // it started the device: if not, what an earlier driver asked for is void.
        if control.is_none_or(|control| control.queue.state().next_avail == 0) {
            self.shared.forget_commands();
        }
        self.shared
            .start(activation.features, Arc::clone(&activation.interrupt))
            .map_err(|(action, source)| ActivateError::Backend {
                id: self.shared.id.clone(),
                action,
                source,
            })?;
        self.active = true;
        let result = self.distribute(activation);
        if result.is_err() {
            self.deactivate();
        }
        result
    }

    fn deactivate(&mut self) -> Vec<(u16, Queue)> {
        if !std::mem::take(&mut self.active) {
            return Vec::new();
        }
        let mut queues: Vec<_> = self.workers.iter().flat_map(Worker::deactivate).collect();
        queues.sort_by_key(|&(index, _)| index);
        self.shared.stop();
        queues
    }

    fn save(&self) -> Result<Section, StateError> {
        self.shared.save()
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        self.shared.restore(section, self.features)
    }
}

#[cfg(test)]
mod tests;
