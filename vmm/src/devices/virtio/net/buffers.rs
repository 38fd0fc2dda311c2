//! Descriptor chains as `readv` and `writev` want them.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::ring::BrokenRing;
use crate::memory::{GuestMemory, mark_dirty};

/// Buffers of one system call, at most; `UIO_MAXIOV` is 1024, and one is for spare room.
pub(super) const BUFFERS_MAX: usize = 1023;

/// Buffers in guest RAM, in order.
///
/// Pointers stay good as long as the [`GuestMemory`] that they were looked up in: whoever holds
/// these also holds it.
#[derive(Default)]
pub(super) struct Buffers {
    iovecs: Vec<libc::iovec>,
    addresses: Vec<GuestAddress>,
}

// SAFETY: the pointers go to guest RAM, which is not bound to any thread.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Appends the buffers of a chain that the device may write (`writable`), or read. Returns
    /// their length.
    ///
    /// # Errors
    /// A buffer is not in RAM, or there are more than [`BUFFERS_MAX`].
    pub(super) fn push_chain(
        &mut self,
        chain: DescriptorChain<&GuestMemory>,
        memory: &GuestMemory,
        writable: bool,
    ) -> Result<usize, BrokenRing> {
        let start = self.iovecs.len();
        let mut bytes = 0;
        for descriptor in chain {
            if descriptor.is_write_only() != writable || descriptor.len() == 0 {
                continue;
            }
            let length = descriptor.len() as usize;
            let slice = memory
                .get_slice(descriptor.addr(), length)
                .map_err(|_| BrokenRing::Address)?;
            if self.iovecs.len() - start >= BUFFERS_MAX {
                return Err(BrokenRing::Length);
            }
            self.iovecs.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: length,
            });
            self.addresses.push(descriptor.addr());
            bytes += length;
        }
        Ok(bytes)
    }

    /// Appends spare room that is not the guest's.
    pub(super) fn push_spare(&mut self, spare: &mut [u8]) {
        self.iovecs.push(libc::iovec {
            iov_base: spare.as_mut_ptr().cast(),
            iov_len: spare.len(),
        });
        self.addresses.push(GuestAddress(0));
    }

    /// Takes the last buffers away again, down to `len`.
    pub(super) fn truncate(&mut self, len: usize) {
        self.iovecs.truncate(len);
        self.addresses.truncate(len);
    }

    /// Takes the first `count` buffers away.
    pub(super) fn drop_front(&mut self, count: usize) {
        self.iovecs.drain(..count);
        self.addresses.drain(..count);
    }

    /// Number of buffers.
    pub(super) fn len(&self) -> usize {
        self.iovecs.len()
    }

    /// For a system call.
    pub(super) fn as_slice(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// Copies `data` into the buffers, from `offset` on.
    pub(super) fn write(&mut self, mut offset: usize, mut data: &[u8]) {
        for buffer in &self.iovecs {
            let skip = offset.min(buffer.iov_len);
            let count = data.len().min(buffer.iov_len - skip);
            let to = buffer.iov_base.cast::<u8>().wrapping_add(skip);
            // SAFETY: `skip + count` bytes of this buffer are ours to write, `data` has as many,
            // and no Rust reference to guest RAM exists that it could overlap.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, count) };
            offset -= skip;
            data = &data[count..];
        }
    }

    /// Copies the beginning of the buffers out to `data`.
    pub(super) fn read(&self, mut data: &mut [u8]) {
        for buffer in &self.iovecs {
            let count = data.len().min(buffer.iov_len);
            let (now, later) = data.split_at_mut(count);
            let from = buffer.iov_base.cast::<u8>();
            // SAFETY: `count` bytes of this buffer are readable, `now` has as many, and it is
            // not guest RAM.
            unsafe { std::ptr::copy_nonoverlapping(from, now.as_mut_ptr(), count) };
            data = later;
        }
    }

    /// Marks the first `bytes` as written, which the kernel did.
    pub(super) fn mark_dirty(&self, memory: &GuestMemory, mut bytes: usize) {
        for (buffer, &address) in self.iovecs.iter().zip(&self.addresses) {
            if bytes == 0 {
                return;
            }
            let count = bytes.min(buffer.iov_len);
            mark_dirty(memory, address, count);
            bytes -= count;
        }
    }
}
