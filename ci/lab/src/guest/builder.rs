//! What a guest is made of, and its start.

use std::path::Path;

use anyhow::Result;
use pindah_vmm_api::{
    BootConfig, CpusConfig, DiskCache, DiskConfig, DiskFormat, DiskLimits, ErrorPolicy,
    MemoryBacking, MemoryConfig, NetConfig, ResetPolicy, SerialConfig, VhostMode, VmConfig,
};

use super::{ACTION_LIMIT, Guest};
use crate::artifacts::{Artifacts, Kernel};
use crate::server::Server;

/// A guest before its start: 1 vCPU, 256 MiB, no disk, no network.
#[must_use = "a guest runs after start()"]
pub struct GuestBuilder<'a> {
    server: &'a Server,
    config: VmConfig,
}

impl<'a> GuestBuilder<'a> {
    /// A guest called `name` in `server`.
    pub fn new(server: &'a Server, name: &str) -> Self {
        let config = VmConfig {
            name: name.to_string(),
            cpus: CpusConfig::default(),
            memory: MemoryConfig {
                size_mib: 256,
                backing: MemoryBacking::default(),
                huge_page_kib: None,
                prefault: false,
                mergeable: false,
            },
            boot: BootConfig::default(),
            disks: Vec::new(),
            nets: Vec::new(),
            serial: SerialConfig::Stdio,
            console: None,
            rng: true,
            balloon: None,
            on_reset: ResetPolicy::default(),
        };
        Self { server, config }
    }

    /// Boots this kernel with the initramfs made for it.
    ///
    /// # Errors
    /// If the initramfs cannot be made.
    pub fn kernel(mut self, artifacts: &Artifacts, kernel: &Kernel) -> Result<Self> {
        let initramfs = artifacts.guest_initramfs(kernel)?;
        self.config.boot.kernel = Some(self.server.artifact(&kernel.image));
        self.config.boot.initrd = Some(self.server.artifact(&initramfs));
        self.config.boot.cmdline = "console=ttyS0 quiet panic=-1".to_string();
        Ok(self)
    }

    /// Adds a word to the kernel's command line.
    pub fn cmdline(mut self, word: &str) -> Self {
        self.config.boot.cmdline.extend([" ", word]);
        self
    }

    /// Number of vCPUs.
    pub fn cpus(mut self, count: u8) -> Self {
        self.config.cpus.count = count;
        self
    }

    /// Memory.
    pub fn memory_mib(mut self, size_mib: u64) -> Self {
        self.config.memory.size_mib = size_mib;
        self
    }

    /// Adds a disk: `disk0`, `disk1`, …
    pub fn disk(mut self, path: impl AsRef<Path>, format: DiskFormat) -> Self {
        self.config.disks.push(DiskConfig {
            id: None,
            path: path.as_ref().to_path_buf(),
            format,
            read_only: false,
            cache: DiskCache::default(),
            serial: None,
            queues: 1,
            queue_size: 256,
            on_error: ErrorPolicy::default(),
            limits: DiskLimits::default(),
        });
        self
    }

    /// Adds a network card on the tap `tap`.
    pub fn net(mut self, tap: &str) -> Self {
        self.config.nets.push(NetConfig {
            id: None,
            tap: tap.to_string(),
            mac: None,
            queue_pairs: 1,
            queue_size: 256,
            vhost: VhostMode::default(),
        });
        self
    }

    /// Changes what has no method of its own here.
    pub fn configure(mut self, change: impl FnOnce(&mut VmConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Starts the VMM; the guest may not listen yet ([`Guest::wait_ready`]).
    ///
    /// # Errors
    /// If the server is gone.
    pub fn start(self) -> Result<Guest<'a>> {
        self.spawn(&["run"])
    }

    /// Starts a VMM that waits at `address` (`ADDRESS:PORT`) for the guest, which moves there from
    /// another server ([`Guest::send`]); `keys` is a directory of `pindah-vmm keys` in the server.
    ///
    /// # Errors
    /// If the server is gone, or the VMM does not listen.
    pub fn receive(self, address: &str, keys: &str) -> Result<Guest<'a>> {
        let mut guest = self.spawn(&["receive", "--listen", address, "--tls", keys])?;
        guest
            .console()
            .wait_for_text("listening on ", ACTION_LIMIT)?;
        Ok(guest)
    }

    fn spawn(self, command: &[&str]) -> Result<Guest<'a>> {
        let name = self.config.name.clone();
        let path = format!("/run/{name}.json");
        self.server
            .put(&path, &serde_json::to_vec_pretty(&self.config)?)?;
        Guest::spawn(
            self.server,
            &name,
            &[command, &["--config", &path]].concat(),
        )
    }
}
