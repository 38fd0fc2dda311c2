//! virtio 1.x devices (OASIS virtio 1.2) over PCI.
//!
//! ```text
//! vCPU ─ MMIO ─► transport (registers, status, queues' addresses, MSI-X)
//!                   │ activate(queues) / deactivate() -> queues
//!                   ▼
//!               device ── Worker thread ◄─ kick eventfd (ioeventfd) ─ guest
//!                             └─ Interrupt::signal_queue ─► irqfd ─► guest
//! ```
//!
//! The transport owns all that is the same for every device; a device owns its configuration
//! space and its requests. Activation, reset, pause, save and resume are two verbs:
//! [`VirtioDevice::activate`] gives the queues away and [`VirtioDevice::deactivate`] takes them
//! back, with nothing in flight.

pub mod balloon;
pub mod block;
pub mod console;
pub mod net;
pub mod rng;
pub mod serve;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;
pub mod worker;

use std::sync::Arc;

use thiserror::Error;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;
use crate::state::{Section, StateError};

/// How a device reaches its driver. Callable from any thread.
pub trait Interrupt: Send + Sync {
    /// The device has put something on the used ring of `queue`. The caller has already asked
    /// the queue whether the driver wants to know.
    fn signal_queue(&self, queue: u16);
    /// Device configuration has changed (virtio 1.2, 2.5).
    fn signal_config(&self);
    /// The rings are broken: sets DEVICE_NEEDS_RESET (virtio 1.2, 2.1.1) and tells the driver.
    fn needs_reset(&self);
    /// The eventfd that stands for [`Self::signal_queue`], for a kernel backend (vhost).
    fn queue_event(&self, queue: u16) -> Arc<EventFd>;
}

/// One queue that the driver has enabled.
pub struct ActiveQueue {
    /// Its index in the device.
    pub index: u16,
    /// Rings and positions.
    pub queue: Queue,
    /// Written by the kernel when the driver notifies this queue.
    pub kick: Arc<EventFd>,
}

/// What a device gets when its driver is ready, on resume and on restore.
pub struct Activation {
    /// Guest RAM. Writes through it are marked in its dirty bitmap; what the kernel or a library
    /// writes must be marked by the device ([`crate::memory::mark_dirty`]) before the used ring
    /// says so.
    pub memory: Arc<GuestMemory>,
    /// Feature bits that driver and device agreed on.
    pub features: u64,
    /// The enabled queues, by rising index.
    pub queues: Vec<ActiveQueue>,
    /// The way back.
    pub interrupt: Arc<dyn Interrupt>,
}

/// Why a device cannot be activated.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The driver enabled a set of queues that this device cannot work with.
    #[error("device {id} cannot work with the queues that the driver enabled: {reason}")]
    Queues {
        /// The device.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// The host backend refused.
    #[error("device {id}: {action}")]
    Backend {
        /// The device.
        id: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// One virtio device behind its transport. All calls come one at a time.
pub trait VirtioDevice: Send {
    /// Unique id in this guest, for messages and state sections.
    fn id(&self) -> &str;
    /// Device type (virtio 1.2, section 5).
    fn device_type(&self) -> u16;
    /// Largest size of each queue; a power of two.
    fn queue_sizes(&self) -> &[u16];
    /// Features on offer, `VIRTIO_F_VERSION_1` included.
    fn features(&self) -> u64;
    /// Reads device configuration; zeroes beyond its end. Any width, any offset.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes device configuration; lost where it is read-only or beyond the end.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// Starts work on the queues: after DRIVER_OK, on resume and after restore. Anything may wait
    /// in the rings already, so every queue is looked at once without a kick.
    ///
    /// # Errors
    /// [`ActivateError`]; the transport then sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// Stops work and gives the queues back as `(index, queue)`, nothing being in flight: on
    /// reset and pause. Empty if the device was not active.
    fn deactivate(&mut self) -> Vec<(u16, Queue)>;
    /// State of its own beside queues and transport. Only called while deactivated.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be encoded.
    fn save(&self) -> Result<Section, StateError>;
    /// Takes what [`Self::save`] gave, before the first activation. The section is hostile.
    ///
    /// # Errors
    /// [`StateError`]; the device is unchanged.
    fn restore(&mut self, section: &Section) -> Result<(), StateError>;
}
