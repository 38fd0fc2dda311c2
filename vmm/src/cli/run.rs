//! `pindah-vmm run`: open everything, build the machine, run it.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use pindah_vmm::api::Server;
use pindah_vmm::config::Config;
use pindah_vmm::vm::Vm;
use pindah_vmm::vm::machine::ExitReason;
use pindah_vmm::vm::resources::Resources;
use pindah_vmm::vm::termination::block_signals;

use super::guest::GuestArguments;
use super::socket;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// Configuration of the guest, TOML or JSON; takes the place of the guest's flags.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    guest: GuestArguments,
    #[command(flatten)]
    process: ProcessArguments,
}

/// What is the process's and not the guest's.
#[derive(Debug, Args)]
pub struct ProcessArguments {
    /// Serve the API on this Unix socket.
    #[arg(long, value_name = "SOCKET")]
    api: Option<PathBuf>,
    /// What becomes of system calls that the VMM has no need of: on ends it, log lets them pass
    /// and has the kernel's audit log name them, off allows all.
    #[arg(long, default_value_t, value_name = "MODE")]
    seccomp: Seccomp,
}

/// `--seccomp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Seccomp {
    On,
    Log,
    Off,
}

impl Default for Seccomp {
    /// On in release builds.
    fn default() -> Self {
        if cfg!(debug_assertions) {
            Self::Off
        } else {
            Self::On
        }
    }
}

impl std::fmt::Display for Seccomp {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::On => "on",
            Self::Log => "log",
            Self::Off => "off",
        })
    }
}

/// A process with everything open that has a path.
pub struct Prepared {
    resources: Resources,
    listener: Option<UnixListener>,
}

/// Runs a guest until it ends.
pub fn run(arguments: RunArguments) -> anyhow::Result<ExitReason> {
    let config = match &arguments.config {
        Some(path) => Config::load(path)?,
        None => Config::try_from(arguments.guest.into_config())?,
    };
    let prepared = prepare(&config, &arguments.process)?;
    let (vm, server) = build(&config, prepared)?;
    vm.lock_disks()?;
    vm.boot()?;
    Ok(finish(&vm, server))
}

/// Opens all that has a path.
pub fn prepare(config: &Config, process: &ProcessArguments) -> anyhow::Result<Prepared> {
    if process.seccomp != Seccomp::Off {
        tracing::warn!("--seccomp {}: this build has no sandbox", process.seccomp);
    }
    let listener = process.api.as_deref().map(socket::listen).transpose()?;
    Ok(Prepared {
        resources: Resources::open(config)?,
        listener,
    })
}

/// Builds the machine and starts the API: all threads are there afterwards.
pub fn build(config: &Config, prepared: Prepared) -> anyhow::Result<(Arc<Vm>, Option<Server>)> {
    block_signals().context("cannot block signals")?;
    let vm = Vm::build(config, prepared.resources)?;
    let server = prepared
        .listener
        .map(|listener| Server::spawn(listener, vm.clone()))
        .transpose()
        .context("cannot start the API")?;
    Ok((vm, server))
}

/// Runs the machine; who listens hears how it ended.
pub fn finish(vm: &Vm, server: Option<Server>) -> ExitReason {
    let reason = vm.run();
    if let Some(server) = server {
        server.stop();
    }
    reason
}
