//! `pindah-vmm`.

mod migration;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Bench, Machine, Subject};
use crate::migration::Migrates;
use crate::network::{GUEST_MAC, TAP};

/// One build of it.
pub struct Pindah {
    name: &'static str,
    program: PathBuf,
    way: Way,
}

/// How it moves guests. Makes no difference to what does not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// All defaults: mutual TLS 1.3, precopy.
    Default,
    /// Without encryption.
    Plaintext,
    /// With pages left behind where the guest writes too fast.
    Hybrid,
}

impl Pindah {
    /// The build at `program`.
    pub fn new(name: &'static str, program: &Path, way: Way) -> Self {
        Self {
            name,
            program: program.to_owned(),
            way,
        }
    }
}

impl Subject for Pindah {
    fn name(&self) -> &str {
        self.name
    }

    fn version(&self) -> Result<String> {
        let version = Command::new(&self.program)
            .arg("--version")
            .output()
            .with_context(|| format!("starting {}", self.program.display()))?;
        if !version.status.success() {
            bail!("{} --version fails", self.program.display());
        }
        let text = String::from_utf8_lossy(&version.stdout);
        Ok(text.trim().to_owned())
    }

    fn takes_part(&self, bench: &Bench) -> bool {
        match bench.name {
            crate::bench::MIGRATE => true,
            // Of other builds there is the VMM only.
            crate::bench::AGENT => self.name == super::PINDAH && self.way == Way::Default,
            _ => self.way == Way::Default,
        }
    }

    fn migrates(&self) -> Option<&dyn Migrates> {
        Some(self)
    }

    fn command(&self, machine: &Machine, _tuning: &str, directory: &Path) -> Result<Command> {
        let path = directory.join(format!("{}.json", self.name));
        write_configuration(machine, &path)?;
        let mut command = Command::new(&self.program);
        command.args(["run", "--config"]).arg(path);
        Ok(command)
    }
}

fn write_configuration(machine: &Machine, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(&configuration(machine))?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Names only what differs from the defaults, so that older builds understand it.
fn configuration(machine: &Machine) -> Value {
    let mut configuration = json!({
        "name": "bench",
        "cpus": { "count": machine.cpus },
        "memory": { "size_mib": machine.memory_mib },
        "boot": { "kernel": machine.kernel, "cmdline": machine.command_line },
        "serial": "stdio",
        // The peers have none either.
        "rng": false,
    });
    if let Some(disk) = &machine.disk {
        let cache = if disk.direct { "direct" } else { "buffered" };
        configuration["disks"] = json!([{ "path": disk.path, "format": "raw", "cache": cache }]);
    }
    if machine.network.is_some() {
        configuration["nets"] = json!([{ "tap": TAP, "mac": GUEST_MAC }]);
    }
    configuration
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use pindah_vmm_api::{DiskFormat, SerialConfig, VmConfig};

    use crate::disk::DiskImage;

    #[test]
    fn configuration_is_what_the_vmm_takes() {
        let machine = Machine {
            memory_mib: 512,
            cpus: 2,
            kernel: "/probe".into(),
            command_line: "blk=1".to_owned(),
            disk: Some(Arc::new(DiskImage::new().unwrap())),
            network: None,
        };
        let config: VmConfig = serde_json::from_value(configuration(&machine)).unwrap();
        assert_eq!(config.memory.size_mib, 512);
        assert_eq!(config.cpus.count, 2);
        assert_eq!(config.boot.cmdline, "blk=1");
        assert_eq!(config.serial, SerialConfig::Stdio);
        assert_eq!(config.disks[0].format, DiskFormat::Raw);
        assert!(!config.rng);
    }
}
