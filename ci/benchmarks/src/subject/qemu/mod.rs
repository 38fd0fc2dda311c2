//! QEMU, on its smallest machine and on its ordinary one, both at their best.
//!
//! Both boot by qboot: SeaBIOS, q35's default, is slower everywhere, and by seconds on hosts
//! that emulate ring 0. What the guest does not use is left out of the machine.

mod migration;
mod qmp;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

pub use migration::{Mode, MovingQemu};

use super::{Bench, Machine, Subject};
use crate::network::{GUEST_MAC, TAP};

const PROGRAM: &str = "qemu-system-x86_64";
const VHOST_NET: &str = "/dev/vhost-net";

/// QEMU with one of its boards.
pub struct Qemu(pub Board);

/// Which machine it builds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Board {
    /// `microvm`: virtio-mmio and no PCI.
    Microvm,
    /// `q35`: virtio-pci.
    Q35,
}

impl Board {
    /// Without ACPI microvm names its virtio-mmio slots on the command line, as the probe likes it.
    fn machine(self) -> &'static str {
        match self {
            Self::Microvm => "microvm,acpi=off,pic=off,pit=off",
            Self::Q35 => "q35,graphics=off,hpet=off,sata=off,smbus=off,usb=off,vmport=off",
        }
    }

    fn device(self, kind: &str) -> String {
        match self {
            Self::Microvm => format!("virtio-{kind}-device"),
            Self::Q35 => format!("virtio-{kind}-pci,disable-legacy=on"),
        }
    }
}

fn version() -> Result<String> {
    let output = Command::new(PROGRAM)
        .arg("--version")
        .output()
        .with_context(|| format!("starting {PROGRAM} (Debian package qemu-system-x86)"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.to_owned()),
        _ => bail!("{PROGRAM} --version fails"),
    }
}

impl Subject for Qemu {
    fn name(&self) -> &str {
        match self.0 {
            Board::Microvm => "qemu-microvm",
            Board::Q35 => "qemu-q35",
        }
    }

    fn version(&self) -> Result<String> {
        version()
    }

    fn takes_part(&self, bench: &Bench) -> bool {
        ![crate::bench::MIGRATE, crate::bench::AGENT].contains(&bench.name)
    }

    /// Disks: which way of asynchronous I/O is faster depends on host and file system. Cards: the
    /// kernel moves the packets where it can.
    fn tunings(&self, machine: &Machine) -> Vec<&'static str> {
        if machine.disk.is_some() {
            vec!["io_uring", "threads"]
        } else if machine.network.is_some() && Path::new(VHOST_NET).exists() {
            vec!["vhost", "user"]
        } else {
            vec![""]
        }
    }

    fn command(&self, machine: &Machine, tuning: &str, _directory: &Path) -> Result<Command> {
        let mut command = Command::new(PROGRAM);
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-no-reboot", "-serial", "stdio", "-accel", "kvm"]);
        // Some hosts' KVM offers the MSR of this feature and then refuses its value.
        command.args(["-cpu", "host,arch-capabilities=off"]);
        command.args(["-M", self.0.machine(), "-bios", "qboot.rom"]);
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        command.args(["-m", &format!("{}M", machine.memory_mib)]);
        command.args(["-smp", &machine.cpus.to_string()]);
        command.arg("-kernel").arg(&machine.kernel);
        command.args(["-append", &machine.command_line]);
        if let Some(disk) = &machine.disk {
            let backend = format!(
                "driver=file,node-name=disk,filename={},aio={tuning},cache.direct={}",
                disk.path.display(),
                if disk.direct { "on" } else { "off" },
            );
            let device = format!("{},drive=disk,iothread=disk-thread", self.0.device("blk"));
            command.args(["-object", "iothread,id=disk-thread"]);
            command.args(["-blockdev", &backend, "-device", &device]);
        }
        if machine.network.is_some() {
            let vhost = if tuning == "vhost" { "on" } else { "off" };
            let backend = format!("tap,id=net,ifname={TAP},script=no,downscript=no,vhost={vhost}");
            let rom = if self.0 == Board::Q35 {
                ",romfile="
            } else {
                ""
            };
            let device = format!("{},netdev=net,mac={GUEST_MAC}{rom}", self.0.device("net"));
            command.args(["-netdev", &backend, "-device", &device]);
        }
        Ok(command)
    }
}
