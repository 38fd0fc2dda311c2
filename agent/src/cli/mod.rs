//! `pindah`: a client of the REST API and nothing else. One file a noun.

mod balance;
mod cluster;
mod console;
mod download;
mod grant;
mod guest;
mod image;
mod install;
mod man;
mod network;
mod node;
mod output;
mod pool;
mod progress;
mod report;
mod selftest;
mod size;
mod task;
mod token;
mod top;
mod update;
mod upload;
mod user;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, Parser, Subcommand};

use crate::api::ErrorCode;
use crate::client::{Client, ClientError, Context};
use crate::config::STATE_DIRECTORY;
use crate::node::ADMIN_CONTEXT;
use output::Output;

/// Runs guests on Pindah's nodes.
#[derive(Debug, Parser)]
#[command(name = "pindah", version, arg_required_else_help = true)]
struct Arguments {
    /// Which node, and who we are: a file as pindahd writes it for root
    /// [default: admin.json in pindahd's state directory].
    #[arg(long, global = true, env = "PINDAH_CONTEXT", value_name = "FILE")]
    context: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// The node of a cluster that is to do it: that a new guest is to be on, whose images are
    /// meant.
    #[arg(long, global = true, value_name = "NODE")]
    node: Option<String>,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Create, run and look at guests.
    #[command(subcommand)]
    Guest(Box<guest::GuestCommand>),
    /// Images that disks are copied from, and kernels.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Prepare the installation of servers.
    #[command(subcommand)]
    Install(install::InstallCommand),
    /// Where images and disks are kept.
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Everything that lasts.
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Several nodes that act as one.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// What guests are connected to.
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// The machines.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Tokens for programs.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Users with passwords.
    #[command(subcommand)]
    User(user::UserCommand),
    /// What guests and nodes took over days, compared with another time, and advice from it.
    Report(report::ReportArguments),
    /// Watch what guests and nodes take.
    Top(top::TopArguments),
    /// Boot a small guest, move it to each node in turn, and say how long it stood.
    Selftest(selftest::SelftestArguments),
    /// Print completions for a shell.
    Completions {
        /// Which.
        shell: clap_complete::Shell,
    },
    /// Write a manual page for each command.
    Man {
        /// Where to.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

/// Parses the arguments, does what they say and returns the process's exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pindah: {error:#}");
            if let Some(hint) = hint(&error) {
                eprintln!("{hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    if let Noun::Completions { shell } = arguments.noun {
        let mut command = Arguments::command();
        clap_complete::generate(shell, &mut command, "pindah", &mut std::io::stdout());
        return Ok(());
    }
    if let Noun::Man { directory } = &arguments.noun {
        return man::write(Arguments::command(), directory);
    }
    if let Noun::Install(command) = &arguments.noun {
        return command.run();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    runtime.block_on(async {
        let path = arguments
            .context
            .unwrap_or_else(|| PathBuf::from(STATE_DIRECTORY).join(ADMIN_CONTEXT));
        let mut client = Client::new(Context::load(&path)?)?;
        if let Some(node) = &arguments.node {
            client = client.on_node(node)?;
        }
        let output = Output::new(arguments.json);
        match arguments.noun {
            Noun::Guest(command) => command.run(&client, output).await,
            Noun::Image(command) => command.run(&client, output).await,
            Noun::Pool(command) => command.run(&client, output).await,
            Noun::Task(command) => command.run(&client, output).await,
            Noun::Cluster(command) => command.run(&client, &path, output).await,
            Noun::Network(command) => command.run(&client, output).await,
            Noun::Node(command) => command.run(&client, output).await,
            Noun::Token(command) => command.run(&client, output).await,
            Noun::User(command) => command.run(&client, output).await,
            Noun::Report(arguments) => arguments.run(&client, output).await,
            Noun::Top(arguments) => arguments.run(&client, output).await,
            Noun::Selftest(arguments) => arguments.run(&client, output).await,
            Noun::Completions { .. } | Noun::Install(_) | Noun::Man { .. } => Ok(()),
        }
    })
}

/// What to do next.
fn hint(error: &anyhow::Error) -> Option<&'static str> {
    match error.downcast_ref::<ClientError>()? {
        ClientError::Context { source, .. } => Some(match source.kind() {
            std::io::ErrorKind::PermissionDenied => "Become root, or name your own --context.",
            _ => "Start pindahd on this machine, or name a --context.",
        }),
        ClientError::Connect { .. } => Some("Is pindahd running there? Is the address right?"),
        error => match error.code()? {
            ErrorCode::Unauthorized => Some("Get a new token from an admin: pindah token create."),
            ErrorCode::Forbidden => Some("Ask an admin for a token with that role."),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
