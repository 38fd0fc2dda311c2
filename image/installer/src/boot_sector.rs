//! GRUB's code for BIOS in a disk's first sector, as `grub-bios-setup` puts it there.
//!
//! The BIOS runs sector 0 (`boot.img`), which loads one sector from the place written at 0x5c; that
//! sector (`diskboot.img`, the first of `core.img`) loads the list of blocks at its own end
//! (`grub-core/boot/i386/pc/*.S`).

/// Bytes of a sector as a BIOS has them.
pub const SECTOR: usize = 512;
/// Bytes of sector 0 that GRUB does not own: the BPB and the partition table.
const BPB: std::ops::Range<usize> = 0x03..0x5a;
const PARTITION_TABLE: std::ops::Range<usize> = 0x1b8..0x1fe;
const KERNEL_SECTOR: usize = 0x5c;
const DRIVE_CHECK: usize = 0x66;
/// Where `diskboot.img` loads the rest to, as a real-mode segment.
const LOAD_SEGMENT: u16 = 0x820;
const BLOCK_LIST: usize = 0x1f4;

/// Tells the core image's first sector where the others are, if that is sector `core_sector` of the
/// disk; false if it is none.
pub fn set_block_list(core: &mut Vec<u8>, core_sector: u64) -> bool {
    core.resize(core.len().next_multiple_of(SECTOR), 0);
    let sectors = core.len() / SECTOR;
    if !(2..=1025).contains(&sectors) {
        return false;
    }
    let list = &mut core[BLOCK_LIST..SECTOR];
    list[..8].copy_from_slice(&(core_sector + 1).to_le_bytes());
    list[8..10].copy_from_slice(&(sectors as u16 - 1).to_le_bytes());
    list[10..].copy_from_slice(&LOAD_SEGMENT.to_le_bytes());
    true
}

/// Puts GRUB's code around the partition table that is there, to load the core image from
/// `core_sector`; false if `boot` is none.
pub fn set_boot_code(sector: &mut [u8; SECTOR], boot: &[u8], core_sector: u64) -> bool {
    if boot.len() != SECTOR {
        return false;
    }
    let old = *sector;
    sector.copy_from_slice(boot);
    for kept in [BPB, PARTITION_TABLE] {
        sector[kept.clone()].copy_from_slice(&old[kept]);
    }
    sector[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&core_sector.to_le_bytes());
    // On a hard disk GRUB trusts no BIOS to say which drive it has started.
    sector[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&[0x90, 0x90]);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_list_of_three_sectors_names_the_last_two() {
        let mut core = vec![1; 2 * SECTOR + 1];
        assert!(set_block_list(&mut core, 2048));
        assert_eq!(core.len(), 3 * SECTOR);
        let expected = [1, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0x20, 8];
        assert_eq!(core[BLOCK_LIST..SECTOR], expected);
        assert!(!set_block_list(&mut vec![1; SECTOR], 2048));
    }

    #[test]
    fn boot_code_keeps_the_partition_table() {
        let mut sector = [7; SECTOR];
        assert!(set_boot_code(&mut sector, &[9; SECTOR], 2048));
        let bytes = (sector[0], sector[0x10], sector[0x1be], sector[0x1fe]);
        assert_eq!(bytes, (9, 7, 7, 9));
        assert!(!set_boot_code(&mut sector, &[9; 100], 2048));
    }
}
