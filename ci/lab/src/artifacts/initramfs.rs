//! An initramfs: busybox, the modules that the root disk needs, one script.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cache::Cache;
use super::cpio::Archive;
use super::debian::{Kernel, busybox};

const INIT: &str = include_str!("../../assets/initramfs-init");
pub(super) const GUEST_CONSOLE: &str = include_str!("../../assets/guest-console");

/// What a guest's devices need. A module that a kernel has built in is left out.
const GUEST_MODULES: [&str; 11] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_balloon",
    "virtio_rng",
    "virtio_console",
    "ext4",
    "button",
    "evdev",
    "crc32c_generic",
    "rtc-cmos",
];

/// What a server needs before anybody can ask it to load more.
const SERVER_MODULES: [&str; 12] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "9p",
    "9pnet_virtio",
    "ext4",
    "crc32c_generic",
    "kvm-amd",
    "tun",
    "bridge",
];

pub(super) fn guest(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let name = format!("guest-initramfs-{}-{}", kernel.version, kernel.flavour);
    make(cache, &name, kernel, &GUEST_MODULES)
}

pub(super) fn server(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    make(cache, "server-initramfs", kernel, &SERVER_MODULES)
}

fn make(cache: &Cache, name: &str, kernel: &Kernel, modules: &[&str]) -> Result<PathBuf> {
    let busybox = busybox(cache)?;
    let inputs = (kernel, modules, INIT, GUEST_CONSOLE);
    let directory = cache.get(name, &inputs, |path| {
        let mut archive = Archive::default();
        for directory in ["bin", "sbin", "dev", "modules"] {
            archive.directory(directory);
        }
        archive.device("dev/console", 5, 1);
        archive.device("dev/null", 1, 3);
        archive.file("bin/busybox", 0o755, &fs::read(&busybox)?);
        archive.file("init", 0o755, INIT.as_bytes());
        archive.file("sbin/guest-console", 0o755, GUEST_CONSOLE.as_bytes());
        let mut list = String::new();
        for module in load_order(kernel, modules)? {
            let place = format!("modules/{}", module.name);
            archive.file(&place, 0o644, &module.bytes()?);
            list.extend(["/", &place, "\n"]);
        }
        archive.file("modules.list", 0o644, list.as_bytes());
        Ok(fs::write(path.join("initramfs"), archive.finish())?)
    })?;
    Ok(directory.join("initramfs"))
}

struct Module {
    name: String,
    path: PathBuf,
}

impl Module {
    /// The module, unpacked: busybox's insmod and old kernels want it so.
    fn bytes(&self) -> Result<Vec<u8>> {
        if self
            .path
            .extension()
            .is_none_or(|extension| extension != "xz")
        {
            return fs::read(&self.path)
                .with_context(|| format!("reading {}", self.path.display()));
        }
        let output = Command::new("xz")
            .arg("-dc")
            .arg(&self.path)
            .output()
            .context("starting xz")?;
        if !output.status.success() {
            bail!("xz cannot unpack {}", self.path.display());
        }
        Ok(output.stdout)
    }
}

/// The modules and what they depend on, each after what it needs.
fn load_order(kernel: &Kernel, wanted: &[&str]) -> Result<Vec<Module>> {
    let read = |name: &str| {
        let path = kernel.modules.join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let (dependencies, builtin) = (read("modules.dep")?, read("modules.builtin")?);
    let builtin: HashSet<String> = builtin.lines().map(module_name).collect();
    let mut order: Vec<Module> = Vec::new();
    for name in wanted {
        let name = name.replace('-', "_");
        let line = dependencies
            .lines()
            .find(|line| module_name(line.split(':').next().unwrap_or("")) == name);
        let Some((module, needs)) = line.and_then(|line| line.split_once(':')) else {
            if builtin.contains(&name) {
                continue;
            }
            bail!("kernel {} has no module {name}", kernel.release);
        };
        // `modules.dep` lists the deepest need last.
        for path in needs.split_whitespace().rev().chain([module]) {
            let name = module_name(path);
            if !order.iter().any(|module| module.name == name) {
                order.push(Module {
                    name,
                    path: kernel.modules.join(path),
                });
            }
        }
    }
    Ok(order)
}

/// `kernel/drivers/net/virtio-x.ko.xz` → `virtio_x`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}
