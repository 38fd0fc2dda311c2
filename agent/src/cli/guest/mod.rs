//! `pindah guest …`.

mod clone;
mod cpu;
mod create;
mod disk;
mod disk_limits;
mod edit;
mod export;
mod interface;
mod memory;
mod migrate;
mod show;

use std::io::{BufRead, IsTerminal, Write};

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

pub(super) use create::choice;

use super::console;
use super::output::Output;
use super::progress::begin;
use crate::api::{Data, GuestView};
use crate::client::Client;
use crate::guests::StopRequest;

/// Create, run and look at guests.
#[derive(Debug, Subcommand)]
pub(super) enum GuestCommand {
    /// Create a guest.
    Create(Box<create::CreateArguments>),
    /// Copy a guest that is off, or a template.
    Clone(clone::CloneArguments),
    /// Make a guest that is off a template, which does not start and which others are copied from.
    Template(TemplateArguments),
    /// Download a disk of a guest that is off.
    Export(export::ExportArguments),
    /// List all guests.
    List,
    /// Show a guest.
    Show(Name),
    /// Change a guest.
    Edit(edit::EditArguments),
    /// Ask a guest to keep to a part of its RAM, and to give the rest back.
    Memory(memory::MemoryArguments),
    /// A guest's network interfaces.
    #[command(subcommand)]
    Interface(interface::InterfaceCommand),
    /// Start a guest.
    Start(Begin),
    /// Ask a guest to shut down, and switch it off after a deadline.
    Stop(StopArguments),
    /// Move a guest to another node while it runs.
    Migrate(migrate::MigrateArguments),
    /// Press a guest's reset button.
    Reset(Name),
    /// Let a guest stand still.
    Pause(Name),
    /// Let a paused guest go on.
    Resume(Name),
    /// Use a guest's serial port; Ctrl-] leaves it.
    Console(Name),
    /// Print what a guest wrote last on its serial port.
    Log(LogArguments),
    /// A guest's disks.
    #[command(subcommand)]
    Disk(disk::DiskCommand),
    /// Delete a guest and its disks.
    Delete(DeleteArguments),
}

/// Which guest.
#[derive(Debug, Args)]
pub(super) struct Name {
    /// Name or UUID.
    guest: String,
}

/// Which guest, and whether to wait.
#[derive(Debug, Args)]
pub(super) struct Begin {
    /// Name or UUID.
    guest: String,
    /// Do not wait; print the task.
    #[arg(long)]
    no_wait: bool,
}

/// How to stop.
#[derive(Debug, Args)]
pub(super) struct StopArguments {
    #[command(flatten)]
    begin: Begin,
    /// Switch it off at once, like pulling its plug.
    #[arg(long)]
    force: bool,
    /// How long it has for its shutdown, in seconds [default: as the node says].
    #[arg(long, value_name = "SECONDS", conflicts_with = "force")]
    deadline: Option<u64>,
}

/// How to delete.
#[derive(Debug, Args)]
pub(super) struct DeleteArguments {
    #[command(flatten)]
    begin: Begin,
    /// Switch it off first, if it runs.
    #[arg(long)]
    force: bool,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

/// Which guest, and whether it is to be a template.
#[derive(Debug, Args)]
pub(super) struct TemplateArguments {
    /// Name or UUID.
    guest: String,
    /// Make a template a guest again.
    #[arg(long)]
    undo: bool,
}

/// How much of the log.
#[derive(Debug, Args)]
pub(super) struct LogArguments {
    /// Name or UUID.
    guest: String,
    /// The last so many bytes.
    #[arg(long, default_value_t = 65536)]
    bytes: u64,
}

impl GuestCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::Create(arguments) => arguments.run(client, output).await,
            Self::Clone(arguments) => arguments.run(client, output).await,
            Self::Template(arguments) => arguments.run(client, output).await,
            Self::Export(arguments) => arguments.run(client, output).await,
            Self::List => show::list(client, output).await,
            Self::Show(name) => show::show(client, output, &name.guest).await,
            Self::Edit(arguments) => arguments.run(client, output).await,
            Self::Memory(arguments) => arguments.run(client, output).await,
            Self::Interface(command) => command.run(client, output).await,
            Self::Start(arguments) => {
                let path = path(&arguments.guest, "/start")?;
                let request = client.request(Method::POST, &path);
                begin(client, request, !arguments.no_wait, output).await
            }
            Self::Stop(arguments) => arguments.run(client, output).await,
            Self::Migrate(arguments) => arguments.run(client, output).await,
            Self::Reset(name) => command(client, output, &name.guest, "/reset").await,
            Self::Pause(name) => command(client, output, &name.guest, "/pause").await,
            Self::Resume(name) => command(client, output, &name.guest, "/resume").await,
            Self::Console(name) => console::run(client, segment(&name.guest)?).await,
            Self::Log(arguments) => {
                let path = path(&arguments.guest, "/log")?;
                let request = client.request(Method::GET, &path);
                let request = request.query(&[("bytes", arguments.bytes)]);
                let bytes = client.send(request).await?.bytes().await?;
                std::io::stdout().write_all(&bytes)?;
                Ok(())
            }
            Self::Disk(command) => command.run(client, output).await,
            Self::Delete(arguments) => arguments.run(client, output).await,
        }
    }
}

/// What stands in a path as it is.
pub(super) fn segment(text: &str) -> anyhow::Result<&str> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
    anyhow::ensure!(
        !text.is_empty() && text.chars().all(valid),
        "{text:?} cannot be a name: letters, digits and hyphens"
    );
    Ok(text)
}

fn path(guest: &str, rest: &str) -> anyhow::Result<String> {
    Ok(format!("/guests/{}{rest}", segment(guest)?))
}

async fn command(client: &Client, output: Output, guest: &str, rest: &str) -> anyhow::Result<()> {
    let guest: GuestView = client.post(&path(guest, rest)?, &json!({})).await?;
    output.show(&guest, |guest| format!("{} is {}", guest.name, guest.state))
}

impl TemplateArguments {
    async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let method = if self.undo {
            Method::DELETE
        } else {
            Method::PUT
        };
        let request = client.request(method, &path(&self.guest, "/template")?);
        let guest: Data<GuestView> = client.send(request).await?.json().await?;
        output.show(&guest.data, |guest| {
            let what = if guest.template { "template" } else { "guest" };
            format!("{} is a {what}", guest.name)
        })
    }
}

impl StopArguments {
    async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let body = StopRequest {
            force: self.force,
            deadline_s: self.deadline,
        };
        let path = path(&self.begin.guest, "/stop")?;
        let request = client.request(Method::POST, &path).json(&body);
        begin(client, request, !self.begin.no_wait, output).await
    }
}

impl DeleteArguments {
    async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        if !self.yes && !confirmed(&self.begin.guest)? {
            anyhow::bail!("nothing was deleted");
        }
        let path = path(&self.begin.guest, "")?;
        let request = client.request(Method::DELETE, &path);
        let request = request.query(&[("force", self.force)]);
        begin(client, request, !self.begin.no_wait, output).await
    }
}

fn confirmed(guest: &str) -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        anyhow::bail!("there is no terminal to ask on; say --yes to delete {guest}");
    }
    eprint!("Delete guest {guest} and its disks for good? Type its name: ");
    std::io::stderr().flush()?;
    let mut line = String::new();
    stdin.lock().read_line(&mut line)?;
    Ok(line.trim() == guest)
}
