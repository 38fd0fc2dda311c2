//! The disk while it is written: as a whole, so that what is half done has no partition table.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use super::InstallError;
use super::layout::MIB;

/// The disk.
pub(super) struct Target {
    path: PathBuf,
    file: File,
}

impl Target {
    /// Opens it if nobody else has it: no mount, no swap, no LVM, no RAID.
    pub(super) fn open(path: &Path) -> Result<Self, InstallError> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true);
        // On a block device this is the kernel's own answer to who uses it.
        let exclusive = options.clone().custom_flags(rustix_flags()).open(path);
        let opened = exclusive.and_then(|file| {
            drop(file);
            options.open(path)
        });
        let file = opened.map_err(|source| InstallError::Open {
            disk: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<(), InstallError> {
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|source| self.write_error(offset, source))
    }

    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), InstallError> {
        let read = self.file.read_exact_at(bytes, offset);
        read.map_err(|source| InstallError::ReadDisk {
            disk: self.path.clone(),
            mib: offset / MIB,
            source,
        })
    }

    /// Zeros where file systems, tables, LVM and RAID have their signatures: both ends of `range`.
    pub(super) fn clear_ends(&self, range: &Range<u64>) -> Result<(), InstallError> {
        let zeros = vec![0; MIB as usize];
        self.write(&zeros, range.start)?;
        let last = range.end.saturating_sub(MIB).max(range.start);
        self.write(&zeros[..(range.end - last) as usize], last)
    }

    /// Has the disk keep all that was written.
    pub(super) fn sync(&self) -> Result<(), InstallError> {
        let synced = self.file.sync_all();
        synced.map_err(|source| self.write_error(0, source))
    }

    /// Has what is read from now on come from the disk.
    pub(super) fn forget(&self, range: &Range<u64>) {
        let length = std::num::NonZeroU64::new(range.end - range.start);
        // Where the kernel does not, less is proved.
        let _ = fadvise(&self.file, range.start, length, Advice::DontNeed);
    }

    fn write_error(&self, offset: u64, source: io::Error) -> InstallError {
        InstallError::WriteDisk {
            disk: self.path.clone(),
            mib: offset / MIB,
            source,
        }
    }
}

fn rustix_flags() -> i32 {
    rustix::fs::OFlags::EXCL.bits() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_a_part_are_cleared_and_nothing_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; 5 * MIB as usize]).unwrap();
        let target = Target::open(file.path()).unwrap();
        target.clear_ends(&(MIB..4 * MIB)).unwrap();
        let content = std::fs::read(file.path()).unwrap();
        let mib = content.chunks(MIB as usize);
        let clear: Vec<bool> = mib.map(|mib| mib.iter().all(|byte| *byte == 0)).collect();
        assert_eq!(clear, [false, true, false, true, false]);
    }
}
