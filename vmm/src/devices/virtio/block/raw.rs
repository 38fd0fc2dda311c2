//! Raw images by plain system calls: the whole engine where io_uring is not permitted, and in any
//! case the way for what a ring does not do well (buffers that direct I/O does not take, short
//! transfers, zeroing on storage that cannot).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::alignment::{AlignedBuffer, Alignment};
use super::chain::{MAX_DESCRIPTORS, Segment};
use super::request::{Kind, Operation};
use crate::memory::GuestMemory;

/// Size of the bounce buffer, one a thread.
const BOUNCE_LEN: usize = 256 * 1024;

/// A raw image: bytes as the guest sees them.
pub(super) struct RawImage {
    file: File,
    alignment: Alignment,
    /// Held while a block is read, changed and written because a write covers only part of it:
    /// direct I/O on storage of blocks larger than a sector. Whole blocks are written without it,
    /// so a driver that overlaps such a write with another of the same sectors, which gives it no
    /// promise anyway, may find the rest of the block as it was before either.
    partial: Mutex<()>,
}

/// A guest's data buffers.
#[derive(Clone, Copy)]
pub(super) struct GuestData<'a> {
    pub memory: &'a GuestMemory,
    /// In RAM, as [`super::chain`] has checked.
    pub segments: &'a [Segment],
}

impl RawImage {
    /// # Errors
    /// The descriptor's alignment cannot be determined.
    pub fn new(file: File) -> io::Result<Self> {
        Ok(Self {
            alignment: Alignment::of(&file)?,
            file,
            partial: Mutex::new(()),
        })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn alignment(&self) -> Alignment {
        self.alignment
    }

    /// Whether these vectors may go to the kernel as they are.
    pub fn takes(&self, offset: u64, iovecs: &[libc::iovec]) -> bool {
        let (memory, block) = (self.alignment.memory - 1, self.alignment.offset - 1);
        offset & block == 0
            && iovecs.iter().all(|iovec| {
                iovec.iov_base as usize & memory == 0 && iovec.iov_len as u64 & block == 0
            })
    }

    /// Does all of `operation` but its first `done` bytes, and waits until it is done.
    ///
    /// # Errors
    /// What the kernel says; `UnexpectedEof` if the image is shorter than it was.
    pub fn execute(
        &self,
        operation: &Operation,
        data: GuestData<'_>,
        done: u64,
        bounce: &mut Bounce,
    ) -> io::Result<()> {
        let Operation { kind, offset, len } = *operation;
        match kind {
            Kind::Read => self.read(data, offset, len, done, bounce),
            Kind::Write => self.write(data, offset, len, done, bounce),
            Kind::Flush => self.file.sync_data(),
            Kind::Discard => match self.fallocate(punch_hole(), offset, len) {
                // A discard is a hint (virtio 1.2, 5.2.6.2).
                Err(error) if is_unsupported(&error) => Ok(()),
                result => result,
            },
            Kind::WriteZeroes { unmap } => self.zero(unmap, offset, len, bounce),
        }
    }

    fn read(
        &self,
        data: GuestData<'_>,
        offset: u64,
        len: u64,
        mut done: u64,
        bounce: &mut Bounce,
    ) -> io::Result<()> {
        if done == 0
            && let Some(iovecs) = bounce.iovecs(data)
            && self.takes(offset, iovecs)
        {
            done = vectored(libc::preadv, &self.file, iovecs, offset)?;
            data.mark_dirty(done);
        }
        while done < len {
            let (window, skip) = self.window(offset + done, len - done);
            let buffer = &mut bounce.buffer()[..window.len];
            let got = read_some(&self.file, buffer, window.start)?;
            if got <= skip {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = (got - skip).min((len - done) as usize);
            data.copy_in(done, &buffer[skip..skip + count])?;
            done += count as u64;
        }
        Ok(())
    }

    fn write(
        &self,
        data: GuestData<'_>,
        offset: u64,
        len: u64,
        mut done: u64,
        bounce: &mut Bounce,
    ) -> io::Result<()> {
        if done == 0
            && let Some(iovecs) = bounce.iovecs(data)
            && self.takes(offset, iovecs)
        {
            done = vectored(libc::pwritev, &self.file, iovecs, offset)?;
        }
        while done < len {
            let (window, skip) = self.window(offset + done, len - done);
            let buffer = &mut bounce.buffer()[..window.len];
            let count = (window.len - skip).min((len - done) as usize);
            let whole = skip == 0 && count == window.len;
            let _partial = (!whole).then(|| {
                self.partial
                    .lock()
                    .expect("no thread panics under this lock")
            });
            if !whole {
                let got = read_some(&self.file, buffer, window.start)?;
                buffer[got..].fill(0);
            }
            data.copy_out(done, &mut buffer[skip..skip + count])?;
            write_all(&self.file, buffer, window.start)?;
            done += count as u64;
        }
        Ok(())
    }

    /// The whole blocks that hold the first of `len` bytes at `position`, as much as the bounce
    /// buffer holds, and how many bytes come before `position`.
    fn window(&self, position: u64, len: u64) -> (Window, usize) {
        let block = self.alignment.offset;
        let start = position - position % block;
        let end = (position + len).next_multiple_of(block);
        let len = (end - start).min(BOUNCE_LEN as u64) as usize;
        (Window { start, len }, (position - start) as usize)
    }

    fn zero(&self, unmap: bool, offset: u64, len: u64, bounce: &mut Bounce) -> io::Result<()> {
        if unmap {
            match self.fallocate(punch_hole(), offset, len) {
                Err(error) if is_unsupported(&error) => {}
                result => return result,
            }
        }
        match self.fallocate(zero_range(), offset, len) {
            Err(error) if is_unsupported(&error) => self.write_zeroes(offset, len, bounce),
            result => result,
        }
    }

    /// Writes zeroes by hand.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write_zeroes(&self, offset: u64, len: u64, bounce: &mut Bounce) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let (window, skip) = self.window(offset + done, len - done);
            let buffer = &mut bounce.buffer()[..window.len];
            let count = (window.len - skip).min((len - done) as usize);
            let whole = skip == 0 && count == window.len;
            let _partial = (!whole).then(|| {
                self.partial
                    .lock()
                    .expect("no thread panics under this lock")
            });
            if !whole {
                let got = read_some(&self.file, buffer, window.start)?;
                buffer[got..].fill(0);
            }
            buffer[skip..skip + count].fill(0);
            write_all(&self.file, buffer, window.start)?;
            done += count as u64;
        }
        Ok(())
    }

    fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = (offset as libc::off_t, len as libc::off_t);
        // SAFETY: plain integers on an open descriptor.
        let result = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

struct Window {
    start: u64,
    len: usize,
}

/// `fallocate` mode that frees a range, which then reads as zeroes; on a block device too.
pub(super) fn punch_hole() -> i32 {
    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE
}

/// `fallocate` mode that zeroes a range and keeps it allocated; on a block device too.
pub(super) fn zero_range() -> i32 {
    libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE
}

/// Whether a file system or device lacks this mode of `fallocate`.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    // A block device answers EINVAL to ranges that are not of its own blocks.
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
    )
}

/// What one thread needs for transfers that cannot go straight to guest memory. The buffer is
/// allocated at first use: most guests never need it.
#[derive(Default)]
pub(super) struct Bounce {
    buffer: Option<AlignedBuffer>,
    iovecs: Vec<libc::iovec>,
}

// SAFETY: the pointers in `iovecs` are rebuilt before each use and never followed by this type.
unsafe impl Send for Bounce {}

impl Bounce {
    fn buffer(&mut self) -> &mut [u8] {
        self.buffer
            .get_or_insert_with(|| AlignedBuffer::new(BOUNCE_LEN))
    }

    fn iovecs(&mut self, data: GuestData<'_>) -> Option<&[libc::iovec]> {
        data.iovecs(&mut self.iovecs).then_some(&self.iovecs)
    }
}

impl GuestData<'_> {
    /// Replaces `iovecs` by the host addresses of all segments. False if there are more than one
    /// system call takes, which needs segments that cross from one memory region to the next.
    pub fn iovecs(&self, iovecs: &mut Vec<libc::iovec>) -> bool {
        iovecs.clear();
        for segment in self.segments {
            let slices =
                GuestMemoryBackend::get_slices(self.memory, segment.address, segment.len as usize);
            for slice in slices {
                let Ok(slice) = slice else { return false };
                iovecs.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        iovecs.len() <= MAX_DESCRIPTORS
    }

    /// Marks the first `len` bytes as written by the kernel.
    pub fn mark_dirty(&self, mut len: u64) {
        for segment in self.segments {
            let count = len.min(u64::from(segment.len));
            crate::memory::mark_dirty(self.memory, segment.address, count as usize);
            len -= count;
            if len == 0 {
                break;
            }
        }
    }

    fn copy_in(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.for_each(at, bytes.len(), |address, range| {
            self.memory.write_slice(&bytes[range], address)
        })
    }

    fn copy_out(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.for_each(at, bytes.len(), |address, range| {
            self.memory.read_slice(&mut bytes[range], address)
        })
    }

    fn for_each(
        &self,
        mut at: u64,
        len: usize,
        mut copy: impl FnMut(
            GuestAddress,
            std::ops::Range<usize>,
        ) -> Result<(), vm_memory::GuestMemoryError>,
    ) -> io::Result<()> {
        let mut done = 0;
        for segment in self.segments {
            let size = u64::from(segment.len);
            if at >= size {
                at -= size;
                continue;
            }
            let count = ((size - at) as usize).min(len - done);
            let address = GuestAddress(segment.address.0 + at);
            copy(address, done..done + count).map_err(io::Error::other)?;
            done += count;
            at = 0;
            if done == len {
                return Ok(());
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

type Vectored = unsafe extern "C" fn(
    libc::c_int,
    *const libc::iovec,
    libc::c_int,
    libc::off_t,
) -> libc::ssize_t;

fn vectored(call: Vectored, file: &File, iovecs: &[libc::iovec], offset: u64) -> io::Result<u64> {
    retry(|| {
        // SAFETY: the vectors describe guest RAM, which stays mapped.
        unsafe {
            call(
                file.as_raw_fd(),
                iovecs.as_ptr(),
                iovecs.len() as libc::c_int,
                offset as libc::off_t,
            )
        }
    })
    .map(|count| count as u64)
}

/// Reads until `buffer` is full or the file ends; returns how much came.
pub(super) fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        let position = (offset + done as u64) as libc::off_t;
        let count = retry(|| {
            // SAFETY: `rest` is writable memory of this length.
            unsafe {
                libc::pread(
                    file.as_raw_fd(),
                    rest.as_mut_ptr().cast(),
                    rest.len(),
                    position,
                )
            }
        })?;
        done += count;
        // Below 512 a direct read has met the end, and the next one would be misaligned.
        if count == 0 || !count.is_multiple_of(512) {
            break;
        }
    }
    Ok(done)
}

fn write_all(file: &File, buffer: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &buffer[done..];
        let position = (offset + done as u64) as libc::off_t;
        let count = retry(|| {
            // SAFETY: `rest` is readable memory of this length.
            unsafe { libc::pwrite(file.as_raw_fd(), rest.as_ptr().cast(), rest.len(), position) }
        })?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        done += count;
    }
    Ok(())
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        let result = call();
        if result >= 0 {
            return Ok(result as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
