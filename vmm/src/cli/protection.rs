//! `--tls` or `--plaintext`: nobody sends a guest's memory in the clear by leaving something out.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use pindah_vmm::migration::request::Keys;
use pindah_vmm_api::Encryption;

/// How a migration's connections are protected.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct ProtectionArguments {
    /// Encrypt, and prove who both sides are, with ca.pem, cert.pem and key.pem of this directory;
    /// `pindah-vmm keys` makes them.
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// Do not encrypt: whoever is on the way reads the guest's memory, and may change it.
    #[arg(long)]
    plaintext: bool,
}

impl ProtectionArguments {
    /// The wire form.
    pub fn encryption(&self) -> Encryption {
        match self.tls {
            Some(_) => Encryption::Tls,
            None => Encryption::Plaintext,
        }
    }

    /// The files of keys, open.
    pub fn open(&self) -> anyhow::Result<Option<Keys>> {
        let Some(directory) = &self.tls else {
            return Ok(None);
        };
        Ok(Some(Keys([
            open(directory, "ca.pem")?,
            open(directory, "cert.pem")?,
            open(directory, "key.pem")?,
        ])))
    }
}

fn open(directory: &Path, name: &str) -> anyhow::Result<File> {
    let path = directory.join(name);
    File::open(&path).with_context(|| format!("cannot open {}", path.display()))
}
