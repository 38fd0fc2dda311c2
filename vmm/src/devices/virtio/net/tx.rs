//! transmitq: packets from the guest's buffers straight to the tap (virtio 1.2, 5.1.6.2).

use std::io::ErrorKind;
use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::buffers::Buffers;
use super::counters::Direction;
use super::ring::{self, BrokenRing};
use super::tap::Tap;
use super::{HEADER_BYTES, PACKET_BYTES_MAX};
use crate::devices::virtio::{ActiveQueue, Interrupt};
use crate::memory::GuestMemory;

/// Packets before the other direction gets its turn.
const BUDGET: usize = 256;
/// Packets before the driver gets their buffers back.
const PUBLISH_EVERY: usize = 32;
/// Header and Ethernet header: what is shorter is no frame.
const PACKET_BYTES_MIN: usize = HEADER_BYTES + 14;

/// Why transmission stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TxStop {
    /// The ring is empty; the driver will kick.
    Empty,
    /// There is more, but it is the other direction's turn.
    Budget,
    /// The tap has no room.
    Blocked,
}

/// What became of one packet.
enum Sent {
    Done,
    Blocked,
}

/// One transmit queue.
pub(super) struct TxQueue {
    index: u16,
    queue: Queue,
    pub kick: Arc<EventFd>,
    buffers: Buffers,
    used: Vec<(u16, u32)>,
    /// A write has failed because the tap is not what it was.
    pub suspicious: bool,
}

impl TxQueue {
    pub(super) fn new(active: ActiveQueue) -> Self {
        Self {
            index: active.index,
            queue: active.queue,
            kick: active.kick,
            buffers: Buffers::default(),
            used: Vec::with_capacity(PUBLISH_EVERY),
            suspicious: false,
        }
    }

    /// Writes packets until there are none, or no room, or enough. `tap` is `None` while the
    /// link is down: packets are then dropped.
    ///
    /// # Errors
    /// [`BrokenRing`].
    pub(super) fn process(
        &mut self,
        tap: Option<&Tap>,
        memory: &GuestMemory,
        interrupt: &dyn Interrupt,
        counter: &Direction,
    ) -> Result<TxStop, BrokenRing> {
        let silenced = self.queue.disable_notification(memory);
        silenced.map_err(|_| BrokenRing::Ring)?;
        for _ in 0..BUDGET {
            let Some(chain) = ring::next_chain(&mut self.queue, memory)? else {
                self.publish(memory, interrupt)?;
                let more = self.queue.enable_notification(memory);
                if more.map_err(|_| BrokenRing::Ring)? {
                    continue;
                }
                return Ok(TxStop::Empty);
            };
            let head = chain.head_index();
            self.buffers.truncate(0);
            let sent = match self.buffers.push_chain(chain, memory, false) {
                Ok(bytes) => self.send(tap, bytes, counter),
                Err(broken) => {
                    self.publish(memory, interrupt)?;
                    return Err(broken);
                }
            };
            if let Sent::Blocked = sent {
                self.queue.go_to_previous_position();
                self.publish(memory, interrupt)?;
                return Ok(TxStop::Blocked);
            }
            self.used.push((head, 0));
            if self.used.len() >= PUBLISH_EVERY {
                self.publish(memory, interrupt)?;
            }
        }
        self.publish(memory, interrupt)?;
        Ok(TxStop::Budget)
    }

    fn send(&mut self, tap: Option<&Tap>, bytes: usize, counter: &Direction) -> Sent {
        let Some(tap) = tap else {
            counter.dropped();
            return Sent::Done;
        };
        if !(PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(&bytes) {
            counter.dropped();
            return Sent::Done;
        }
        loop {
            // SAFETY: the buffers are guest RAM, which is readable.
            match unsafe { tap.write(self.buffers.as_slice()) } {
                Ok(_) => counter.passed(bytes - HEADER_BYTES),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Sent::Blocked,
                Err(error) => {
                    // EINVAL is a header that makes no sense, EIO an interface that is down.
                    self.suspicious |= error.raw_os_error() == Some(libc::EBADFD);
                    counter.dropped();
                }
            }
            return Sent::Done;
        }
    }

    fn publish(
        &mut self,
        memory: &GuestMemory,
        interrupt: &dyn Interrupt,
    ) -> Result<(), BrokenRing> {
        if self.used.is_empty() {
            return Ok(());
        }
        let told = self.queue.next_used();
        ring::publish(&mut self.queue, memory, &self.used)?;
        self.used.clear();
        if ring::wants_notification(&self.queue, memory, told)? {
            interrupt.signal_queue(self.index);
        }
        Ok(())
    }

    /// Gives the queue back.
    pub(super) fn into_queue(self) -> (u16, Queue) {
        (self.index, self.queue)
    }
}
