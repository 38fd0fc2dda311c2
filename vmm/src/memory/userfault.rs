//! Pages of guest RAM that come only when somebody touches them (userfaultfd(2),
//! ioctl_userfaultfd(2)).
//!
//! Guests are not the only ones who touch RAM: KVM, vhost-net and io_uring do so in kernel mode.
//! For faults there the kernel wants a right of its own, and who may open `/dev/userfaultfd` has
//! it (Linux 6.1); so it is opened with all else that has a path, before the sandbox closes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::syscall::SyscallReturnCode;

use super::{GuestMemory, GuestRegion, PAGE_SIZE};

/// Where the kernel has it.
const DEVICE: &str = "/dev/userfaultfd";

/// linux/userfaultfd.h.
mod abi {
    use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iowr_nr};

    pub const KIND: u32 = 0xaa;
    pub const API: u64 = 0xaa;
    pub const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
    pub const REGISTER_MODE_MISSING: u64 = 1;
    pub const EVENT_PAGEFAULT: u8 = 0x12;
    /// `struct uffd_msg`, and where a fault's address is in it.
    pub const MESSAGE_BYTES: usize = 32;
    pub const ADDRESS_AT: usize = 16;

    #[repr(C)]
    #[derive(Default)]
    pub struct Api {
        pub version: u64,
        pub features: u64,
        pub ioctls: u64,
    }

    #[repr(C)]
    #[derive(Default)]
    pub struct Range {
        pub start: u64,
        pub len: u64,
    }

    #[repr(C)]
    #[derive(Default)]
    pub struct Register {
        pub range: Range,
        pub mode: u64,
        pub ioctls: u64,
    }

    #[repr(C)]
    #[derive(Default)]
    pub struct Copy {
        pub dst: u64,
        pub src: u64,
        pub len: u64,
        pub mode: u64,
        pub copied: i64,
    }

    #[repr(C)]
    #[derive(Default)]
    pub struct ZeroPage {
        pub range: Range,
        pub mode: u64,
        pub zeroed: i64,
    }

    ioctl_io_nr!(USERFAULTFD_IOC_NEW, KIND, 0x00);
    ioctl_iowr_nr!(UFFDIO_API, KIND, 0x3f, Api);
    ioctl_iowr_nr!(UFFDIO_REGISTER, KIND, 0x00, Register);
    ioctl_ior_nr!(UFFDIO_UNREGISTER, KIND, 0x01, Range);
    ioctl_ior_nr!(UFFDIO_WAKE, KIND, 0x02, Range);
    ioctl_iowr_nr!(UFFDIO_COPY, KIND, 0x03, Copy);
    ioctl_iowr_nr!(UFFDIO_ZEROPAGE, KIND, 0x04, ZeroPage);
}

/// Why pages cannot come when they are touched.
#[derive(Debug, Error)]
#[error("{action}")]
pub struct UserfaultError {
    /// What was tried.
    action: &'static str,
    #[source]
    source: io::Error,
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> UserfaultError {
    move |source| UserfaultError { action, source }
}

/// The kernel's word of faults, and the way to answer them. When it is dropped nothing is
/// registered any more: who waits finds pages of zeroes.
#[derive(Debug)]
pub struct Userfault {
    file: File,
    has_shared_memory: bool,
}

impl Userfault {
    /// Opens `/dev/userfaultfd`, for this process's memory.
    ///
    /// # Errors
    /// [`UserfaultError`]: there is none, or it may not be opened.
    pub fn open() -> Result<Self, UserfaultError> {
        let device = File::options().read(true).write(true).open(DEVICE);
        let device = device.map_err(failed("cannot open /dev/userfaultfd"))?;
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the request takes flags and no pointer.
        let fd = unsafe { ioctl_with_val(&device, abi::USERFAULTFD_IOC_NEW(), flags as u64) };
        let fd = SyscallReturnCode(fd)
            .into_result()
            .map_err(failed("/dev/userfaultfd gives nothing"))?;
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut api = abi::Api {
            version: abi::API,
            ..Default::default()
        };
        // SAFETY: the request reads and writes a structure of this type.
        let agreed = unsafe { ioctl_with_mut_ref(&file, abi::UFFDIO_API(), &mut api) };
        SyscallReturnCode(agreed)
            .into_empty_result()
            .map_err(failed("userfaultfd has another interface here"))?;
        Ok(Self {
            file,
            has_shared_memory: api.features & abi::FEATURE_MISSING_SHMEM != 0,
        })
    }

    /// From now on whoever touches a page of `memory` that is not there waits until it is given.
    ///
    /// # Errors
    /// [`UserfaultError`]; nothing is registered then.
    pub fn register(&self, memory: &GuestMemory) -> Result<(), UserfaultError> {
        for region in memory.iter() {
            if let Err(error) = self.register_region(region) {
                let _ = self.unregister(memory);
                return Err(failed("userfaultfd does not take guest RAM")(error));
            }
        }
        Ok(())
    }

    fn register_region(&self, region: &GuestRegion) -> io::Result<()> {
        if region.file_offset().is_some() && !self.has_shared_memory {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut request = abi::Register {
            range: range(region, 0, region.len()),
            mode: abi::REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: the request reads and writes a structure of this type.
        let result =
            unsafe { ioctl_with_mut_ref(&self.file, abi::UFFDIO_REGISTER(), &mut request) };
        SyscallReturnCode(result).into_empty_result()
    }

    /// Ends [`Self::register`]: who waits goes on, and pages that are not there are zeroes.
    ///
    /// # Errors
    /// [`UserfaultError`]; other regions are unregistered all the same.
    pub fn unregister(&self, memory: &GuestMemory) -> Result<(), UserfaultError> {
        let mut outcome = Ok(());
        for region in memory.iter() {
            let whole = range(region, 0, region.len());
            // SAFETY: the request reads a structure of this type.
            let result = unsafe { ioctl_with_ref(&self.file, abi::UFFDIO_UNREGISTER(), &whole) };
            outcome = outcome.and(SyscallReturnCode(result).into_empty_result());
        }
        outcome.map_err(failed("userfaultfd does not let guest RAM go"))
    }

    /// The host addresses of pages that somebody waits for, each told once for everybody who
    /// touches it. Returns how many of `addresses` were filled; 0: nobody waits.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn faults(&self, addresses: &mut [u64; 16]) -> io::Result<usize> {
        let mut messages = [0; 16 * abi::MESSAGE_BYTES];
        let length = match (&self.file).read(&mut messages) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let (messages, _) = messages[..length].as_chunks::<{ abi::MESSAGE_BYTES }>();
        // No other event was asked for.
        let faults = messages
            .iter()
            .filter(|message| message[0] == abi::EVENT_PAGEFAULT)
            .filter_map(|message| message[abi::ADDRESS_AT..].first_chunk());
        let mut count = 0;
        for (slot, address) in addresses.iter_mut().zip(faults) {
            *slot = u64::from_ne_bytes(*address) / PAGE_SIZE * PAGE_SIZE;
            count += 1;
        }
        Ok(count)
    }

    /// Gives the pages from `offset` of `region` on this content. Those that are there stay as
    /// they are. Both `offset` and the length are multiples of 4096.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn copy(&self, region: &GuestRegion, offset: u64, content: &[u8]) -> io::Result<()> {
        check(region, offset, content.len() as u64)?;
        let mut done = 0;
        while let rest @ [_, ..] = &content[done..] {
            let mut request = abi::Copy {
                dst: region.as_ptr() as u64 + offset + done as u64,
                src: rest.as_ptr() as u64,
                len: rest.len() as u64,
                ..Default::default()
            };
            // SAFETY: the request reads and writes a structure of this type, which names a range
            // of guest RAM, where nobody holds references, and a slice that lives on.
            let result =
                unsafe { ioctl_with_mut_ref(&self.file, abi::UFFDIO_COPY(), &mut request) };
            let at = offset + done as u64;
            done += self.progress(result, request.copied, rest.len(), region, at)?;
        }
        Ok(())
    }

    /// Makes the pages from `offset` of `region` on zeroes, as [`Self::copy`] does.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn zero(&self, region: &GuestRegion, offset: u64, bytes: u64) -> io::Result<()> {
        check(region, offset, bytes)?;
        let mut done = 0;
        while done < bytes {
            let at = offset + done;
            let mut request = abi::ZeroPage {
                range: range(region, at, bytes - done),
                ..Default::default()
            };
            // SAFETY: the request reads and writes a structure of this type, which names a range
            // of guest RAM, where nobody holds references.
            let result =
                unsafe { ioctl_with_mut_ref(&self.file, abi::UFFDIO_ZEROPAGE(), &mut request) };
            let rest = (bytes - done) as usize;
            done += self.progress(result, request.zeroed, rest, region, at)? as u64;
        }
        Ok(())
    }

    /// How many of `asked` bytes from `offset` on are there after a request that says so.
    fn progress(
        &self,
        result: libc::c_int,
        done: i64,
        asked: usize,
        region: &GuestRegion,
        offset: u64,
    ) -> io::Result<usize> {
        if result == 0 {
            return Ok(asked);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // A part, or nothing because somebody maps memory: once more.
            Some(libc::EAGAIN) => Ok(done.max(0) as usize),
            Some(libc::EEXIST) => {
                let page = range(region, offset, PAGE_SIZE);
                // SAFETY: the request reads a structure of this type.
                unsafe { ioctl_with_ref(&self.file, abi::UFFDIO_WAKE(), &page) };
                Ok(PAGE_SIZE as usize)
            }
            _ => Err(error),
        }
    }
}

impl AsFd for Userfault {
    /// Readable while [`Userfault::faults`] has something to tell.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Takes pages away, whatever backs them: the next touch is a fault. `offset` and `bytes` are
/// multiples of 4096 within `region`.
///
/// # Errors
/// The kernel's own.
pub fn discard(region: &GuestRegion, offset: u64, bytes: u64) -> io::Result<()> {
    check(region, offset, bytes)?;
    let advice = match region.file_offset() {
        // Else they would stay in the file.
        Some(_) => libc::MADV_REMOVE,
        None => libc::MADV_DONTNEED,
    };
    // SAFETY: the offset is within the region, which is one mapping.
    let start = unsafe { region.as_ptr().add(offset as usize) };
    // SAFETY: the range lies in that mapping. It is the guest's RAM, to which nobody holds
    // references: its content may change at any time, here to nothing.
    let result = unsafe { libc::madvise(start.cast(), bytes as usize, advice) };
    SyscallReturnCode(result).into_empty_result()
}

fn range(region: &GuestRegion, offset: u64, len: u64) -> abi::Range {
    abi::Range {
        start: region.as_ptr() as u64 + offset,
        len,
    }
}

fn check(region: &GuestRegion, offset: u64, bytes: u64) -> io::Result<()> {
    let end = offset.checked_add(bytes);
    let is_within = end.is_some_and(|end| end <= region.len());
    if is_within && offset.is_multiple_of(PAGE_SIZE) && bytes.is_multiple_of(PAGE_SIZE) {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

/// Request numbers, to compare with those that the sandbox lets through.
#[cfg(test)]
pub(crate) const REQUESTS: [fn() -> libc::c_ulong; 5] = [
    abi::UFFDIO_REGISTER,
    abi::UFFDIO_UNREGISTER,
    abi::UFFDIO_WAKE,
    abi::UFFDIO_COPY,
    abi::UFFDIO_ZEROPAGE,
];

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, FromRawFd};

    use vm_memory::{Bytes, FileOffset, GuestAddress};

    use super::*;

    const BYTES: usize = 16 << 12;

    fn memory(shared: bool) -> GuestMemory {
        let file = || {
            // SAFETY: the name is a C string; nothing else is touched.
            let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
            assert!(fd >= 0);
            // SAFETY: the descriptor is new and nobody else's.
            let file = unsafe { File::from_raw_fd(fd) };
            file.set_len(BYTES as u64).unwrap();
            FileOffset::new(file, 0)
        };
        let file = shared.then(file);
        GuestMemory::from_ranges_with_files([(GuestAddress(0), BYTES, file)]).unwrap()
    }

    fn open() -> Option<Userfault> {
        Userfault::open()
            .inspect_err(|error| eprintln!("skipped: {error}"))
            .ok()
    }

    #[test]
    fn pages_that_were_discarded_come_when_they_are_touched() {
        let Some(userfault) = open() else { return };
        for shared in [false, true] {
            let memory = memory(shared);
            let region = memory.iter().next().unwrap();
            memory
                .write_slice(&vec![1; BYTES], GuestAddress(0))
                .unwrap();
            userfault.register(&memory).unwrap();
            discard(region, 0x3000, 0x2000).unwrap();
            let mut page = [0; 4096];
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    memory.read_slice(&mut page, GuestAddress(0x3000)).unwrap();
                    page
                });
                let mut addresses = [0; 16];
                while userfault.faults(&mut addresses).unwrap() == 0 {
                    assert!(userfault.file.as_raw_fd() >= 0);
                    std::thread::yield_now();
                }
                assert_eq!(addresses[0], region.as_ptr() as u64 + 0x3000);
                // Pages that are there stay as they are.
                userfault.copy(region, 0x2000, &[7; 0x2000]).unwrap();
                assert_eq!(reader.join().unwrap(), [7; 4096]);
            });
            userfault.zero(region, 0x3000, 0x2000).unwrap();
            let mut all = vec![9; BYTES];
            memory.read_slice(&mut all, GuestAddress(0)).unwrap();
            let seen: Vec<u8> = all.iter().step_by(4096).copied().collect();
            assert_eq!(seen, [1, 1, 1, 7, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
            userfault.unregister(&memory).unwrap();
        }
    }

    #[test]
    fn who_waits_when_it_is_unregistered_finds_zeroes() {
        let Some(userfault) = open() else { return };
        let memory = memory(false);
        userfault.register(&memory).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| memory.read_obj::<u64>(GuestAddress(0x1000)).unwrap());
            let mut addresses = [0; 16];
            while userfault.faults(&mut addresses).unwrap() == 0 {
                std::thread::yield_now();
            }
            userfault.unregister(&memory).unwrap();
            assert_eq!(reader.join().unwrap(), 0);
        });
    }

    #[test]
    fn what_is_not_whole_pages_of_the_region_is_refused() {
        let Some(userfault) = open() else { return };
        let memory = memory(false);
        let region = memory.iter().next().unwrap();
        let end = BYTES as u64;
        for (offset, bytes) in [(1, 4096), (0, 4095), (end, 4096), (u64::MAX - 4095, 8192)] {
            assert!(userfault.zero(region, offset, bytes).is_err());
            assert!(discard(region, offset, bytes).is_err());
        }
        assert!(userfault.copy(region, end - 4096, &[0; 8192]).is_err());
    }
}
