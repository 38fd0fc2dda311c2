//! `pindah install …`: what concerns the installer, without a node.

use std::path::PathBuf;

use clap::Subcommand;
use pindah_installer::answers::{Answers, ZONES};

/// Prepare the installation of servers.
#[derive(Debug, Subcommand)]
pub(super) enum InstallCommand {
    /// Say what is wrong in an answer file, with line and column.
    Check {
        /// The file, as `image/installer/answers.toml` describes it.
        file: PathBuf,
    },
}

impl InstallCommand {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let Self::Check { file } = self;
        Answers::load(file, ZONES.as_ref())?;
        println!("{} is good", file.display());
        Ok(())
    }
}
