//! GRUB in a disk image, as `grub-bios-setup` puts it there, but without a
//! loop device or any right.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use pindah_installer::boot_sector::{SECTOR, set_block_list, set_boot_code};

use super::cache::{run, text};

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
    let sound = set_block_list(&mut core, core_sector);
    ensure!(sound, "GRUB's core image has {} bytes", core.len());

    let boot = fs::read(modules.join("boot.img")).context("reading GRUB's boot.img")?;
    let disk = File::options().read(true).write(true).open(disk)?;
    let mut sector = [0; SECTOR];
    disk.read_exact_at(&mut sector, 0)?;
    let sound = set_boot_code(&mut sector, &boot, core_sector);
    ensure!(sound, "GRUB's boot.img has {} bytes", boot.len());
    disk.write_all_at(&sector, 0)?;
    disk.write_all_at(&core, core_sector * SECTOR as u64)?;
    Ok(())
}
