//! What servers and guests are made of: kernels, initramfs, disks.
//!
//! Each is made once from Debian packages and kept in `.cache/lab/` under a
//! name that holds a hash of all that went into it. What has been made without
//! error is complete: it is moved to its name as the last step.

mod boot_sector;
mod cache;
mod cpio;
mod debian;
mod disks;
mod initramfs;
mod server_root;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use debian::{Flavour, Kernel};
pub(crate) use disks::make_ext4;

use cache::Cache;

/// Makes and finds artifacts.
pub struct Artifacts {
    cache: Cache,
}

impl Artifacts {
    /// Of this repository.
    ///
    /// # Errors
    /// If the cache's directory cannot be made.
    pub fn new() -> Result<Self> {
        let directory = crate::paths::repository().join(".cache/lab");
        Ok(Self {
            cache: Cache::new(directory)?,
        })
    }

    /// Where they are kept; servers see it as `/lab/artifacts`.
    pub fn directory(&self) -> &Path {
        self.cache.directory()
    }

    /// Makes all that is missing.
    ///
    /// # Errors
    /// As each of the others.
    pub fn make_all(&self) -> Result<()> {
        for kernel in self.kernels()? {
            self.guest_initramfs(&kernel)?;
        }
        self.server_initramfs()?;
        self.server_root()?;
        self.guest_disk()?;
        self.work_disk()?;
        self.boot_disk()?;
        self.cloud_disk()?;
        Ok(())
    }

    /// Debian's unmodified kernels: 6.1 and 6.12, generic and cloud.
    ///
    /// # Errors
    /// If Debian's archive cannot be reached.
    pub fn kernels(&self) -> Result<Vec<Kernel>> {
        debian::kernels(&self.cache)
    }

    /// One of them; `version` is `"6.1"` or `"6.12"`.
    ///
    /// # Errors
    /// If there is none such, or as [`Artifacts::kernels`].
    pub fn kernel(&self, version: &str, flavour: Flavour) -> Result<Kernel> {
        self.kernels()?
            .into_iter()
            .find(|kernel| kernel.version == version && kernel.flavour == flavour)
            .with_context(|| format!("there is no kernel {version} {flavour}"))
    }

    /// A guest's initramfs for `kernel`: with `root=` on the command line it
    /// starts that disk, without it answers on the console by itself.
    ///
    /// # Errors
    /// If a module that guests need is missing.
    pub fn guest_initramfs(&self, kernel: &Kernel) -> Result<PathBuf> {
        initramfs::guest(&self.cache, kernel)
    }

    /// A raw ext4 disk of 64 MiB with busybox; answers on the console.
    ///
    /// # Errors
    /// If `mkfs.ext4` fails.
    pub fn guest_disk(&self) -> Result<PathBuf> {
        disks::guest(&self.cache)
    }

    /// A raw ext4 disk with Debian 12, fio, stress-ng, an SSH and an HTTP server; answers on the
    /// console.
    ///
    /// # Errors
    /// If Debian's archive cannot be reached, or a tool fails.
    pub fn work_disk(&self) -> Result<PathBuf> {
        disks::work(&self.cache)
    }

    /// A qcow2 disk with Debian 12, systemd and GRUB for BIOS: an ordinary
    /// disk image that boots by itself, takes an address by DHCP, serves a page
    /// by nginx and answers on the serial console.
    ///
    /// # Errors
    /// If Debian's archive cannot be reached, or a tool fails.
    pub fn boot_disk(&self) -> Result<PathBuf> {
        disks::boot(&self.cache)
    }

    /// The same with cloud-init, as an image for clouds has it.
    ///
    /// # Errors
    /// As [`Artifacts::boot_disk`].
    pub fn cloud_disk(&self) -> Result<PathBuf> {
        disks::cloud(&self.cache)
    }

    /// The kernel that servers run: 6.1 generic.
    pub(crate) fn server_kernel(&self) -> Result<Kernel> {
        self.kernel("6.1", Flavour::Generic)
    }

    pub(crate) fn server_initramfs(&self) -> Result<PathBuf> {
        initramfs::server(&self.cache, &self.server_kernel()?)
    }

    pub(crate) fn server_root(&self) -> Result<PathBuf> {
        server_root::make(&self.cache, &self.server_kernel()?)
    }
}
