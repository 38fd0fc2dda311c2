//! Where the BAR is: its range on the MMIO bus and its queues' ioeventfds.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::Bar;
use super::capabilities::{BAR_SIZE, NOTIFY_OFFSET};
use crate::bus::{Bus, BusError};

/// Bytes between two queues' notification addresses (`notify_off_multiplier`, virtio 1.2,
/// section 4.1.4.4).
pub const NOTIFY_MULTIPLIER: u32 = 4;

/// How a guest's write reaches an eventfd without us (KVM API, `KVM_IOEVENTFD`).
pub trait Notifier: Send + Sync {
    /// From now on a write of any length and value to guest physical `address` writes `event`.
    ///
    /// # Errors
    /// What KVM answers; the write then reaches us as any other.
    fn register(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Undoes [`Self::register`].
    ///
    /// # Errors
    /// What KVM answers.
    fn unregister(&self, address: u64, event: &EventFd) -> io::Result<()>;
}

/// The queue that a write to this offset of the notification region means.
pub fn notified_queue(offset: u64) -> usize {
    (offset / u64::from(NOTIFY_MULTIPLIER)) as usize
}

/// Where the BAR is mapped now, if it is.
pub struct Mapping {
    bus: Arc<Bus>,
    notifier: Arc<dyn Notifier>,
    kicks: Arc<[Arc<EventFd>]>,
    at: Option<u64>,
    /// Queues whose ioeventfd is registered.
    registered: Vec<usize>,
}

impl Mapping {
    pub fn new(bus: Arc<Bus>, notifier: Arc<dyn Notifier>, kicks: Arc<[Arc<EventFd>]>) -> Self {
        Self {
            bus,
            notifier,
            kicks,
            at: None,
            registered: Vec::new(),
        }
    }

    /// Moves to `target`, or away. When something else is at `target`, nothing is mapped.
    pub fn follow(&mut self, target: Option<u64>, bar: &Arc<Bar>) -> Result<(), BusError> {
        if self.at == target {
            return Ok(());
        }
        self.remove();
        let Some(base) = target else {
            return Ok(());
        };
        self.bus
            .insert(base, BAR_SIZE.into(), Arc::clone(bar) as _)?;
        self.at = target;
        for (queue, kick) in self.kicks.iter().enumerate() {
            match self.notifier.register(notify_address(base, queue), kick) {
                Ok(()) => self.registered.push(queue),
                Err(error) => tracing::warn!(queue, %error, "cannot register an ioeventfd"),
            }
        }
        Ok(())
    }

    /// Moves away unless it is at `target` already.
    pub fn leave_unless_at(&mut self, target: Option<u64>) {
        if self.at != target {
            self.remove();
        }
    }

    fn remove(&mut self) {
        let Some(base) = self.at.take() else {
            return;
        };
        for queue in self.registered.drain(..) {
            let address = notify_address(base, queue);
            if let Err(error) = self.notifier.unregister(address, &self.kicks[queue]) {
                tracing::warn!(queue, %error, "cannot take an ioeventfd away");
            }
        }
        self.bus.remove(base);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.remove();
    }
}

fn notify_address(base: u64, queue: usize) -> u64 {
    base + u64::from(NOTIFY_OFFSET) + queue as u64 * u64::from(NOTIFY_MULTIPLIER)
}
