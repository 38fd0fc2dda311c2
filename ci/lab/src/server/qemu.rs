//! QEMU's command line for a server.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::network::Port;
use crate::process::number;
use crate::wire;

/// A disk of a server's.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    /// The image, raw.
    pub path: PathBuf,
    /// Whether what is written stays in it; else it is lost with the server.
    pub kept: bool,
}

/// Everything that QEMU has to know.
pub(super) struct Machine<'a> {
    pub name: &'a str,
    pub memory_mib: u32,
    pub cpu_model: &'a str,
    pub systemd: bool,
    pub kernel: &'a Path,
    pub initrd: &'a Path,
    pub root: &'a Path,
    pub disks: &'a [Disk],
    pub programs: &'a Path,
    pub artifacts: &'a Path,
    pub port: &'a Port,
    pub agent: &'a OwnedFd,
    pub log: &'a Path,
}

impl Machine<'_> {
    /// The command; QEMU's own complaints go into the console's log.
    pub(super) fn command(&self) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-M", "q35", "-nodefaults"]);
        qemu.args(["-no-user-config", "-no-reboot", "-display", "none"]);
        // One CPU: see the module `server`.
        qemu.args(["-cpu", self.cpu_model, "-smp", "1"]);
        qemu.args(["-m", &self.memory_mib.to_string()]);
        qemu.args([
            "-chardev",
            &format!("file,id=log,path={},append=on", self.log.display()),
        ]);
        qemu.args(["-serial", "chardev:log"]);
        // A server that resets itself ends the emulator: what it was doing is worth knowing.
        qemu.args(["-d", "cpu_reset", "-D"]);
        qemu.arg(self.log.with_extension("reset"));
        self.add_boot(&mut qemu);
        self.add_disks(&mut qemu);
        self.add_agent(&mut qemu);
        self.add_network(&mut qemu);
        add_share(&mut qemu, "bin", self.programs);
        add_share(&mut qemu, "artifacts", self.artifacts);
        let log = File::options().create(true).append(true).open(self.log);
        qemu.stdin(Stdio::null()).stdout(Stdio::null());
        qemu.stderr(log.map_or_else(|_| Stdio::null(), Stdio::from));
        qemu
    }

    fn add_boot(&self, qemu: &mut Command) {
        let systemd = if self.systemd { " lab.systemd" } else { "" };
        let line = format!(
            "console=ttyS0 quiet panic=-1 root=/dev/vda rw init=/lab/init lab.name={} \
             lab.address={}{systemd}",
            self.name, self.port.address
        );
        qemu.arg("-kernel").arg(self.kernel);
        qemu.arg("-initrd").arg(self.initrd);
        qemu.args(["-append", &line]);
    }

    fn add_disks(&self, qemu: &mut Command) {
        let root = Disk {
            path: self.root.to_path_buf(),
            kept: false,
        };
        for (index, disk) in std::iter::once(&root).chain(self.disks).enumerate() {
            // `snapshot`: writes go to a file that has no name and ends with QEMU.
            let snapshot = if disk.kept { "off" } else { "on" };
            let drive = format!(
                "file={},id=d{index},if=none,format=raw,snapshot={snapshot},cache=unsafe,discard=unmap",
                disk.path.display()
            );
            qemu.args(["-drive", &drive]);
            qemu.args(["-device", &format!("virtio-blk-pci,drive=d{index}")]);
        }
    }

    fn add_agent(&self, qemu: &mut Command) {
        let chardev = format!("socket,id=agent,fd={}", number(self.agent));
        qemu.args(["-chardev", &chardev]);
        qemu.args(["-device", "virtio-serial-pci"]);
        let port = format!("virtserialport,chardev=agent,name={}", wire::PORT);
        qemu.args(["-device", &port]);
        qemu.args(["-device", "virtio-rng-pci"]);
    }

    fn add_network(&self, qemu: &mut Command) {
        let tap = &self.port.tap;
        let netdev = format!("tap,id=n0,ifname={tap},script=no,downscript=no,vhost=off");
        qemu.args(["-netdev", &netdev]);
        let device = format!("virtio-net-pci,netdev=n0,romfile=,mac={}", self.port.mac);
        qemu.args(["-device", &device]);
    }
}

/// A directory of the host, read-only, over 9p.
fn add_share(qemu: &mut Command, tag: &str, path: &Path) {
    let fsdev = format!(
        "local,id={tag},path={},security_model=none,readonly=on,multidevs=remap",
        path.display()
    );
    qemu.args(["-fsdev", &fsdev]);
    qemu.args([
        "-device",
        &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]);
}
