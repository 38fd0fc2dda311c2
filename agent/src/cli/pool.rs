//! `pindah pool …`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use reqwest::Method;

use super::guest::choice;
use super::output::{Output, mib, properties, table};
use crate::api::{PoolOnNode, PoolView, VolumeView};
use crate::client::Client;
use crate::domain::{PoolKind, PoolName, PoolSource, PoolSpec, Secret};
use crate::storage::PoolState;

/// Where images and disks are kept.
#[derive(Debug, Subcommand)]
pub(super) enum PoolCommand {
    /// Make a pool.
    Create(Box<CreateArguments>),
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
#[command(disable_version_flag = true)]
pub(super) struct CreateArguments {
    /// Its name.
    name: String,
    /// What it is: dir, nfs or iscsi.
    #[arg(long, default_value = "dir", value_parser = choice::<PoolKind>)]
    kind: PoolKind,
    /// dir: its directory on every node.
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// dir: the directory is the same one on all nodes, as on a NAS that is mounted there.
    #[arg(long)]
    shared: bool,
    /// nfs: the server's name or address.
    #[arg(long)]
    server: Option<String>,
    /// nfs: what it exports, as in /srv/vm.
    #[arg(long, value_name = "PATH")]
    export: Option<String>,
    /// nfs: mount options beside those that are always set, as in nconnect=4,sec=krb5p.
    #[arg(long)]
    options: Option<String>,
    /// nfs: what is exported are images, which are only read: no disk can be kept there.
    #[arg(long)]
    read_only: bool,
    /// nfs: the protocol's version, 4 or, with --read-only, 3 [default: 4].
    #[arg(long = "version", value_name = "N")]
    nfs_version: Option<u8>,
    /// iscsi: the target's portal, its name or address, and its port unless that is 3260; once for
    /// each. With Debian's multipath-tools all are used, and one may go down.
    #[arg(long = "portal", value_name = "HOST[:PORT]")]
    portals: Vec<String>,
    /// iscsi: the target's name, as in iqn.2026-01.org.example:vm.
    #[arg(long, value_name = "IQN")]
    target: Option<String>,
    /// iscsi: the LUN [default: the only disk that the target has].
    #[arg(long, value_name = "N")]
    lun: Option<u16>,
    /// iscsi: the volume group on it, which is made if the LUN is blank [default: pindah-NAME].
    #[arg(long, value_name = "NAME")]
    volume_group: Option<String>,
    /// iscsi: the user to log in as by CHAP.
    #[arg(long, value_name = "USER", requires = "chap_password_file")]
    chap_user: Option<String>,
    /// iscsi: a file with that user's password.
    #[arg(long, value_name = "FILE", requires = "chap_user")]
    chap_password_file: Option<PathBuf>,
}

impl CreateArguments {
    fn into_spec(self) -> anyhow::Result<PoolSpec> {
        let password = self.chap_password_file.map(|path| {
            let text = std::fs::read_to_string(&path);
            text.with_context(|| format!("cannot read {}", path.display()))
        });
        let password = password.transpose()?;
        let password = password.map(|text| Secret::from(text.trim_end().to_owned()));
        Ok(PoolSpec {
            path: self.path,
            shared: self.shared,
            server: self.server,
            export: self.export,
            options: self.options,
            read_only: self.read_only,
            version: self.nfs_version,
            portals: self.portals,
            target: self.target,
            lun: self.lun,
            volume_group: self.volume_group,
            chap_user: self.chap_user,
            chap_password: password,
            ..PoolSpec::new(PoolName::try_from(self.name)?, self.kind)
        })
    }
}

impl PoolCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::Create(arguments) => {
                let spec = arguments.into_spec()?;
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
        (PoolState::Ready, Some(note)) => format!("ready, {free} of {total} free: {note}"),
        (state, reason) => format!("{state}: {}", reason.as_deref().unwrap_or_default()),
    }
}

fn show(pool: &PoolView) -> String {
    let place = match &pool.source {
        PoolSource::Dir { path, .. } => path.display().to_string(),
        PoolSource::Nfs {
            server,
            export,
            read_only,
            ..
        } => {
            let how = if *read_only { ", read-only" } else { "" };
            format!("{server}:{export}{how}")
        }
        PoolSource::Iscsi {
            portals,
            target,
            lun,
            volume_group,
            ..
        } => {
            let lun = lun.unwrap_or_default();
            let portals = portals.join(" and ");
            format!("{target} at {portals}, LUN {lun}, volume group {volume_group}")
        }
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
