//! `pindah pool …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reqwest::Method;

use super::guest::choice;
use super::output::{Output, mib, properties, table};
use crate::api::{PoolOnNode, PoolView, VolumeView};
use crate::client::Client;
use crate::domain::{PoolKind, PoolName, PoolSource, PoolSpec};
use crate::storage::PoolState;

/// Where images and disks are kept.
#[derive(Debug, Subcommand)]
pub(super) enum PoolCommand {
    /// Make a pool.
    Create(CreateArguments),
    /// List all pools.
    List,
    /// Show a pool, and how it does on each node.
    Show {
        /// The pool.
        name: String,
    },
    /// List the disks in a pool.
    Volumes {
        /// The pool.
        name: String,
    },
    /// Forget a pool; its files stay where they are.
    Delete {
        /// The pool.
        name: String,
        /// Give up the disks and images in it: guests that need them cannot start any more.
        #[arg(long)]
        force: bool,
    },
}

/// A new pool.
#[derive(Debug, Args)]
pub(super) struct CreateArguments {
    /// Its name.
    name: String,
    /// What it is: dir or nfs.
    #[arg(long, default_value = "dir", value_parser = choice::<PoolKind>)]
    kind: PoolKind,
    /// dir: its directory on every node.
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// dir: the directory is the same one on all nodes, as on a NAS that is mounted there.
    #[arg(long)]
    shared: bool,
    /// nfs: the server's name or address; it must speak version 4.1 or newer.
    #[arg(long)]
    server: Option<String>,
    /// nfs: what it exports, as in /srv/vm.
    #[arg(long, value_name = "PATH")]
    export: Option<String>,
    /// nfs: mount options beside those that are always set, as in nconnect=4,sec=krb5p.
    #[arg(long)]
    options: Option<String>,
}

impl PoolCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::Create(arguments) => {
                let spec = PoolSpec {
                    name: PoolName::try_from(arguments.name)?,
                    kind: arguments.kind,
                    path: arguments.path,
                    shared: arguments.shared,
                    server: arguments.server,
                    export: arguments.export,
                    options: arguments.options,
                };
                let pool: PoolView = client.post("/pools", &spec).await?;
                output.show(&pool, |pool| format!("pool {}", pool.name))
            }
            Self::List => {
                let pools: Vec<PoolView> = client.list("/pools").await?;
                output.show(&pools, |pools| {
                    let rows = pools.iter().flat_map(rows);
                    let head = [
                        "POOL", "KIND", "SHARED", "NODE", "STATE", "SIZE", "FREE", "PROMISED",
                    ];
                    table(&head, rows)
                })
            }
            Self::Show { name } => {
                let name = PoolName::try_from(name)?;
                let pool: PoolView = client.get(&format!("/pools/{name}")).await?;
                output.show(&pool, show)
            }
            Self::Volumes { name } => {
                let name = PoolName::try_from(name)?;
                let path = format!("/pools/{name}/volumes");
                let volumes: Vec<VolumeView> = client.list(&path).await?;
                output.show(&volumes, |volumes| {
                    let head = ["GUEST", "NODE", "DISK", "SIZE", "TAKES", "FILE"];
                    table(&head, volumes.iter().map(volume_row))
                })
            }
            Self::Delete { name, force } => {
                let name = PoolName::try_from(name)?;
                let request = client.request(Method::DELETE, &format!("/pools/{name}"));
                client.send(request.query(&[("force", force)])).await?;
                Ok(())
            }
        }
    }
}

fn shared(pool: &PoolView) -> String {
    if pool.source.is_shared() { "yes" } else { "no" }.to_owned()
}

fn rows(pool: &PoolView) -> Vec<Vec<String>> {
    let row = |one: &PoolOnNode| {
        vec![
            pool.name.to_string(),
            pool.source.kind().to_string(),
            shared(pool),
            one.node.clone(),
            one.status.state.to_string(),
            mib(one.status.total_mib),
            mib(one.status.free_mib),
            mib(one.promised_mib),
        ]
    };
    pool.nodes.iter().map(row).collect()
}

fn volume_row(volume: &VolumeView) -> Vec<String> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        or_none(volume.name.as_ref().map(ToString::to_string)),
        or_none(volume.node.clone()),
        or_none(volume.disk.clone()),
        or_none(volume.size_mib.map(mib)),
        mib(volume.allocated_bytes.div_ceil(1 << 20)),
        format!("{}/{}", volume.guest, volume.file),
    ]
}

/// What one node says of a pool.
fn figures(one: &PoolOnNode) -> String {
    let status = &one.status;
    let (free, total) = (mib(status.free_mib), mib(status.total_mib));
    match (status.state, &status.reason) {
        (PoolState::Ready, None) => format!("ready, {free} of {total} free"),
        (state, reason) => format!("{state}: {}", reason.as_deref().unwrap_or_default()),
    }
}

fn show(pool: &PoolView) -> String {
    let place = match &pool.source {
        PoolSource::Dir { path, .. } => path.display().to_string(),
        PoolSource::Nfs { server, export, .. } => format!("{server}:{export}"),
    };
    let head = [
        ("pool", pool.name.to_string()),
        ("kind", pool.source.kind().to_string()),
        ("place", place),
        ("shared", shared(pool)),
    ];
    let nodes = pool.nodes.iter();
    let nodes = nodes.map(|one| (one.node.as_str(), figures(one)));
    properties(&head.into_iter().chain(nodes).collect::<Vec<_>>())
}
