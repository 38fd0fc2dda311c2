//! `pindah guest disk …`.

use clap::{Args, Subcommand};
use reqwest::Method;

use super::{Begin, path, segment};
use crate::api::DiskMove;
use crate::cli::output::Output;
use crate::cli::progress::begin;
use crate::client::Client;
use crate::domain::PoolName;

/// Disks of guests.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum DiskCommand {
    /// Move a disk of a guest that is off to another pool.
    Move(MoveArguments),
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
        let Self::Move(arguments) = self;
        let body = DiskMove {
            pool: PoolName::try_from(arguments.pool)?,
        };
        let rest = format!("/disks/{}/move", segment(&arguments.disk)?);
        let path = path(&arguments.begin.guest, &rest)?;
        let request = client.request(Method::POST, &path).json(&body);
        begin(client, request, !arguments.begin.no_wait, output).await
    }
}
