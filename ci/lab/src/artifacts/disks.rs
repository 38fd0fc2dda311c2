//! Disks for guests.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::boot_sector;
use super::cache::{Cache, run, text};
use super::debian::{MIRROR, bootstrap, busybox};
use super::initramfs::GUEST_CONSOLE;

const GUEST_INIT: &str = "#!/bin/sh\nmount -t tmpfs tmpfs /tmp\nexec /sbin/guest-console\n";
const GUEST_MIB: u64 = 64;
const WORK_INIT: &str = "#!/bin/sh
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /dev/pts /dev/shm /run/sshd
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
exec /usr/sbin/guest-console
";

/// A raw disk without partitions: ext4 with busybox.
pub(super) fn guest(cache: &Cache) -> Result<PathBuf> {
    let busybox = busybox(cache)?;
    let inputs = (&busybox, GUEST_INIT, GUEST_CONSOLE, GUEST_MIB);
    let directory = cache.get("guest-disk", &inputs, |path| {
        let root = path.join("root");
        for directory in [
            "bin", "sbin", "dev", "proc", "sys", "tmp", "run", "mnt", "root",
        ] {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::copy(&busybox, root.join("bin/busybox"))?;
        for applet in applets(&busybox)? {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        write_program(&root.join("sbin/init"), GUEST_INIT)?;
        write_program(&root.join("sbin/guest-console"), GUEST_CONSOLE)?;
        make_ext4(&root, &path.join("disk.raw"), "guest-root", 0, GUEST_MIB)?;
        Ok(fs::remove_dir_all(&root)?)
    })?;
    Ok(directory.join("disk.raw"))
}

const WORK_PACKAGES: &str = "busybox,fio,iproute2,iputils-ping,openssh-server,procps,stress-ng";
const WORK_MIB: u64 = 1024;

/// A raw disk without partitions: ext4 with Debian 12 and what makes load.
pub(super) fn work(cache: &Cache) -> Result<PathBuf> {
    let inputs = (WORK_PACKAGES, WORK_INIT, GUEST_CONSOLE, WORK_MIB, MIRROR);
    let directory = cache.get("work-disk", &inputs, |path| {
        let root = path.join("root");
        bootstrap("bookworm", "minbase", WORK_PACKAGES, &root, &[])?;
        let console = root.join("usr/sbin/guest-console");
        write_program(&console, GUEST_CONSOLE)?;
        write_program(&root.join("lab-init"), WORK_INIT)?;
        symlink("../bin/busybox", root.join("usr/sbin/poweroff"))?;
        make_ext4(&root, &path.join("disk.raw"), "work-root", 0, WORK_MIB)?;
        Ok(fs::remove_dir_all(&root)?)
    })?;
    Ok(directory.join("disk.raw"))
}

const BOOT_PACKAGES: &str = "linux-image-cloud-amd64,initramfs-tools,grub-pc,systemd-sysv,udev,\
                             systemd-resolved,dbus,iproute2,iputils-ping,nginx,zstd";
const BOOT_UNIT: &str = include_str!("../../assets/guest-console.service");
const BOOT_NETWORK: &str = include_str!("../../assets/guest-ether.network");
const BOOT_PAGE: &str = "<h1>It moves</h1>\n";
const BOOT_GRUB: &str = include_str!("../../assets/grub.cfg");
const BOOT_MIB: u64 = 1536;
/// Sectors of the partition that holds GRUB's core image, and of the root's.
const CORE_SECTOR: u64 = 2048;
const ROOT_SECTOR: u64 = 4096;

/// A partitioned qcow2 disk with Debian 12, GRUB and a web server.
pub(super) fn boot(cache: &Cache) -> Result<PathBuf> {
    bootable(cache, "boot-disk", BOOT_PACKAGES)
}

/// The same with cloud-init, as an image for clouds has it.
pub(super) fn cloud(cache: &Cache) -> Result<PathBuf> {
    bootable(cache, "cloud-disk", &format!("{BOOT_PACKAGES},cloud-init"))
}

fn bootable(cache: &Cache, name: &str, packages: &str) -> Result<PathBuf> {
    let inputs = (
        packages,
        BOOT_UNIT,
        (BOOT_NETWORK, BOOT_PAGE),
        BOOT_GRUB,
        GUEST_CONSOLE,
        BOOT_MIB,
        MIRROR,
    );
    let directory = cache.get(name, &inputs, |path| {
        let (root, raw) = (path.join("root"), path.join("disk.raw"));
        boot_root(&root, packages)?;
        partition(&raw)?;
        make_ext4(&root, &raw, "boot-root", ROOT_SECTOR * 512, BOOT_MIB - 3)?;
        boot_sector::install(&root.join("usr/lib/grub/i386-pc"), path, &raw, CORE_SECTOR)?;
        let qcow2 = path.join("disk.qcow2");
        run(
            "qemu-img",
            &["convert", "-O", "qcow2", text(&raw), text(&qcow2)],
        )?;
        fs::remove_file(&raw)?;
        Ok(fs::remove_dir_all(&root)?)
    })?;
    Ok(directory.join("disk.qcow2"))
}

fn boot_root(root: &Path, packages: &str) -> Result<()> {
    let preseed = "--essential-hook=echo grub-pc grub-pc/install_devices_empty boolean true \
                   | chroot \"$1\" debconf-set-selections";
    bootstrap("bookworm", "minbase", packages, root, &[preseed])?;
    fs::write(
        root.join("etc/fstab"),
        "LABEL=boot-root / ext4 defaults 0 1\n",
    )?;
    fs::write(root.join("etc/hostname"), "boot\n")?;
    fs::write(
        root.join("etc/default/grub"),
        "GRUB_TIMEOUT=0\nGRUB_TERMINAL=serial\nGRUB_CMDLINE_LINUX=\"console=ttyS0\"\n",
    )?;
    write_program(&root.join("usr/local/sbin/guest-console"), GUEST_CONSOLE)?;
    fs::write(
        root.join("etc/systemd/system/guest-console.service"),
        BOOT_UNIT,
    )?;
    let systemctl = |words: &[&str]| {
        let arguments = [&[text(root), "systemctl"], words].concat();
        run("chroot", &arguments)
    };
    systemctl(&[
        "enable",
        "guest-console.service",
        "systemd-networkd.service",
    ])?;
    // Without a network card it would wait in vain.
    systemctl(&["disable", "systemd-networkd-wait-online.service"])?;
    systemctl(&["mask", "serial-getty@ttyS0.service"])?;
    let network = root.join("etc/systemd/network/ether.network");
    fs::write(network, BOOT_NETWORK)?;
    let resolver = root.join("etc/resolv.conf");
    fs::remove_file(&resolver).or_else(ignore_missing)?;
    symlink("../run/systemd/resolve/stub-resolv.conf", resolver)?;
    fs::write(root.join("var/www/html/index.html"), BOOT_PAGE)?;
    let grub = root.join("boot/grub");
    fs::create_dir_all(&grub)?;
    fs::write(grub.join("grub.cfg"), BOOT_GRUB)?;
    let modules = root.join("usr/lib/grub/i386-pc");
    run("cp", &["-r", text(&modules), text(&grub)])
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

/// GPT with a BIOS boot partition and a root partition.
fn partition(raw: &Path) -> Result<()> {
    fs::File::create(raw)?.set_len(BOOT_MIB << 20)?;
    let core_sectors = ROOT_SECTOR - CORE_SECTOR;
    let layout = format!(
        "label: gpt\nstart={CORE_SECTOR}, size={core_sectors}, type=21686148-6449-6E6F-744E-656564454649\n\
         start={ROOT_SECTOR}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n"
    );
    let script = format!("printf '%s' '{layout}' | sfdisk -q '{}'", raw.display());
    run("sh", &["-c", &script])
}

/// An ext4 file system in a file, from `offset`, without loop devices or mounts.
pub(crate) fn make_ext4(
    root: &Path,
    disk: &Path,
    label: &str,
    offset: u64,
    mib: u64,
) -> Result<()> {
    let extended = format!("offset={offset}");
    let size = format!("{mib}M");
    let fixed = ["-q", "-F", "-m", "0", "-L", label, "-E", &extended, "-d"];
    run(
        "mkfs.ext4",
        &[&fixed[..], &[text(root), text(disk), &size]].concat(),
    )
}

/// Writes an executable script.
pub(super) fn write_program(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

fn applets(busybox: &Path) -> Result<Vec<String>> {
    let output = Command::new(busybox)
        .arg("--list")
        .output()
        .context("starting busybox")?;
    if !output.status.success() {
        bail!("busybox --list ended: {}", output.status);
    }
    let list = String::from_utf8(output.stdout)?;
    Ok(list
        .lines()
        .filter(|name| *name != "busybox")
        .map(str::to_string)
        .collect())
}
