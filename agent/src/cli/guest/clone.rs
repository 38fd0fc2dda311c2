//! `pindah guest clone`.

use clap::Args;
use reqwest::Method;

use super::{Begin, path};
use crate::cli::output::Output;
use crate::cli::progress::begin;
use crate::client::Client;
use crate::domain::{CloneSpec, GuestName, PoolName};

/// What is copied, and where to.
#[derive(Debug, Args)]
pub(in crate::cli) struct CloneArguments {
    #[command(flatten)]
    begin: Begin,
    /// The copy's name.
    name: String,
    /// The pool that its disks go to [default: as the original's].
    #[arg(long)]
    pool: Option<String>,
    /// The node that it is to be on, if its disks go to shared pools [default: the original's].
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
}

impl CloneArguments {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let spec = CloneSpec {
            name: GuestName::try_from(self.name)?,
            pool: self.pool.map(PoolName::try_from).transpose()?,
            node: self.to,
        };
        // Sent again by whoever repeats the request, it is carried out once.
        let key = uuid::Uuid::new_v4().to_string();
        let path = path(&self.begin.guest, "/clone")?;
        let request = client
            .request(Method::POST, &path)
            .header("Idempotency-Key", key)
            .json(&spec);
        begin(client, request, !self.begin.no_wait, output).await
    }
}
