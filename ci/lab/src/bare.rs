//! A bare server: an emulated machine with firmware and disks and nothing of ours in it, of which
//! one sees what its owner would: the serial console, and what it serves on the switch.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::artifacts::make_ext4;
use crate::lab::Lab;
use crate::network::Port;
use crate::output::tail;
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

/// A bare server before its start.
#[must_use = "a server runs after start()"]
pub struct BareServerBuilder<'a> {
    lab: &'a Lab,
    name: String,
    firmware: Firmware,
    memory_mib: u32,
    medium: Option<(Medium, PathBuf)>,
    disk: Option<PathBuf>,
    answers: Option<String>,
}

impl<'a> BareServerBuilder<'a> {
    pub(crate) fn new(lab: &'a Lab, name: &str, firmware: Firmware) -> Self {
        Self {
            lab,
            name: name.to_string(),
            firmware,
            memory_mib: 2048,
            medium: None,
            disk: None,
            answers: None,
        }
    }

    /// Memory; 2048 MiB unless set.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Starts from this ISO. What the machine writes to a stick is lost with it.
    pub fn medium(mut self, medium: Medium, iso: &Path) -> Self {
        self.medium = Some((medium, iso.to_path_buf()));
        self
    }

    /// With this image as its SATA disk, from which it starts if there is no medium.
    pub fn disk(mut self, image: &Path) -> Self {
        self.disk = Some(image.to_path_buf());
        self
    }

    /// With a stick beside the medium that has these answers for the installer.
    pub fn answers(mut self, answers: &str) -> Self {
        self.answers = Some(answers.to_string());
        self
    }

    /// Switches it on.
    ///
    /// # Errors
    /// If QEMU or mkfs.ext4 does not start, or there is no firmware for it on the host.
    pub fn start(self) -> Result<BareServer> {
        let port = self.lab.network().add_port()?;
        let log = self.lab.directory().join(format!("{}.log", self.name));
        let (console, theirs) = UnixStream::pair()?;
        let serial = OwnedFd::from(theirs);
        let mut qemu = self.machine(&port);
        self.add_firmware(&mut qemu)?;
        self.add_medium(&mut qemu);
        self.add_disk(&mut qemu);
        self.add_answers(&mut qemu)?;
        let chardev = format!(
            "socket,id=serial,fd={},logfile={},logappend=on",
            number(&serial),
            log.display()
        );
        qemu.args(["-chardev", &chardev, "-serial", "chardev:serial"]);
        let errors = File::create(log.with_extension("qemu"))?;
        qemu.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        let mut inheritance = self.lab.network().inheritance();
        inheritance.descriptors.push(serial);
        let machine = BoundChild::spawn(qemu, inheritance)?;
        drain(console.try_clone()?);
        Ok(BareServer {
            name: self.name,
            machine,
            console,
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
        qemu.args(["-cpu", "max", "-smp", "1"]);
        qemu.args(["-m", &self.memory_mib.to_string()]);
        qemu.args(["-device", "virtio-rng-pci", "-device", "qemu-xhci"]);
        let tap = &port.tap;
        let netdev = format!("tap,id=n0,ifname={tap},script=no,downscript=no,vhost=off");
        qemu.args(["-netdev", &netdev]);
        // Old servers' card.
        let device = format!("e1000,netdev=n0,romfile=,mac={}", port.mac);
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
                qemu.args(["-device", "ide-cd,drive=medium,bootindex=0"]);
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

    fn add_disk(&self, qemu: &mut Command) {
        if let Some(image) = &self.disk {
            let image = image.display();
            let drive = format!("file={image},id=disk,if=none,format=raw,cache=unsafe");
            qemu.args(["-drive", &drive]);
            qemu.args(["-device", "ide-hd,drive=disk,serial=DISK1,bootindex=1"]);
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

/// A running bare server; gone when dropped.
pub struct BareServer {
    name: String,
    machine: BoundChild,
    console: UnixStream,
    port: Port,
    log: PathBuf,
    /// How much of the console's output has been dealt with.
    seen: usize,
}

impl BareServer {
    /// Waits until its console has shown `text` since the last thing waited for.
    ///
    /// # Errors
    /// If it does not within `limit`, or the machine ends.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let shown = fs::read(&self.log).unwrap_or_default();
            let rest = &shown[self.seen.min(shown.len())..];
            if let Some(at) = find(rest, text.as_bytes()) {
                self.seen += at + text.len();
                return Ok(());
            }
            if let Some(status) = self.machine.try_wait()? {
                return Err(self.explain(&format!("ended ({status}) before it said “{text}”")));
            }
            if Instant::now() > deadline {
                return Err(self.explain(&format!("did not say “{text}” within {limit:?}")));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until it has switched itself off.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub fn wait_until_off(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.machine.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err(self.explain(&format!("was not off within {limit:?}")));
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Types on its console; a line needs its `\r`.
    ///
    /// # Errors
    /// If the machine has ended.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        let typed = self.console.write_all(text.as_bytes());
        typed.map_err(|error| self.explain(&format!("takes no input: {error}")))
    }

    /// Runs a shell command where somebody has logged in, and returns what it printed.
    ///
    /// # Errors
    /// If it fails or does not end within two minutes.
    pub fn run(&mut self, command: &str) -> Result<String> {
        // In two parts, so that what the terminal echoes is not taken for the answer.
        self.type_text(&format!("echo @be''gin; {command}; echo @en''d $?@\r"))?;
        let limit = Duration::from_secs(120);
        self.wait_for("@begin", limit)?;
        let start = self.seen;
        self.wait_for("@end ", limit)?;
        let end = self.seen - "@end ".len();
        self.wait_for("@", limit)?;
        let shown = fs::read(&self.log)?;
        let printed = String::from_utf8_lossy(&shown[start..end]).replace('\r', "");
        let status = String::from_utf8_lossy(&shown[end + 5..self.seen - 1]).into_owned();
        if status != "0" {
            bail!(
                "`{command}` on {} ended with {status}:\n{printed}",
                self.name
            );
        }
        Ok(printed.trim().to_string())
    }

    /// Its place on the switch.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// What its console has shown.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn explain(&self, what: &str) -> anyhow::Error {
        let shown = fs::read(&self.log).unwrap_or_default();
        let errors = fs::read_to_string(self.log.with_extension("qemu")).unwrap_or_default();
        anyhow!(
            "server {} {what}\n{errors}--- its console ({})\n{}",
            self.name,
            self.log.display(),
            tail(&shown)
        )
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        // Ends the thread that drains it.
        let _ = self.console.shutdown(Shutdown::Both);
    }
}

/// Reads the console away, as QEMU writes it to its log too.
fn drain(mut console: UnixStream) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while matches!(console.read(&mut buffer), Ok(length) if length > 0) {}
    });
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}
