//! A lab: a switch, and what its servers are made of.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::artifacts::Artifacts;
use crate::bare::{BareServerBuilder, Firmware};
use crate::dhcp::Dhcp;
use crate::nas::Nas;
use crate::network::Network;
use crate::paths;
use crate::san::San;
use crate::server::{Server, ServerBuilder};

/// Products of ours that every server has beside the agent, if they are built.
const PRODUCTS: [&str; 4] = ["pindah-vmm", "pindah-probe", "pindahd", "pindah"];

/// A place to start servers in. Servers borrow nothing from it but its switch,
/// which lives as long as one of them.
pub struct Lab {
    network: Network,
    artifacts: Artifacts,
    directory: PathBuf,
}

impl Lab {
    /// Makes the lab called `name`; its logs go to `target/lab/<name>/`.
    ///
    /// # Errors
    /// If the host has no network namespaces or taps, or the programs are not built.
    pub fn new(name: &str) -> Result<Self> {
        let directory = paths::fresh_log_directory(name)?;
        stage_programs(&directory.join("bin"))?;
        Ok(Self {
            network: Network::new()?,
            artifacts: Artifacts::new()?,
            directory,
        })
    }

    /// A server to be configured and started.
    pub fn server(&self, name: &str) -> ServerBuilder<'_> {
        ServerBuilder::new(self, name)
    }

    /// A bare server, to be given a medium.
    pub fn bare_server(&self, name: &str, firmware: Firmware) -> BareServerBuilder<'_> {
        BareServerBuilder::new(self, name, firmware)
    }

    /// A DHCP server on its switch, for bare servers: each gets the address of its port.
    ///
    /// # Errors
    /// If dnsmasq does not start.
    pub fn dhcp(&self) -> Result<Dhcp> {
        Dhcp::start(self, None)
    }

    /// The same with TFTP and HTTP servers that give what lies in `directory`, as `image/build`
    /// leaves it for machines that start by network.
    ///
    /// # Errors
    /// If dnsmasq or python3 does not start.
    pub fn network_boot(&self, directory: &Path) -> Result<Dhcp> {
        Dhcp::start(self, Some(directory))
    }

    /// The host itself as a server: without a machine, a root or a network card
    /// of its own, but quick where `/dev/kvm` can run Linux.
    ///
    /// # Errors
    /// If its agent cannot be started.
    pub fn host(&self) -> Result<Server> {
        crate::server::host::start(self)
    }

    /// A NAS on its switch; one a lab.
    ///
    /// # Errors
    /// If nfs-ganesha does not start.
    pub fn nas(&self) -> Result<Nas> {
        Nas::start(self)
    }

    /// A SAN on its switch; one a lab.
    ///
    /// # Errors
    /// If tgt does not start.
    pub fn san(&self) -> Result<San> {
        San::start(self)
    }

    /// The switch that its servers are on.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Kernels, disks and the like.
    pub fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// Where logs go.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Gives servers that start from now on another program, as `name` in their `PATH`.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn stage(&self, program: &Path, name: &str) -> Result<()> {
        stage(program, &self.programs(), name)
    }

    /// Our programs, as servers see them in `/lab/bin`.
    pub(crate) fn programs(&self) -> PathBuf {
        self.directory.join("bin")
    }
}

/// Copies, so that a rebuild meanwhile changes nothing in a running lab.
fn stage_programs(to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    stage(&paths::agent()?, to, paths::AGENT)?;
    for name in PRODUCTS {
        // The lab's own tests need none of them.
        if let Ok(from) = paths::product(name) {
            stage(&from, to, name)?;
        }
    }
    Ok(())
}

fn stage(from: &Path, to: &Path, name: &str) -> Result<()> {
    let copied = fs::copy(from, to.join(name));
    copied.with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}
