//! GRUB: its environment, and its code for BIOS in the disk's first sector and in a partition of its
//! own, without mounting anything.

use std::path::Path;

use super::InstallError;
use super::layout::Partition;
use super::target::Target;
use crate::boot_sector::{SECTOR, set_block_list, set_boot_code};

/// The environment of a fresh node, in the words of RAUC: slot A is good, slot B is empty.
const ENVIRONMENT: &str = "# GRUB Environment Block\nORDER=A B\nA_OK=1\nA_TRY=0\nB_OK=0\nB_TRY=0\n";
/// GRUB changes the block in place and never its size, in bytes.
const ENVIRONMENT_SIZE: usize = 1024;

/// The file `grubenv`.
pub(super) fn environment() -> Vec<u8> {
    let mut block = ENVIRONMENT.as_bytes().to_vec();
    block.resize(ENVIRONMENT_SIZE, b'#');
    block
}

/// Puts the core image in `directory` into `partition`.
pub(super) fn write_core(
    target: &Target,
    partition: &Partition,
    directory: &Path,
) -> Result<(), InstallError> {
    let mut core = read(&directory.join("core.img"))?;
    let sound = set_block_list(&mut core, sector_of(partition));
    if !sound || core.len() as u64 > partition.size() {
        return Err(InstallError::NoGrub(directory.join("core.img")));
    }
    target.write(&core, partition.range.start)
}

/// Has the BIOS start the core image in `partition`: the last thing to be written.
pub(super) fn write_boot_code(
    target: &Target,
    partition: &Partition,
    directory: &Path,
) -> Result<(), InstallError> {
    let boot = read(&directory.join("boot.img"))?;
    let mut sector = [0; SECTOR];
    target.read(&mut sector, 0)?;
    if !set_boot_code(&mut sector, &boot, sector_of(partition)) {
        return Err(InstallError::NoGrub(directory.join("boot.img")));
    }
    target.write(&sector, 0)
}

fn sector_of(partition: &Partition) -> u64 {
    partition.range.start / SECTOR as u64
}

fn read(path: &Path) -> Result<Vec<u8>, InstallError> {
    std::fs::read(path).map_err(|source| InstallError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_is_a_block_of_its_fixed_size() {
        let block = environment();
        assert_eq!(block.len(), 1024);
        assert!(block.starts_with(b"# GRUB Environment Block\nORDER=A B\n"));
        assert!(block.ends_with(b"####"));
    }
}
