//! What an image is: its format by its first bytes, never by its name.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::StorageError;
use crate::domain::{FileName, PoolName};

/// An image in a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its name.
    pub name: FileName,
    /// The pool that it is in.
    #[serde(default = "PoolName::local")]
    pub pool: PoolName,
    /// Its format.
    pub format: ImageFormat,
    /// Size of the disk that it holds, in bytes.
    pub virtual_bytes: u64,
    /// Size of the file, in bytes.
    pub file_bytes: u64,
    /// SHA-256 of the file, in hexadecimal; absent in a read-only pool, where nobody has read all
    /// of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Why a VMDK without a disk of its own is refused.
const ELSEWHERE: &str = "a VMDK descriptor only names other files; convert it to one file first";

/// Format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// Anything that is none of the others: a disk byte for byte, or a kernel.
    Raw,
    /// QEMU's qcow2.
    Qcow2,
    /// VMware's sparse extents, stream-optimised ones too.
    Vmdk,
}

impl ImageFormat {
    /// What `qemu-img` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }

    /// The format of the file at `path`, by its first bytes.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::BadImage`].
    pub fn of(path: &Path, name: &FileName) -> Result<Self, StorageError> {
        let mut start = Vec::new();
        File::open(path)
            .and_then(|file| file.take(64).read_to_end(&mut start))
            .map_err(StorageError::io("read", path))?;
        Self::of_start(&start).map_err(|reason| StorageError::BadImage {
            name: name.to_string(),
            reason: reason.to_owned(),
        })
    }

    /// The same, of the first 64 bytes.
    pub(super) fn of_start(start: &[u8]) -> Result<Self, &'static str> {
        if start.is_empty() {
            return Err("it is empty");
        }
        if start.starts_with(b"# Disk DescriptorFile") {
            return Err(ELSEWHERE);
        }
        if start.starts_with(b"QFI\xfb") {
            return match start.get(4..8) {
                Some([0, 0, 0, 2 | 3]) => Ok(Self::Qcow2),
                _ => Err("its qcow version is not 2 or 3"),
            };
        }
        if start.starts_with(b"KDMV") {
            // Little endian, "capacity" of VMware's sparse extent header. Without one qemu-img
            // follows the descriptor within, to whatever files that names.
            return match start.get(12..20) {
                None | Some([0, 0, 0, 0, 0, 0, 0, 0]) => Err(ELSEWHERE),
                Some(_) => Ok(Self::Vmdk),
            };
        }
        Ok(Self::Raw)
    }

    /// Size of the disk, as the first bytes of a file in this format say, in bytes; `None`: that of
    /// the file.
    pub(super) fn virtual_bytes(self, start: &[u8]) -> Option<u64> {
        let field = |at: usize| start.get(at..at + 8)?.try_into().ok();
        match self {
            Self::Raw => None,
            // "size" of the qcow2 header, big endian.
            Self::Qcow2 => field(24).map(u64::from_be_bytes),
            // "capacity", in sectors.
            Self::Vmdk => field(12).map(|bytes| u64::from_le_bytes(bytes).saturating_mul(512)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_follows_from_the_first_bytes() {
        for (start, expected) in [
            (&b"QFI\xfb\0\0\0\x03..."[..], Ok(ImageFormat::Qcow2)),
            (b"QFI\xfb\0\0\0\x02", Ok(ImageFormat::Qcow2)),
            (
                b"KDMV\x01\0\0\0\x03\0\0\0\0\x40\0\0\0\0\0\0",
                Ok(ImageFormat::Vmdk),
            ),
            (b"\x7fELF", Ok(ImageFormat::Raw)),
            (b"\xeb\x63\x90", Ok(ImageFormat::Raw)),
        ] {
            assert_eq!(ImageFormat::of_start(start), expected);
        }
        let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
        header.resize(24, 0);
        header.extend((8u64 << 20).to_be_bytes());
        assert_eq!(ImageFormat::Qcow2.virtual_bytes(&header), Some(8 << 20));
        let header = b"KDMV\x01\0\0\0\x03\0\0\0\0\x40\0\0\0\0\0\0";
        assert_eq!(ImageFormat::Vmdk.virtual_bytes(header), Some(8 << 20));
        for start in [
            &b""[..],
            b"# Disk DescriptorFile\n",
            b"QFI\xfb\0\0\0\x01",
            b"QFI\xfb",
            b"KDMV\x01",
            b"KDMV\x01\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\x01",
        ] {
            assert!(ImageFormat::of_start(start).is_err());
        }
    }
}
