//! What carries out operations for one queue.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::Segment;
use super::raw::{Bounce, GuestData, RawImage};
use super::request::Operation;
use crate::memory::GuestMemory;

/// An operation that has ended. What it wrote into guest RAM is marked as dirty.
pub(super) struct Completion {
    /// As given to [`Engine::submit`].
    pub slot: u16,
    /// The buffers, given back.
    pub data: Vec<Segment>,
    pub result: io::Result<()>,
}

/// Runs operations, several at a time and in any order. Lives on the queue's worker thread.
pub(super) trait Engine: Send {
    /// Takes an operation; it may start only with [`Self::kick`]. `slot` is below the number of
    /// slots that the engine was made for and not in use.
    fn submit(
        &mut self,
        slot: u16,
        operation: Operation,
        data: Vec<Segment>,
        memory: &Arc<GuestMemory>,
    );
    /// Starts all that was submitted.
    fn kick(&mut self);
    /// The next operation that has ended.
    fn complete(&mut self, memory: &GuestMemory) -> Option<Completion>;
    /// Whether [`Self::complete`] or [`Self::kick`] has something to do; cheap.
    fn is_ready(&mut self) -> bool;
    /// The descriptor that becomes readable when an operation ends after [`Self::arm`].
    fn event(&self) -> RawFd;
    /// Asks for an event. Operations that ended before do not give one: look at
    /// [`Self::is_ready`] after this.
    fn arm(&mut self);
    /// Asks for no more events.
    fn disarm(&mut self);
    /// Resets the event.
    fn drain(&mut self);
}

/// Runs each operation at once on the worker's thread: for raw images where io_uring is not
/// permitted.
pub(super) struct Blocking {
    image: Arc<RawImage>,
    bounce: Bounce,
    completed: VecDeque<Completion>,
    event: EventFd,
}

impl Blocking {
    /// # Errors
    /// The host refuses an eventfd.
    pub fn new(image: Arc<RawImage>) -> io::Result<Self> {
        Ok(Self {
            image,
            bounce: Bounce::default(),
            completed: VecDeque::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }
}

impl Engine for Blocking {
    fn submit(
        &mut self,
        slot: u16,
        operation: Operation,
        data: Vec<Segment>,
        memory: &Arc<GuestMemory>,
    ) {
        let guest = GuestData {
            memory,
            segments: &data,
        };
        let result = self.image.execute(&operation, guest, 0, &mut self.bounce);
        self.completed.push_back(Completion { slot, data, result });
    }

    fn kick(&mut self) {}

    fn complete(&mut self, _memory: &GuestMemory) -> Option<Completion> {
        self.completed.pop_front()
    }

    fn is_ready(&mut self) -> bool {
        !self.completed.is_empty()
    }

    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn drain(&mut self) {}
}
