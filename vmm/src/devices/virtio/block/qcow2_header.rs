//! The header of a qcow2 image (QEMU `docs/interop/qcow2.txt`), read and checked before anything
//! else looks at the image.
//!
//! An image may come from anywhere: every size and offset is checked here against the file, so
//! that what follows neither allocates nor reads beyond reason, and each thing that we do not do
//! gets a message that says how to convert the image.

use std::fs::File;
use std::io;

use thiserror::Error;

use super::alignment::AlignedBuffer;
use super::raw::read_some;

const MAGIC: u32 = 0x5146_49fb;
const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
/// As QEMU: 32 MiB of L1 table, 8 MiB of refcount table, names of 1023 bytes.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const MAX_BACKING_NAME: u32 = 1023;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const FEATURE_NAME_LEN: usize = 48;

/// What matters to who opens the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Qcow2Header {
    /// Size of the disk in bytes.
    pub size: u64,
    pub backing: Option<Backing>,
}

/// The image below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    /// As the header says it: relative to the image's directory, or absolute.
    pub name: String,
    pub format: Option<String>,
}

/// Why an image is not taken.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Qcow2HeaderError {
    #[error("read the header")]
    Read(#[source] io::Error),
    #[error("it does not start as a qcow2 image; if it is a raw one, say format = \"raw\"")]
    Magic,
    #[error("the header is cut off after {0} bytes")]
    Short(usize),
    #[error("it has version {0}; only 2 and 3 are known")]
    Version(u32),
    #[error("its {what} is {value}, which cannot be")]
    Field { what: &'static str, value: u64 },
    #[error("its {0} does not lie in the file; try `qemu-img check`")]
    Table(&'static str),
    #[error("it {0}; `qemu-img convert -O qcow2` makes one that can be used")]
    Unsupported(&'static str),
    #[error("it {0}; `qemu-img check -r all` may repair it")]
    Damaged(&'static str),
    #[error("it needs feature bits {0:#x}, which are not known; use a newer version")]
    Features(u64),
    #[error("its disk has {0} bytes, which is not a multiple of 512; use `qemu-img resize`")]
    Size(u64),
    #[error("its name of the backing file is not UTF-8")]
    BackingName,
}

use Qcow2HeaderError as Fault;

impl Qcow2Header {
    /// Reads the header of an open image of `file_len` bytes.
    ///
    /// # Errors
    /// [`Qcow2HeaderError`].
    pub fn read(file: &File, file_len: u64) -> Result<Self, Qcow2HeaderError> {
        let start = read_start(file, 4096)?;
        let cluster_size = Fields(&start).cluster_size()?;
        // Extensions and the backing file's name lie in the first cluster.
        let start = read_start(file, cluster_size.next_multiple_of(4096))?;
        Self::parse(&start[..start.len().min(cluster_size)], file_len)
    }

    /// Parses the first cluster, or what there is of it, of an image of `file_len` bytes.
    ///
    /// # Errors
    /// [`Qcow2HeaderError`].
    pub fn parse(start: &[u8], file_len: u64) -> Result<Self, Qcow2HeaderError> {
        let fields = Fields(start);
        let cluster_size = fields.cluster_size()?;
        if fields.u32(32)? != 0 {
            return Err(Fault::Unsupported("is encrypted"));
        }
        let extensions = if fields.u32(4)? == 2 {
            V2_LEN
        } else {
            check_v3(&fields, cluster_size)?
        };
        let size = fields.u64(24)?;
        if size == 0 || !size.is_multiple_of(512) {
            return Err(Fault::Size(size));
        }
        check_tables(&fields, cluster_size as u64, size, file_len)?;
        let backing_format = walk_extensions(&fields, extensions)?;
        let backing = fields.backing_name()?.map(|name| Backing {
            name,
            format: backing_format,
        });
        Ok(Self { size, backing })
    }
}

fn read_start(file: &File, len: usize) -> Result<AlignedBuffer, Qcow2HeaderError> {
    let mut buffer = AlignedBuffer::new(len);
    // What is beyond the end of the file stays zero, and zeroes end every list.
    read_some(file, &mut buffer, 0).map_err(Fault::Read)?;
    Ok(buffer)
}

/// Checks what version 3 adds; returns where its extensions start.
fn check_v3(fields: &Fields<'_>, cluster_size: usize) -> Result<usize, Qcow2HeaderError> {
    let incompatible = fields.u64(72)?;
    if incompatible & 1 != 0 {
        return Err(Fault::Damaged("was not closed (dirty)"));
    }
    if incompatible & 2 != 0 {
        return Err(Fault::Damaged("is marked as corrupt"));
    }
    if incompatible & 4 != 0 {
        return Err(Fault::Unsupported("keeps its data in another file"));
    }
    if incompatible & 8 != 0 {
        return Err(Fault::Unsupported("has a compression type other than zlib"));
    }
    if incompatible & 16 != 0 {
        return Err(Fault::Unsupported("has extended L2 entries"));
    }
    if incompatible != 0 {
        return Err(Fault::Features(incompatible));
    }
    if fields.u32(96)? > 6 {
        return Err(field("refcount order", fields.u32(96)?));
    }
    let header_len = fields.u32(100)?;
    let len = header_len as usize;
    if len < V3_LEN || !len.is_multiple_of(8) || len > cluster_size {
        return Err(field("header length", header_len));
    }
    Ok(len)
}

fn check_tables(
    fields: &Fields<'_>,
    cluster_size: u64,
    size: u64,
    file_len: u64,
) -> Result<(), Qcow2HeaderError> {
    let inside = |offset: u64, len: u64| {
        offset != 0
            && offset.is_multiple_of(cluster_size)
            && offset.checked_add(len).is_some_and(|end| end <= file_len)
    };
    let l1_bytes = u64::from(fields.u32(36)?) * 8;
    let bytes_an_entry = cluster_size * (cluster_size / 8);
    if l1_bytes > MAX_L1_BYTES || l1_bytes / 8 < size.div_ceil(bytes_an_entry) {
        return Err(field("number of L1 entries", fields.u32(36)?));
    }
    if !inside(fields.u64(40)?, l1_bytes) {
        return Err(Fault::Table("L1 table"));
    }
    let refcount_bytes = u64::from(fields.u32(56)?) * cluster_size;
    if refcount_bytes == 0 || refcount_bytes > MAX_REFCOUNT_TABLE_BYTES {
        return Err(field("number of refcount table clusters", fields.u32(56)?));
    }
    if !inside(fields.u64(48)?, refcount_bytes) {
        return Err(Fault::Table("refcount table"));
    }
    Ok(())
}

/// Checks all header extensions; returns the backing file's format if one says it.
fn walk_extensions(fields: &Fields<'_>, mut at: usize) -> Result<Option<String>, Qcow2HeaderError> {
    let mut format = None;
    loop {
        let (kind, len) = (fields.u32(at)?, fields.u32(at + 4)?);
        if kind == EXTENSION_END {
            return Ok(format);
        }
        let len = len as usize;
        let data = fields.bytes(at + 8, len)?;
        match kind {
            EXTENSION_BACKING_FORMAT => {
                format = Some(String::from_utf8_lossy(data).into_owned());
            }
            EXTENSION_FEATURE_NAMES if !len.is_multiple_of(FEATURE_NAME_LEN) => {
                return Err(field("feature name table's length", len as u32));
            }
            _ => {}
        }
        at = at + 8 + len.next_multiple_of(8);
    }
}

fn field(what: &'static str, value: u32) -> Qcow2HeaderError {
    Fault::Field {
        what,
        value: u64::from(value),
    }
}

/// Big-endian numbers at fixed places.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes(&self, at: usize, len: usize) -> Result<&[u8], Qcow2HeaderError> {
        at.checked_add(len)
            .and_then(|end| self.0.get(at..end))
            .ok_or(Fault::Short(self.0.len()))
    }

    fn u32(&self, at: usize) -> Result<u32, Qcow2HeaderError> {
        let bytes = self.bytes(at, 4)?;
        Ok(u32::from_be_bytes(bytes.try_into().expect("four bytes")))
    }

    fn u64(&self, at: usize) -> Result<u64, Qcow2HeaderError> {
        let bytes = self.bytes(at, 8)?;
        Ok(u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
    }

    fn cluster_size(&self) -> Result<usize, Qcow2HeaderError> {
        if self.u32(0)? != MAGIC {
            return Err(Fault::Magic);
        }
        let version = self.u32(4)?;
        if version != 2 && version != 3 {
            return Err(Fault::Version(version));
        }
        match self.u32(20)? {
            bits @ 9..=21 => Ok(1 << bits),
            bits => Err(field("number of cluster bits", bits)),
        }
    }

    fn backing_name(&self) -> Result<Option<String>, Qcow2HeaderError> {
        let (offset, len) = (self.u64(8)?, self.u32(16)?);
        if offset == 0 || len == 0 {
            return Ok(None);
        }
        if len > MAX_BACKING_NAME {
            return Err(field("length of the backing file's name", len));
        }
        let offset = usize::try_from(offset).map_err(|_| Fault::Short(self.0.len()))?;
        let name = self.bytes(offset, len as usize)?;
        let name = std::str::from_utf8(name).map_err(|_| Fault::BackingName)?;
        Ok(Some(name.to_owned()))
    }
}

/// Whether these first bytes are those of a qcow2 image.
pub(super) fn looks_like_qcow2(start: &[u8]) -> bool {
    start.starts_with(&MAGIC.to_be_bytes())
}
