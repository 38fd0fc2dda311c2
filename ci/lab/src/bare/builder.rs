//! What a bare server is put together from.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::monitor::Monitor;
use super::{BareServer, drain};
use crate::artifacts::make_ext4;
use crate::lab::Lab;
use crate::network::Port;
use crate::process::{BoundChild, number};

/// Debian's OVMF (package ovmf): with Secure Boot, and a store of variables in which Microsoft's
/// keys are enrolled, as servers are sold.
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd";

/// Size of the stick with the installer's answers.
const STICK_MIB: u64 = 16;

/// What starts the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF, with Secure Boot switched on.
    UefiSecureBoot,
}

/// How an ISO is put into the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// In a DVD drive.
    Dvd,
    /// Written to a USB stick.
    UsbStick,
}

/// How a disk is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// A parallel cable, of which there is one with two plugs.
    Ide,
    /// AHCI.
    Sata,
    /// What other hypervisors offer.
    Virtio,
}

/// A bare server before its start.
#[must_use = "a server runs after start()"]
pub struct BareServerBuilder<'a> {
    lab: &'a Lab,
    name: String,
    firmware: Firmware,
    cpu: String,
    memory_mib: u32,
    medium: Option<(Medium, PathBuf)>,
    disks: Vec<(Bus, PathBuf)>,
    answers: Option<String>,
    network_boot: bool,
    port: Option<Port>,
}

impl<'a> BareServerBuilder<'a> {
    pub(crate) fn new(lab: &'a Lab, name: &str, firmware: Firmware) -> Self {
        Self {
            lab,
            name: name.to_string(),
            firmware,
            cpu: "max".to_string(),
            memory_mib: 2048,
            medium: None,
            disks: Vec::new(),
            answers: None,
            network_boot: false,
            port: None,
        }
    }

    /// Memory; 2048 MiB unless set.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// The processor, as QEMU's `-cpu` has it; one with SVM unless set.
    pub fn cpu(mut self, model: &str) -> Self {
        self.cpu = model.to_string();
        self
    }

    /// Starts from this ISO. What the machine writes to a stick is lost with it.
    pub fn medium(mut self, medium: Medium, iso: &Path) -> Self {
        self.medium = Some((medium, iso.to_path_buf()));
        self
    }

    /// With this image as its next disk. It starts from the first one if there is no medium.
    pub fn disk(mut self, bus: Bus, image: &Path) -> Self {
        self.disks.push((bus, image.to_path_buf()));
        self
    }

    /// With a stick beside the medium that has these answers for the installer.
    pub fn answers(mut self, answers: &str) -> Self {
        self.answers = Some(answers.to_string());
        self
    }

    /// On a place on the switch that it had before: with the same network card.
    pub fn port(mut self, port: &Port) -> Self {
        self.port = Some(port.clone());
        self
    }

    /// Starts by the network card's PXE firmware.
    pub fn network_boot(mut self) -> Self {
        self.network_boot = true;
        self
    }

    /// Switches it on.
    ///
    /// # Errors
    /// If QEMU or mkfs.ext4 does not start, or there is no firmware for it on the host.
    pub fn start(self) -> Result<BareServer> {
        let port = match &self.port {
            Some(port) => port.clone(),
            None => self.lab.network().add_port()?,
        };
        let log = self.lab.directory().join(format!("{}.log", self.name));
        let (console, serial) = pair()?;
        let (monitor, control) = pair()?;
        let mut qemu = self.machine(&port);
        self.add_firmware(&mut qemu)?;
        self.add_medium(&mut qemu);
        self.add_disks(&mut qemu);
        self.add_answers(&mut qemu)?;
        let chardev = format!(
            "socket,id=serial,fd={},logfile={},logappend=on",
            number(&serial),
            log.display()
        );
        qemu.args(["-chardev", &chardev, "-serial", "chardev:serial"]);
        let chardev = format!("socket,id=control,fd={}", number(&control));
        qemu.args(["-chardev", &chardev, "-mon", "control,mode=control"]);
        let errors = File::create(log.with_extension("qemu"))?;
        qemu.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        let mut inheritance = self.lab.network().inheritance();
        inheritance.descriptors.extend([serial, control]);
        let machine = BoundChild::spawn(qemu, inheritance)?;
        drain(console.try_clone()?);
        Ok(BareServer {
            name: self.name,
            machine,
            console,
            monitor: Monitor::new(monitor)?,
            port,
            log,
            seen: 0,
        })
    }

    fn machine(&self, port: &Port) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-nodefaults", "-no-user-config"]);
        qemu.args(["-no-reboot", "-display", "none", "-vga", "std"]);
        // One CPU: see the module `server`.
        qemu.args(["-cpu", &self.cpu, "-smp", "1"]);
        qemu.args(["-m", &self.memory_mib.to_string()]);
        qemu.args(["-device", "virtio-rng-pci", "-device", "qemu-xhci"]);
        let tap = &port.tap;
        let netdev = format!("tap,id=n0,ifname={tap},script=no,downscript=no,vhost=off");
        qemu.args(["-netdev", &netdev]);
        // Old servers' card.
        let boot = if self.network_boot {
            "bootindex=0"
        } else {
            "romfile="
        };
        let device = format!("e1000,netdev=n0,{boot},mac={}", port.mac);
        qemu.args(["-device", &device]);
        qemu
    }

    fn add_firmware(&self, qemu: &mut Command) -> Result<()> {
        if self.firmware == Firmware::Bios {
            qemu.args(["-M", "q35"]);
            return Ok(());
        }
        let variables = self.lab.directory().join(format!("{}.vars", self.name));
        fs::copy(OVMF_VARS, &variables)
            .with_context(|| format!("copying {OVMF_VARS} (package ovmf)"))?;
        qemu.args(["-M", "q35,smm=on"]);
        qemu.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
        let code = format!("if=pflash,format=raw,unit=0,readonly=on,file={OVMF_CODE}");
        qemu.args(["-drive", &code]);
        let variables = format!("if=pflash,format=raw,unit=1,file={}", variables.display());
        qemu.args(["-drive", &variables]);
        Ok(())
    }

    fn add_medium(&self, qemu: &mut Command) {
        let Some((medium, iso)) = &self.medium else {
            return;
        };
        let drive = format!("file={},id=medium,if=none,format=raw", iso.display());
        match medium {
            Medium::Dvd => {
                qemu.args(["-drive", &format!("{drive},media=cdrom,readonly=on")]);
                qemu.args(["-device", "ide-cd,drive=medium,bus=ide.0,bootindex=0"]);
            }
            Medium::UsbStick => {
                qemu.args(["-drive", &format!("{drive},snapshot=on")]);
                qemu.args([
                    "-device",
                    "usb-storage,drive=medium,removable=on,bootindex=0",
                ]);
            }
        }
    }

    /// SATA disks get what plugs the DVD drive leaves.
    fn add_disks(&self, qemu: &mut Command) {
        if self.disks.iter().any(|(bus, _)| *bus == Bus::Ide) {
            qemu.args(["-device", "piix3-ide,id=parallel"]);
        }
        for (index, (bus, image)) in (1..).zip(&self.disks) {
            let image = image.display();
            let drive = format!("file={image},id=disk{index},if=none,format=raw,cache=unsafe");
            qemu.args(["-drive", &drive]);
            let device = match bus {
                Bus::Ide => "ide-hd,bus=parallel.0".to_string(),
                Bus::Sata => format!("ide-hd,bus=ide.{index}"),
                Bus::Virtio => "virtio-blk-pci".to_string(),
            };
            let disk = format!("drive=disk{index},serial=DISK{index},bootindex={index}");
            qemu.args(["-device", &format!("{device},{disk}")]);
        }
    }

    fn add_answers(&self, qemu: &mut Command) -> Result<()> {
        let Some(answers) = &self.answers else {
            return Ok(());
        };
        let content = self.lab.directory().join(format!("{}.stick", self.name));
        fs::create_dir_all(&content)?;
        fs::write(content.join("pindah.toml"), answers)?;
        let image = content.with_extension("stick.img");
        make_ext4(&content, &image, "PINDAH", 0, STICK_MIB)?;
        let drive = format!("file={},id=stick,if=none,format=raw", image.display());
        qemu.args(["-drive", &drive]);
        qemu.args(["-device", "usb-storage,drive=stick,removable=on"]);
        Ok(())
    }
}

/// Our end of a socket, and the machine's.
fn pair() -> Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours, theirs.into()))
}
