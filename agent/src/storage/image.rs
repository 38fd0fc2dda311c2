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
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
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

    fn of_start(start: &[u8]) -> Result<Self, &'static str> {
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
