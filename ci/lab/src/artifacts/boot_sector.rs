//! GRUB in a disk image, as `grub-bios-setup` puts it there, but without a
//! loop device or any right.
//!
//! The BIOS runs sector 0 (`boot.img`), which loads one sector from the place
//! written at 0x5c; that sector (`diskboot.img`, the first of `core.img`)
//! loads the list of blocks at its own end (`grub-core/boot/i386/pc/*.S`).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::cache::{run, text};

const SECTOR: usize = 512;
/// Bytes of sector 0 that GRUB does not own: the BPB and the partition table.
const BPB: std::ops::Range<usize> = 0x03..0x5a;
const PARTITION_TABLE: std::ops::Range<usize> = 0x1b8..0x1fe;
const KERNEL_SECTOR: usize = 0x5c;
const DRIVE_CHECK: usize = 0x66;
/// Where `diskboot.img` loads the rest to, as a real-mode segment.
const LOAD_SEGMENT: u16 = 0x820;
const BLOCK_LIST: usize = 0x1f4;

/// Embeds GRUB into `disk` with its core image at `core_sector`; it reads its
/// configuration from `/boot/grub` of the second partition.
pub(super) fn install(modules: &Path, scratch: &Path, disk: &Path, core_sector: u64) -> Result<()> {
    let core_path = scratch.join("core.img");
    let prefix = "(hd0,gpt2)/boot/grub";
    let mut arguments = vec!["-O", "i386-pc", "-d", text(modules), "-o", text(&core_path)];
    arguments.extend(["-p", prefix, "biosdisk", "part_gpt", "ext2", "serial"]);
    run("grub-mkimage", &arguments)?;
    let mut core = fs::read(&core_path)?;
    fs::remove_file(&core_path)?;
    set_block_list(&mut core, core_sector)?;

    let boot = fs::read(modules.join("boot.img")).context("reading GRUB's boot.img")?;
    let disk = File::options().read(true).write(true).open(disk)?;
    let mut sector = [0; SECTOR];
    disk.read_exact_at(&mut sector, 0)?;
    set_boot_code(&mut sector, &boot, core_sector)?;
    disk.write_all_at(&sector, 0)?;
    disk.write_all_at(&core, core_sector * SECTOR as u64)?;
    Ok(())
}

/// Tells the core image's first sector where the others are.
fn set_block_list(core: &mut Vec<u8>, core_sector: u64) -> Result<()> {
    core.resize(core.len().next_multiple_of(SECTOR), 0);
    let rest = core.len() / SECTOR - 1;
    if rest == 0 || rest > 1024 {
        bail!("GRUB's core image has {rest} sectors after its first");
    }
    let list = &mut core[BLOCK_LIST..SECTOR];
    list[..8].copy_from_slice(&(core_sector + 1).to_le_bytes());
    list[8..10].copy_from_slice(&(rest as u16).to_le_bytes());
    list[10..].copy_from_slice(&LOAD_SEGMENT.to_le_bytes());
    Ok(())
}

/// Puts GRUB's code around the partition table that is there.
fn set_boot_code(sector: &mut [u8; SECTOR], boot: &[u8], core_sector: u64) -> Result<()> {
    if boot.len() != SECTOR {
        bail!("GRUB's boot.img has {} bytes", boot.len());
    }
    let old = *sector;
    sector.copy_from_slice(boot);
    for kept in [BPB, PARTITION_TABLE] {
        sector[kept.clone()].copy_from_slice(&old[kept]);
    }
    sector[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&core_sector.to_le_bytes());
    // On a hard disk GRUB trusts no BIOS to say which drive it has started.
    sector[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&[0x90, 0x90]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_list_of_three_sectors_names_the_last_two() {
        let mut core = vec![1; 2 * SECTOR + 1];
        set_block_list(&mut core, 2048).unwrap();
        assert_eq!(core.len(), 3 * SECTOR);
        assert_eq!(
            core[BLOCK_LIST..SECTOR],
            [1, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0x20, 8]
        );
    }

    #[test]
    fn boot_code_keeps_the_partition_table() {
        let mut sector = [7; SECTOR];
        set_boot_code(&mut sector, &[9; SECTOR], 2048).unwrap();
        assert_eq!(
            (sector[0], sector[0x10], sector[0x1be], sector[0x1fe]),
            (9, 7, 7, 9)
        );
        assert!(set_boot_code(&mut sector, &[9; 100], 2048).is_err());
    }
}
