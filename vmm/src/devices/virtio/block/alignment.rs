//! What direct I/O on a descriptor demands of addresses, lengths and offsets.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::ptr::NonNull;

/// Powers of two, in bytes; 1 where anything goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of a buffer's address.
    pub memory: usize,
    /// Of a buffer's length and of the position in the image.
    pub offset: u64,
}

impl Alignment {
    /// For I/O through the page cache.
    pub const NONE: Self = Self {
        memory: 1,
        offset: 1,
    };

    /// What `file` needs: nothing without `O_DIRECT`, else what the kernel says, else what a
    /// trial read shows.
    ///
    /// # Errors
    /// The descriptor's flags or type cannot be read.
    pub fn of(file: &File) -> io::Result<Self> {
        if !is_direct(file)? {
            return Ok(Self::NONE);
        }
        if let Some(alignment) = from_statx(file) {
            return Ok(alignment);
        }
        if file.metadata()?.file_type().is_block_device()
            && let Some(alignment) = from_sector_size(file)
        {
            return Ok(alignment);
        }
        Ok(from_trial(file))
    }
}

/// Whether the descriptor was opened with `O_DIRECT`.
pub(super) fn is_direct(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open, and F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(flags & libc::O_DIRECT != 0)
}

/// statx(2), `STATX_DIOALIGN`, Linux 6.1 and newer; zeroes where direct I/O is not possible.
fn from_statx(file: &File) -> Option<Alignment> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a C string, and the buffer is a struct statx.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            stat.as_mut_ptr(),
        )
    };
    // SAFETY: all bits zero is a valid struct statx, and the kernel only fills it in.
    let stat = unsafe { stat.assume_init() };
    if result != 0 || stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        return None;
    }
    let (memory, offset) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
    (memory.is_power_of_two() && offset.is_power_of_two()).then(|| Alignment {
        memory: memory as usize,
        offset: u64::from(offset),
    })
}

fn from_sector_size(file: &File) -> Option<Alignment> {
    let mut size: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int there.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut size) };
    let size = usize::try_from(size).ok()?;
    (result == 0 && size.is_power_of_two()).then_some(Alignment {
        memory: size,
        offset: size as u64,
    })
}

fn from_trial(file: &File) -> Alignment {
    let worst = Alignment {
        memory: 4096,
        offset: 4096,
    };
    let mut buffer = AlignedBuffer::new(4096);
    // SAFETY: the buffer has 512 bytes.
    let read = unsafe { libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().cast(), 512, 512) };
    if read >= 0 {
        // A memory alignment below that of the position is rare and not worth a second trial.
        Alignment {
            memory: 512,
            offset: 512,
        }
    } else {
        worst
    }
}

/// Zeroed memory that starts on a page, for direct I/O of any alignment up to 4096.
pub(super) struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

impl AlignedBuffer {
    /// `len` bytes, at least one.
    pub fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), 4096).expect("a small power of two");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Self { start, layout }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the allocation has this size, is initialised, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and never freed before.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

// SAFETY: the allocation belongs to this value alone.
unsafe impl Send for AlignedBuffer {}
