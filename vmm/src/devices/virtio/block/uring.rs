//! Raw images through io_uring: one ring a queue, used by that queue's worker alone.
//!
//! The ring starts disabled, is restricted to the opcodes below on the one registered file, and
//! is then enabled: whoever takes over the process can do nothing else with it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::Segment;
use super::engine::{Completion, Engine};
use super::raw::{Bounce, GuestData, RawImage, is_unsupported, punch_hole, zero_range};
use super::request::{Kind, Operation};
use crate::memory::GuestMemory;

/// `IOSQE_FIXED_FILE`: the entry names a registered file.
const FIXED_FILE: u8 = 1;
const IMAGE: Fixed = Fixed(0);

/// Engine for raw images on io_uring.
pub(super) struct Uring {
    ring: IoUring,
    event: EventFd,
    image: Arc<RawImage>,
    slots: Box<[Slot]>,
    bounce: Bounce,
    /// Operations that ended without the ring.
    done: Vec<Completion>,
    /// Entries in the submission queue that the kernel has not taken.
    unsubmitted: bool,
}

struct Slot {
    operation: Operation,
    data: Vec<Segment>,
    /// The kernel reads these until the operation ends.
    iovecs: Vec<libc::iovec>,
}

// SAFETY: the pointers in the slots' vectors are for the kernel; this type never follows them.
unsafe impl Send for Uring {}

impl Uring {
    /// A ring for `slots` operations at a time.
    ///
    /// # Errors
    /// The kernel has no io_uring, does not permit it, or lacks restrictions (Linux 5.10).
    pub fn new(image: Arc<RawImage>, slots: u16) -> io::Result<Self> {
        let entries = u32::from(slots);
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_cqsize(entries * 2)
            .build(entries)?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        let submitter = ring.submitter();
        submitter.register_files(&[image.file().as_raw_fd()])?;
        submitter.register_eventfd(event.as_raw_fd())?;
        submitter.register_restrictions(&mut restrictions())?;
        submitter.register_enable_rings()?;
        let slots = (0..slots).map(|_| Slot {
            operation: Operation {
                kind: Kind::Flush,
                offset: 0,
                len: 0,
            },
            data: Vec::new(),
            iovecs: Vec::new(),
        });
        Ok(Self {
            ring,
            event,
            image,
            slots: slots.collect(),
            bounce: Bounce::default(),
            done: Vec::new(),
            unsubmitted: false,
        })
    }

    /// Does what the ring did not: all but the first `done` bytes.
    fn execute(&mut self, slot: u16, done: u64, memory: &GuestMemory) -> io::Result<()> {
        let Slot {
            operation, data, ..
        } = &self.slots[usize::from(slot)];
        let guest = GuestData {
            memory,
            segments: data,
        };
        self.image.execute(operation, guest, done, &mut self.bounce)
    }

    fn finish(&mut self, slot: u16, result: i32, memory: &GuestMemory) -> io::Result<()> {
        let Slot {
            operation, data, ..
        } = &self.slots[usize::from(slot)];
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            let zeroing = matches!(operation.kind, Kind::Discard | Kind::WriteZeroes { .. });
            let again = matches!(-result, libc::EAGAIN | libc::EINTR);
            if again || (zeroing && is_unsupported(&error)) {
                return self.execute(slot, 0, memory);
            }
            return Err(error);
        }
        let transferred = result as u64;
        if operation.kind == Kind::Read {
            let guest = GuestData {
                memory,
                segments: data,
            };
            guest.mark_dirty(transferred);
        }
        let transfer = matches!(operation.kind, Kind::Read | Kind::Write);
        if transfer && transferred < operation.len {
            return self.execute(slot, transferred, memory);
        }
        Ok(())
    }
}

fn restrictions() -> [Restriction; 8] {
    [
        Restriction::sqe_op(opcode::Read::CODE),
        Restriction::sqe_op(opcode::Readv::CODE),
        Restriction::sqe_op(opcode::Write::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_op(opcode::Fsync::CODE),
        Restriction::sqe_op(opcode::Fallocate::CODE),
        Restriction::sqe_flags_allowed(FIXED_FILE),
        Restriction::sqe_flags_required(FIXED_FILE),
    ]
}

/// The submission queue entry for an operation whose vectors are in place.
fn entry(slot: &Slot) -> squeue::Entry {
    let Operation { kind, offset, len } = slot.operation;
    let iovecs = &slot.iovecs;
    let fallocate = |mode| {
        opcode::Fallocate::new(IMAGE, len)
            .offset(offset)
            .mode(mode)
            .build()
    };
    match (kind, iovecs.as_slice()) {
        (Kind::Read, [one]) => opcode::Read::new(IMAGE, one.iov_base.cast(), one.iov_len as u32)
            .offset(offset)
            .build(),
        (Kind::Write, [one]) => opcode::Write::new(IMAGE, one.iov_base.cast(), one.iov_len as u32)
            .offset(offset)
            .build(),
        (Kind::Read, many) => opcode::Readv::new(IMAGE, many.as_ptr(), many.len() as u32)
            .offset(offset)
            .build(),
        (Kind::Write, many) => opcode::Writev::new(IMAGE, many.as_ptr(), many.len() as u32)
            .offset(offset)
            .build(),
        (Kind::Flush, _) => opcode::Fsync::new(IMAGE)
            .flags(FsyncFlags::DATASYNC)
            .build(),
        (Kind::Discard | Kind::WriteZeroes { unmap: true }, _) => fallocate(punch_hole()),
        (Kind::WriteZeroes { unmap: false }, _) => fallocate(zero_range()),
    }
}

impl Engine for Uring {
    fn submit(
        &mut self,
        slot: u16,
        operation: Operation,
        data: Vec<Segment>,
        memory: &Arc<GuestMemory>,
    ) {
        let place = &mut self.slots[usize::from(slot)];
        place.operation = operation;
        place.data = data;
        if matches!(operation.kind, Kind::Read | Kind::Write) {
            let guest = GuestData {
                memory,
                segments: &place.data,
            };
            let fits = guest.iovecs(&mut place.iovecs);
            if !fits || !self.image.takes(operation.offset, &place.iovecs) {
                let result = self.execute(slot, 0, memory);
                let data = std::mem::take(&mut self.slots[usize::from(slot)].data);
                self.done.push(Completion { slot, data, result });
                return;
            }
        }
        let entry = entry(place).user_data(u64::from(slot));
        // SAFETY: guest RAM stays mapped and the slot's vectors stay in place until the operation
        // ends: the queue's handler waits for that before it lets go of either.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the ring has an entry for each slot");
        self.unsubmitted = true;
    }

    fn kick(&mut self) {
        while self.unsubmitted {
            match self.ring.submit() {
                Ok(_) => self.unsubmitted = !self.ring.submission().is_empty(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Short of memory: the next turn tries again, after what has completed.
                Err(_) => return,
            }
        }
    }

    fn complete(&mut self, memory: &GuestMemory) -> Option<Completion> {
        if let Some(completion) = self.done.pop() {
            return Some(completion);
        }
        let entry = self.ring.completion().next()?;
        let slot = entry.user_data() as u16;
        let result = self.finish(slot, entry.result(), memory);
        let data = std::mem::take(&mut self.slots[usize::from(slot)].data);
        Some(Completion { slot, data, result })
    }

    fn is_ready(&mut self) -> bool {
        self.unsubmitted || !self.done.is_empty() || !self.ring.completion().is_empty()
    }

    fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn arm(&mut self) {
        self.ring.completion().enable_eventfd();
        // The look at the completion queue that follows must not overtake this.
        fence(Ordering::SeqCst);
    }

    fn disarm(&mut self) {
        self.ring.completion().disable_eventfd();
    }

    fn drain(&mut self) {
        let _ = self.event.read();
    }
}
