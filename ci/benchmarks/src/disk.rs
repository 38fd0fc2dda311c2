//! The disk image that all subjects share, in memory.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::fcntl::{FallocateFlags, OFlag, fallocate};

const DIRECTORY: &str = "/dev/shm";
const SIZE_MIB: i64 = 512;

/// A raw image on tmpfs, all of it allocated.
pub struct DiskImage {
    /// Keeps it: the file has no name, so that nothing can leave it behind.
    _file: File,
    /// Path under which every process of this user can open it while we live.
    pub path: PathBuf,
    /// The file system takes `O_DIRECT` (tmpfs: since Linux 6.6).
    pub direct: bool,
}

impl DiskImage {
    /// Makes it.
    ///
    /// # Errors
    /// If `/dev/shm` has no room for it.
    pub fn new() -> Result<Self> {
        let file = tempfile::tempfile_in(DIRECTORY)
            .with_context(|| format!("making a disk image in {DIRECTORY}"))?;
        fallocate(&file, FallocateFlags::empty(), 0, SIZE_MIB << 20)
            .with_context(|| format!("{DIRECTORY} has no {SIZE_MIB} MiB for a disk image"))?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_DIRECT.bits())
            .open(&path)
            .is_ok();
        Ok(Self {
            _file: file,
            path: path.into(),
            direct,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn disk_image_has_all_its_blocks_and_goes_with_its_owner() {
        let image = DiskImage::new().unwrap();
        let path = image.path.clone();
        let metadata = fs::metadata(&path).unwrap();
        let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata);
        assert_eq!(metadata.len(), (SIZE_MIB as u64) << 20);
        assert!(blocks * 512 >= metadata.len());
        let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
        drop(image);
        // Another test's file may have the descriptor by now.
        let now = fs::metadata(path).map(|now| std::os::unix::fs::MetadataExt::ino(&now));
        assert_ne!(now.ok(), Some(inode));
    }
}
