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
use pindah_vmm::migration::source::EncodingThread;
use pindah_vmm::migration::worker::Migrator;
use pindah_vmm::sandbox::{self, Landlock, SeccompMode, ThreadKind};
use pindah_vmm::startup;
use pindah_vmm::vm::Vm;
use pindah_vmm::vm::machine::ExitReason;
use pindah_vmm::vm::resources::Resources;
use pindah_vmm::vm::termination::block_signals;
use pindah_vmm_api::User;

use super::end_file::EndFile;
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
    /// Run as this user and group once everything is open, as in 990:990: what the guest has then
    /// broken out to owns nothing. Only root can change its user.
    #[arg(long, value_name = "UID:GID")]
    user: Option<User>,
    /// Write to this file, when the machine has been switched off, the event that tells by whom;
    /// it is emptied at the start and stays empty if the guest ends in any other way.
    #[arg(long, value_name = "FILE")]
    end_file: Option<PathBuf>,
}

/// A process with everything open that has a path.
pub struct Prepared {
    resources: Resources,
    listener: Option<UnixListener>,
    end_file: Option<EndFile>,
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
    end_file: Option<EndFile>,
}

/// Runs a guest until it ends.
pub fn run(arguments: RunArguments) -> anyhow::Result<ExitReason> {
    let config = arguments.machine.load()?;
    let prepared = prepare(&config, &arguments.process)?;
    let built = build(&config, prepared)?;
    built.vm.own()?;
    built.vm.boot()?;
    Ok(finish(built))
}

/// Opens all that has a path, and closes the sandbox.
pub fn prepare(config: &Config, process: &ProcessArguments) -> anyhow::Result<Prepared> {
    let listener = process.api.as_deref().map(socket::listen).transpose()?;
    let end_file = process.end_file.as_deref().map(EndFile::create);
    let end_file = end_file.transpose()?;
    let resources = Resources::open(config)?;
    let priority = Priority::of_host();
    let report = sandbox::restrict(process.seccomp, process.user, terminal::restore)?;
    if report.landlock == Landlock::Missing {
        tracing::warn!("{report}");
    } else {
        tracing::info!("{report}");
    }
    Ok(Prepared {
        resources,
        listener,
        end_file,
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
    let encoding = EncodingThread::spawn().context("cannot start the thread that encodes")?;
    let migrator = Migrator::spawn(move |job, progress| {
        jobs::perform(&machine, job, &encoding, priority, progress);
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
        end_file: prepared.end_file,
    })
}

/// Runs the machine; who listens hears how it ended.
pub fn finish(built: Built) -> ExitReason {
    startup::give_back_code();
    let reason = built.vm.run();
    end(built, reason)
}

/// Waits for the end of a machine that a migration starts, or does not.
pub fn wait(built: Built) -> ExitReason {
    let reason = built.vm.serve_requests();
    end(built, reason)
}

fn end(built: Built, reason: ExitReason) -> ExitReason {
    built.migrator.end_arrival();
    if let Some(server) = built.server {
        server.stop();
    }
    if let (Some(end_file), ExitReason::ShutDown(by)) = (built.end_file, &reason) {
        end_file.write(*by);
    }
    reason
}
