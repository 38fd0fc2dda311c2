//! receiveq: packets from the tap straight into the guest's buffers (virtio 1.2, 5.1.6.3).
//!
//! Chains are gathered before a packet is read, because its size is only known afterwards; those
//! that it did not need stay gathered for the next one. A packet that turns out larger than what
//! is gathered ends in spare room of our own, and is held until the driver has refilled the ring.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::buffers::{BUFFERS_MAX, Buffers};
use super::counters::Direction;
use super::ring::{self, BrokenRing};
use super::tap::Tap;
use super::{HEADER_BYTES, PACKET_BYTES_MAX};
use crate::devices::virtio::{ActiveQueue, Interrupt};
use crate::memory::GuestMemory;

/// Packets before the other direction gets its turn.
const BUDGET: usize = 256;
/// Packets before the driver is told.
const NOTIFY_EVERY: usize = 32;
/// What is gathered if the tap may not give us more than a frame of an ordinary network.
const FRAME_BYTES: usize = HEADER_BYTES + 22 + 1500;
/// Where `num_buffers` is in the header.
const NUM_BUFFERS_OFFSET: usize = 10;

/// Why reception stopped.
pub(super) enum RxStop {
    /// There is nothing more to read for now.
    Drained,
    /// There may be more, but it is the other direction's turn.
    Budget,
    /// The driver has given no buffers; it will kick.
    NoBuffers,
    /// The tap cannot be read.
    Tap(io::Error),
}

/// A gathered chain.
struct Chain {
    head: u16,
    buffers: usize,
    bytes: usize,
}

/// One receive queue.
pub(super) struct RxQueue {
    index: u16,
    queue: Queue,
    pub kick: Arc<EventFd>,
    mergeable: bool,
    /// Bytes of buffers to gather before each read.
    wanted: usize,
    chains: VecDeque<Chain>,
    buffers: Buffers,
    /// Bytes of `chains`.
    capacity: usize,
    spare: Vec<u8>,
    /// Length of the packet in `spare` that waits for buffers; 0 if there is none.
    held: usize,
    used: Vec<(u16, u32)>,
    /// The driver has been asked to kick.
    listening: bool,
}

impl RxQueue {
    pub(super) fn new(active: ActiveQueue, features: u64) -> Self {
        let has = |bit: u32| features & (1 << bit) != 0;
        let large = has(VIRTIO_NET_F_GUEST_TSO4)
            || has(VIRTIO_NET_F_GUEST_TSO6)
            || has(VIRTIO_NET_F_GUEST_USO4)
            || has(VIRTIO_NET_F_GUEST_USO6);
        Self {
            index: active.index,
            queue: active.queue,
            kick: active.kick,
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            wanted: if large { PACKET_BYTES_MAX } else { FRAME_BYTES },
            chains: VecDeque::new(),
            buffers: Buffers::default(),
            capacity: 0,
            spare: vec![0; PACKET_BYTES_MAX],
            held: 0,
            used: Vec::new(),
            listening: false,
        }
    }

    /// Reads packets until there are none, or no buffers, or enough.
    ///
    /// # Errors
    /// [`BrokenRing`]; what was received before is in the ring.
    pub(super) fn process(
        &mut self,
        tap: &Tap,
        memory: &GuestMemory,
        interrupt: &dyn Interrupt,
        counter: &Direction,
    ) -> Result<RxStop, BrokenRing> {
        let mut told = self.queue.next_used();
        for round in 1..=BUDGET {
            if let Some(stop) = self.receive(tap, memory, counter)? {
                self.notify(memory, interrupt, &mut told)?;
                return Ok(stop);
            }
            if round % NOTIFY_EVERY == 0 {
                self.notify(memory, interrupt, &mut told)?;
            }
        }
        Ok(RxStop::Budget)
    }

    fn notify(
        &mut self,
        memory: &GuestMemory,
        interrupt: &dyn Interrupt,
        told: &mut u16,
    ) -> Result<(), BrokenRing> {
        if ring::wants_notification(&self.queue, memory, *told)? {
            interrupt.signal_queue(self.index);
        }
        *told = self.queue.next_used();
        Ok(())
    }

    /// Brings one packet to the guest, or drops it. Says why if it could not.
    fn receive(
        &mut self,
        tap: &Tap,
        memory: &GuestMemory,
        counter: &Direction,
    ) -> Result<Option<RxStop>, BrokenRing> {
        if self.held > 0 {
            return self.place_held(memory, counter);
        }
        self.gather(memory, self.wanted)?;
        if self.capacity == 0 {
            let more = self.listen(memory)?;
            return Ok((!more).then_some(RxStop::NoBuffers));
        }
        let buffers = self.buffers.len();
        if self.capacity < PACKET_BYTES_MAX {
            self.buffers.push_spare(&mut self.spare[self.capacity..]);
        }
        // SAFETY: the buffers are guest RAM, to which no references exist, and the spare room,
        // to which no reference exists at this moment.
        let result = unsafe { tap.read(self.buffers.as_slice()) };
        self.buffers.truncate(buffers);
        match result {
            Ok(bytes) if bytes < HEADER_BYTES => counter.dropped(),
            Ok(bytes) if bytes <= self.capacity => self.commit(bytes, memory, counter)?,
            Ok(bytes) => {
                self.buffers.read(&mut self.spare[..self.capacity]);
                self.held = bytes;
                return self.place_held(memory, counter);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Ok(Some(RxStop::Drained));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Ok(Some(RxStop::Tap(error))),
        }
        Ok(None)
    }

    /// Copies the held packet into the ring, if there are buffers for it by now. It is dropped
    /// if there never can be.
    fn place_held(
        &mut self,
        memory: &GuestMemory,
        counter: &Direction,
    ) -> Result<Option<RxStop>, BrokenRing> {
        loop {
            let full = self.gather(memory, self.held)?;
            if self.capacity >= self.held {
                let bytes = std::mem::take(&mut self.held);
                self.buffers.write(0, &self.spare[..bytes]);
                self.commit(bytes, memory, counter)?;
                return Ok(None);
            }
            if full {
                self.held = 0;
                counter.dropped();
                return Ok(None);
            }
            if !self.listen(memory)? {
                return Ok(Some(RxStop::NoBuffers));
            }
        }
    }

    /// Gathers chains until they hold `wanted` bytes. Returns whether no more can be gathered
    /// even if the driver gives more.
    fn gather(&mut self, memory: &GuestMemory, wanted: usize) -> Result<bool, BrokenRing> {
        while self.capacity < wanted {
            let enough = if self.mergeable { self.queue.size() } else { 1 };
            if self.chains.len() >= usize::from(enough) {
                return Ok(true);
            }
            let Some(chain) = ring::next_chain(&mut self.queue, memory)? else {
                return Ok(false);
            };
            let head = chain.head_index();
            let before = self.buffers.len();
            let bytes = self.buffers.push_chain(chain, memory, true)?;
            if bytes < HEADER_BYTES {
                return Err(BrokenRing::Length);
            }
            if self.buffers.len() > BUFFERS_MAX {
                self.buffers.truncate(before);
                self.queue.go_to_previous_position();
                return Ok(true);
            }
            self.chains.push_back(Chain {
                head,
                buffers: self.buffers.len() - before,
                bytes,
            });
            self.capacity += bytes;
            if std::mem::take(&mut self.listening) {
                let silenced = self.queue.disable_notification(memory);
                silenced.map_err(|_| BrokenRing::Ring)?;
            }
        }
        Ok(false)
    }

    /// Asks the driver to kick when it adds buffers. Returns whether it already has.
    fn listen(&mut self, memory: &GuestMemory) -> Result<bool, BrokenRing> {
        self.listening = true;
        let more = self.queue.enable_notification(memory);
        more.map_err(|_| BrokenRing::Ring)
    }

    /// Hands the first `bytes` of what is gathered to the driver as one packet.
    fn commit(
        &mut self,
        bytes: usize,
        memory: &GuestMemory,
        counter: &Direction,
    ) -> Result<(), BrokenRing> {
        self.used.clear();
        let (mut left, mut buffers) = (bytes, 0);
        while left > 0
            && let Some(chain) = self.chains.pop_front()
        {
            let count = left.min(chain.bytes);
            self.used.push((chain.head, count as u32));
            self.capacity -= chain.bytes;
            buffers += chain.buffers;
            left -= count;
        }
        let num_buffers = self.used.len() as u16;
        self.buffers
            .write(NUM_BUFFERS_OFFSET, &num_buffers.to_le_bytes());
        self.buffers.mark_dirty(memory, bytes);
        self.buffers.drop_front(buffers);
        ring::publish(&mut self.queue, memory, &self.used)?;
        counter.passed(bytes - HEADER_BYTES);
        Ok(())
    }

    /// Reads and drops packets. Says when to go on.
    pub(super) fn discard(&mut self, tap: &Tap, counter: &Direction) -> RxStop {
        for _ in 0..BUDGET {
            let mut nowhere = Buffers::default();
            nowhere.push_spare(&mut self.spare);
            // SAFETY: the spare room is writable, and no reference to it exists at this moment.
            match unsafe { tap.read(nowhere.as_slice()) } {
                Ok(_) => counter.dropped(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return RxStop::Drained,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return RxStop::Tap(error),
            }
        }
        RxStop::Budget
    }

    /// Gives the queue back; gathered chains are available again, and a held packet is lost.
    pub(super) fn into_queue(mut self, counter: &Direction) -> (u16, Queue) {
        if self.held > 0 {
            counter.dropped();
        }
        let gathered = self.chains.len() as u16;
        let next = self.queue.next_avail().wrapping_sub(gathered);
        self.queue.set_next_avail(next);
        (self.index, self.queue)
    }
}
