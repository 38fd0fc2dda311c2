//! `pindah-vmm run`: open everything, build the machine, run it.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use pindah_vmm::api::Server;
use pindah_vmm::config::Config;
use pindah_vmm::devices::chardev::terminal;
use pindah_vmm::migration::jobs;
use pindah_vmm::migration::priority::Priority;
use pindah_vmm::migration::worker::Migrator;
use pindah_vmm::sandbox::{self, Landlock, SeccompMode, ThreadKind};
use pindah_vmm::startup;
use pindah_vmm::vm::Vm;
use pindah_vmm::vm::machine::ExitReason;
use pindah_vmm::vm::resources::Resources;
use pindah_vmm::vm::termination::block_signals;

use super::guest::MachineArguments;
use super::socket;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    #[command(flatten)]
    machine: MachineArguments,
    #[command(flatten)]
    process: ProcessArguments,
}

/// What is the process's and not the guest's.
#[derive(Debug, Args)]
pub struct ProcessArguments {
    /// Serve the API on this Unix socket.
    #[arg(long, value_name = "SOCKET")]
    api: Option<PathBuf>,
    /// What becomes of system calls that a thread has no need of: on ends the VMM, log lets them
    /// pass and has the kernel's audit log name them, off allows all.
    #[arg(long, default_value_t, value_name = "MODE")]
    seccomp: SeccompMode,
}

/// A process with everything open that has a path.
pub struct Prepared {
    resources: Resources,
    listener: Option<UnixListener>,
    priority: Priority,
}

/// A machine with all its threads.
pub struct Built {
    /// The machine.
    pub vm: Arc<Vm>,
    /// Its API, if it has one.
    pub server: Option<Server>,
    /// What moves it.
    pub migrator: Arc<Migrator>,
}

/// Runs a guest until it ends.
pub fn run(arguments: RunArguments) -> anyhow::Result<ExitReason> {
    let config = arguments.machine.load()?;
    let prepared = prepare(&config, &arguments.process)?;
    let Built { vm, server, .. } = build(&config, prepared)?;
    vm.own()?;
    vm.boot()?;
    Ok(finish(&vm, server))
}

/// Opens all that has a path, and closes the sandbox.
pub fn prepare(config: &Config, process: &ProcessArguments) -> anyhow::Result<Prepared> {
    let listener = process.api.as_deref().map(socket::listen).transpose()?;
    let resources = Resources::open(config)?;
    let priority = Priority::of_host();
    let report = sandbox::restrict(process.seccomp, terminal::restore)?;
    if report.landlock == Landlock::Missing {
        tracing::warn!("{report}");
    } else {
        tracing::info!("{report}");
    }
    Ok(Prepared {
        resources,
        listener,
        priority,
    })
}

/// Builds the machine and starts the API: all threads are there afterwards, and this one is under
/// its filter before anything of the guest's is looked at.
pub fn build(config: &Config, prepared: Prepared) -> anyhow::Result<Built> {
    block_signals().context("cannot block signals")?;
    let vm = Vm::build(config, prepared.resources)?;
    let machine = Arc::clone(&vm);
    let priority = prepared.priority;
    let migrator = Migrator::spawn(move |job, progress| {
        jobs::perform(&machine, job, priority, progress);
    })
    .context("cannot start the thread that migrates")?;
    let server = prepared
        .listener
        .map(|listener| Server::spawn(listener, vm.clone(), Arc::clone(&migrator)))
        .transpose()
        .context("cannot start the API")?;
    sandbox::enter(ThreadKind::Control)?;
    Ok(Built {
        vm,
        server,
        migrator,
    })
}

/// Runs the machine; who listens hears how it ended.
pub fn finish(vm: &Vm, server: Option<Server>) -> ExitReason {
    startup::give_back_code();
    end(server, vm.run())
}

/// Waits for the end of a machine that a migration starts, or does not.
pub fn wait(vm: &Vm, server: Option<Server>) -> ExitReason {
    end(server, vm.serve_requests())
}

fn end(server: Option<Server>, reason: ExitReason) -> ExitReason {
    if let Some(server) = server {
        server.stop();
    }
    reason
}
