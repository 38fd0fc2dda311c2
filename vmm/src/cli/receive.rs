//! `pindah-vmm receive`: builds a machine that waits for its guest.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use pindah_vmm::memory::userfault::Userfault;
use pindah_vmm::migration::destination::{Incoming, Postcopier};
use pindah_vmm::migration::tls::Identity;
use pindah_vmm::migration::worker::Job;
use pindah_vmm::vm::machine::ExitReason;
use pindah_vmm::vm::termination::block_signals;

use super::guest::MachineArguments;
use super::protection::ProtectionArguments;
use super::run::{self, ProcessArguments};

/// Arguments of `receive`.
#[derive(Debug, Args)]
pub struct ReceiveArguments {
    /// Where `pindah-vmm send` finds this machine.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: String,
    #[command(flatten)]
    protection: ProtectionArguments,
    /// End when no guest has begun to come by then, in seconds.
    #[arg(long, default_value_t = 60, value_name = "S")]
    timeout_s: u64,
    /// As at its source but for paths and taps.
    #[command(flatten)]
    machine: MachineArguments,
    #[command(flatten)]
    process: ProcessArguments,
}

/// Waits for a guest and runs it until it ends.
pub fn receive(arguments: ReceiveArguments) -> anyhow::Result<ExitReason> {
    let config = arguments.machine.load()?;
    let identity = match arguments.protection.open()? {
        Some(keys) => Identity::Tls(keys.read()?),
        None => Identity::Plain,
    };
    let listener = TcpListener::bind(&arguments.listen)
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    let address = listener.local_addr().context("the listening socket")?;
    // Whoever wants hybrid mode hears why if there is none.
    let userfault = Userfault::open();
    let prepared = run::prepare(&config, &arguments.process)?;
    block_signals().context("cannot block signals")?;
    let postcopier = Postcopier::spawn(userfault).context("cannot start the post-copy thread")?;
    // Its disks are its source's until the guest is here, and so are their locks.
    let built = run::build(&config, prepared)?;
    let job = Job::Receive(Incoming {
        listener,
        identity,
        timeout: Duration::from_secs(arguments.timeout_s),
        postcopier: Some(postcopier),
    });
    built.vm.silence().context("cannot silence the network")?;
    say_where(&address)?;
    built.migrator.start(job)?;
    Ok(run::wait(built))
}

/// Whoever starts the source needs it, and may have left the port to the host.
fn say_where(address: &SocketAddr) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "listening on {address}").context("standard output")
}
