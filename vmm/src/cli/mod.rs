//! The command line: a thin layer that opens what has a path, and the small clients of the API.

mod check;
mod control;
mod end_file;
mod guest;
mod keys;
mod options;
mod protection;
mod receive;
mod run;
mod send;
mod snapshot;
mod socket;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pindah_vmm::config::ConfigError;
use pindah_vmm::vm::machine::ExitReason;
use tracing_subscriber::EnvFilter;

/// The command line or the configuration is wrong. clap ends with the same code.
const EXIT_CONFIGURATION: u8 = 2;

const EXIT_CODES: &str = "\
Exit codes:
  0  the guest shut down, or the command did what it was to do
  1  host error: something that is needed is not there, in use, or failed
  2  the command line or the configuration is wrong
  3  the guest asked for a reset and on_reset is \"exit\"
  4  the guest crashed; its registers are in the log
  5  the guest has moved to another machine

Logs go to standard error. RUST_LOG takes the place of --log-level if set.";

/// A small VMM straight on KVM: one process a guest.
#[derive(Debug, Parser)]
#[command(name = "pindah-vmm", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Arguments {
    /// How much to log: error, warn, info, debug or trace.
    #[arg(long, global = true, default_value = "warn", value_name = "LEVEL")]
    log_level: tracing::level_filters::LevelFilter,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a guest from a configuration file, or from flags.
    Run(Box<run::RunArguments>),
    /// Say what this host offers, what is missing and what that costs.
    Check(check::CheckArguments),
    /// Write a running guest to a new directory.
    Snapshot(snapshot::SnapshotArguments),
    /// Run a guest from a snapshot.
    Restore(snapshot::RestoreArguments),
    /// Move a running guest to another machine, where `receive` waits for it.
    Send(send::SendArguments),
    /// Wait for a guest from another machine, and run it.
    Receive(Box<receive::ReceiveArguments>),
    /// Make certificates for `send` and `receive`.
    Keys(keys::KeysArguments),
    /// Ask something of a running guest.
    #[command(alias = "control")]
    Ctl(control::ControlArguments),
}

/// Parses the arguments, does what they say and returns the process's exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.log_level);
    let outcome = match arguments.command {
        Command::Run(arguments) => run::run(*arguments).map(|reason| reason.code()),
        Command::Restore(arguments) => snapshot::restore(&arguments).map(|reason| reason.code()),
        Command::Check(arguments) => check::check(&arguments),
        Command::Snapshot(arguments) => snapshot::snapshot(&arguments).map(|()| 0),
        Command::Send(arguments) => send::send(&arguments).map(|()| 0),
        Command::Receive(arguments) => receive::receive(*arguments).map(|reason| reason.code()),
        Command::Keys(arguments) => keys::keys(&arguments).map(|()| 0),
        Command::Ctl(arguments) => control::control(arguments).map(|()| 0),
    };
    ExitCode::from(outcome.unwrap_or_else(|error| report(&error)))
}

/// One line with all causes, and the exit code that goes with it.
fn report(error: &anyhow::Error) -> u8 {
    eprintln!("pindah-vmm: {error:#}");
    let configuration = error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || cause.is::<pindah_vmm::config::Invalid>()
            || cause.is::<options::OptionError>()
    });
    if configuration {
        EXIT_CONFIGURATION
    } else {
        ExitReason::HostError.code()
    }
}

fn start_log(level: tracing::level_filters::LevelFilter) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::default().add_directive(level.into()));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use pindah_vmm_api::Initiator;

    use super::*;

    #[test]
    fn command_line_is_consistent_and_documents_every_exit_code() {
        Arguments::command().debug_assert();
        for reason in [
            ExitReason::ShutDown(Initiator::Guest),
            ExitReason::HostError,
            ExitReason::ResetRequested,
            ExitReason::GuestCrashed,
            ExitReason::Migrated,
        ] {
            assert!(EXIT_CODES.contains(&format!("\n  {}  ", reason.code())));
        }
        assert!(EXIT_CODES.contains(&format!("\n  {EXIT_CONFIGURATION}  ")));
    }
}
