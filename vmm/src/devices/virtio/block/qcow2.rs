//! qcow2 images, through `imago`: blocking calls, for the threads of [`super::pool`].

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::{PoisonError, RwLock};

use imago::file::File as Storage;
use imago::format::PreallocateMode;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};
use pindah_vmm_api::DiskFormat;
use vm_memory::GuestMemoryBackend;

use super::alignment::is_direct;
use super::open::{DiskResources, Image};
use super::qcow2_header::Qcow2Header;
use super::raw::GuestData;
use super::request::{Kind, Operation};

type Access = FormatAccess<Storage>;

/// Most bytes that go to the library in one call: it may need a buffer of that size.
const LARGEST_CALL: usize = 1 << 20;

/// A qcow2 image and what stands behind it.
///
/// The library keeps tables in memory, so it must look at the image only while nobody else writes
/// it: it is opened by the first activation, from descriptors that are held from the beginning,
/// and again by [`Self::reload`].
pub(super) struct Qcow2Image {
    image: Image,
    backing: Vec<Image>,
    read_only: bool,
    /// Read: for transfers. Written: for what takes clusters away from under them.
    access: RwLock<Option<Access>>,
}

impl Qcow2Image {
    /// Looks whether the library takes the images, without writing to them.
    ///
    /// # Errors
    /// It does not.
    pub fn new(resources: DiskResources) -> io::Result<Self> {
        let image = Self {
            image: resources.image,
            backing: resources.backing,
            read_only: resources.read_only,
            access: RwLock::new(None),
        };
        image.load(false)?;
        Ok(image)
    }

    /// Opens the image if it is not open.
    ///
    /// # Errors
    /// The library does not take it.
    pub fn open(&self) -> io::Result<()> {
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        if access.is_none() {
            *access = Some(self.load(!self.read_only)?);
        }
        Ok(())
    }

    /// Forgets what is in memory; the next activation reads it again. For who gets an image that
    /// another process has just written. Returns the disk's size in bytes.
    ///
    /// # Errors
    /// The header cannot be read, or is not one that we take.
    pub fn reload(&self) -> io::Result<u64> {
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = None;
        let len = (&self.image.file).seek(SeekFrom::End(0))?;
        let header = Qcow2Header::read(&self.image.file, len).map_err(io::Error::other)?;
        Ok(header.size)
    }

    /// Writes all tables to the file, so that another process sees the same disk.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn settle(&self) -> io::Result<()> {
        match &*self.access.read().unwrap_or_else(PoisonError::into_inner) {
            Some(access) if !self.read_only => access.flush(),
            _ => Ok(()),
        }
    }

    /// Makes the disk larger.
    ///
    /// # Errors
    /// What the library says.
    pub fn grow(&self, size: u64) -> io::Result<()> {
        self.open()?;
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        let access = access.as_mut().ok_or_else(closed)?;
        access.resize_grow(size, PreallocateMode::None)?;
        access.flush()?;
        access.sync()
    }

    fn load(&self, write: bool) -> io::Result<Access> {
        let mut below: Option<Access> = None;
        for image in self.backing.iter().rev() {
            let storage = storage(&image.file)?;
            let access = match image.format {
                DiskFormat::Raw => FormatAccess::new(Raw::open_image(storage, false)?),
                DiskFormat::Qcow2 => open_qcow2(storage, below.take(), false)?,
            };
            below = Some(access);
        }
        open_qcow2(storage(&self.image.file)?, below, write)
    }

    /// Does `operation`, and waits until it is done.
    ///
    /// # Errors
    /// What the kernel or the library says.
    pub fn execute(&self, operation: &Operation, data: GuestData<'_>) -> io::Result<()> {
        let Operation { kind, offset, len } = *operation;
        if kind == Kind::Discard || kind == (Kind::WriteZeroes { unmap: true }) {
            let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
            let access = access.as_mut().ok_or_else(closed)?;
            return if kind == Kind::Discard {
                // A discard is a hint (virtio 1.2, 5.2.6.2); version 2 cannot do it.
                unless_unsupported(access.discard_to_any(offset, len), || Ok(()))
            } else {
                let discarded = access.discard_to_zero(offset, len);
                unless_unsupported(discarded, || write_zeroes(access, offset, len))
            };
        }
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
        let access = access.as_ref().ok_or_else(closed)?;
        match kind {
            Kind::Flush => {
                access.flush()?;
                access.sync()
            }
            Kind::WriteZeroes { .. } => {
                let zeroed = access.write_zeroes(offset, len);
                unless_unsupported(zeroed, || write_zeroes(access, offset, len))
            }
            _ => transfer(access, kind, offset, data),
        }
    }
}

fn closed() -> io::Error {
    io::Error::other("the image is not open")
}

fn unless_unsupported(
    result: io::Result<()>,
    otherwise: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => otherwise(),
        result => result,
    }
}

fn write_zeroes(access: &Access, mut offset: u64, len: u64) -> io::Result<()> {
    let zeroes = vec![0; (len as usize).min(LARGEST_CALL)];
    let end = offset + len;
    while offset < end {
        let count = (end - offset).min(zeroes.len() as u64);
        access.write(&zeroes[..count as usize], offset)?;
        offset += count;
    }
    Ok(())
}

/// Reads or writes. The library marks what it reads into guest RAM as dirty.
fn transfer(access: &Access, kind: Kind, mut offset: u64, data: GuestData<'_>) -> io::Result<()> {
    let mut call = Vec::new();
    let mut bytes = 0;
    let run = |slices: &mut Vec<_>, offset: &mut u64, bytes: &mut usize| {
        if kind == Kind::Read {
            let (vector, _guard) = IoVectorMut::from_volatile_slice(&*slices);
            access.readv(vector, *offset)?;
        } else {
            let (vector, _guard) = IoVector::from_volatile_slice(&*slices);
            access.writev(vector, *offset)?;
        }
        slices.clear();
        *offset += std::mem::take(bytes) as u64;
        Ok::<(), io::Error>(())
    };
    for segment in data.segments {
        let slices =
            GuestMemoryBackend::get_slices(data.memory, segment.address, segment.len as usize);
        for slice in slices {
            let slice = slice.map_err(io::Error::other)?;
            let mut done = 0;
            while done < slice.len() {
                let count = (slice.len() - done).min(LARGEST_CALL - bytes);
                call.push(slice.subslice(done, count).map_err(io::Error::other)?);
                done += count;
                bytes += count;
                if bytes == LARGEST_CALL {
                    run(&mut call, &mut offset, &mut bytes)?;
                }
            }
        }
    }
    if bytes > 0 {
        run(&mut call, &mut offset, &mut bytes)?;
    }
    Ok(())
}

fn open_qcow2(storage: Storage, below: Option<Access>, write: bool) -> io::Result<Access> {
    let image = Qcow2::<Storage>::builder(storage)
        .backing(below)
        .write(write)
        .open(DenyImplicitOpenGate::default())?;
    Ok(FormatAccess::new(image))
}

/// The library's view of a descriptor. Not "writable" where it would try out the alignment of
/// direct writes by writing.
fn storage(file: &File) -> io::Result<Storage> {
    let direct = is_direct(file)?;
    let options = StorageOpenOptions::new().direct(direct).write(!direct);
    Storage::from_open_file(file.try_clone()?, options)
}
