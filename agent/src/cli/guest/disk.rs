//! `pindah guest disk …`.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Serialize;

use super::{Begin, disk_limits, path, segment};
use crate::api::{DiskGrowth, DiskMove};
use crate::cli::output::Output;
use crate::cli::progress::begin;
use crate::cli::size::parse_mib;
use crate::client::Client;
use crate::domain::PoolName;

/// Disks of guests.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum DiskCommand {
    /// Move a disk of a guest that is off to another pool.
    Move(MoveArguments),
    /// Make a disk larger; a guest that runs sees that at once. Its file systems it must grow itself.
    Resize(ResizeArguments),
    /// Limit how much of its storage a disk may take, reads and writes together; a guest that runs
    /// keeps to that at once.
    Limit(disk_limits::LimitArguments),
}

/// Which disk, and how large.
#[derive(Debug, Args)]
pub(in crate::cli) struct ResizeArguments {
    #[command(flatten)]
    begin: Begin,
    /// The disk, as in disk0.
    disk: String,
    /// Its new size, as in 20G: more than it has.
    #[arg(value_parser = parse_mib)]
    size: u64,
}

/// Which disk, and where to.
#[derive(Debug, Args)]
pub(in crate::cli) struct MoveArguments {
    #[command(flatten)]
    begin: Begin,
    /// The disk, as in disk0.
    disk: String,
    /// The pool.
    #[arg(long)]
    pool: String,
}

impl DiskCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::Move(arguments) => {
                let body = DiskMove {
                    pool: PoolName::try_from(arguments.pool)?,
                };
                let disk = (arguments.begin, arguments.disk);
                order(client, output, disk, "move", &body).await
            }
            Self::Resize(arguments) => {
                let body = DiskGrowth {
                    size_mib: arguments.size,
                };
                let disk = (arguments.begin, arguments.disk);
                order(client, output, disk, "resize", &body).await
            }
            Self::Limit(arguments) => arguments.run(client, output).await,
        }
    }
}

async fn order(
    client: &Client,
    output: Output,
    (which, disk): (Begin, String),
    what: &str,
    body: &impl Serialize,
) -> anyhow::Result<()> {
    let rest = format!("/disks/{}/{what}", segment(&disk)?);
    let path = path(&which.guest, &rest)?;
    let request = client.request(Method::POST, &path).json(body);
    begin(client, request, !which.no_wait, output).await
}
