//! `pindah guest create`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use pindah_vmm_api::{Baseline, DiskFormat};
use reqwest::Method;
use serde::Deserialize;

use super::cpu::CpuFlags;
use super::disk_limits::NewDiskLimits;
use super::interface::InterfaceFlags;
use crate::cli::output::Output;
use crate::cli::progress::begin;
use crate::cli::size::parse_mib;
use crate::cli::upload::image_for;
use crate::client::Client;
use crate::domain::{
    Autostart, CloudInit, CpuLimits, CrashPolicy, DiskSpec, GuestName, GuestSpec, InterfaceSpec,
    KernelSpec, PoolName,
};

/// A choice by the name that it has in JSON.
pub(in crate::cli) fn choice<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

/// A new guest.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)]
pub struct CreateArguments {
    /// Its name.
    name: String,
    /// RAM, as in 512M or 2G.
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    memory: u64,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1, value_name = "N")]
    cpus: u8,
    /// CPU features that it may see: host, x86-64-v1, x86-64-v2 or x86-64-v3 [default: what the
    /// cluster's nodes have in common].
    #[arg(long, value_parser = choice::<Baseline>)]
    baseline: Option<Baseline>,
    /// A disk of this size; the first one is a copy of --image if that is given. May be repeated.
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    disk: Vec<u64>,
    /// What the first disk is a copy of: a file, which is uploaded, or an image, of the pool local
    /// if none is named.
    #[arg(long, value_name = "FILE|[POOL/]IMAGE")]
    image: Option<String>,
    /// The pool that disks are kept in [default: as the node says, local].
    #[arg(long)]
    pool: Option<String>,
    /// How disks are kept: qcow2 or raw [default: qcow2, raw in a pool that holds nothing else].
    #[arg(long, value_parser = choice::<DiskFormat>)]
    format: Option<DiskFormat>,
    /// A kernel to boot, in the place of the first disk's boot loader.
    #[arg(long, value_name = "FILE|[POOL/]IMAGE")]
    kernel: Option<String>,
    /// An initial RAM disk for the kernel.
    #[arg(long, value_name = "FILE|[POOL/]IMAGE", requires = "kernel")]
    initrd: Option<String>,
    /// The kernel's command line.
    #[arg(
        long,
        default_value = "",
        requires = "kernel",
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// No network interface.
    #[arg(long, conflicts_with_all = InterfaceFlags::NAMES)]
    no_network: bool,
    /// User data for its cloud-init.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// Network configuration for its cloud-init.
    #[arg(long, value_name = "FILE")]
    network_config: Option<PathBuf>,
    /// Public SSH keys for its cloud-init, one a line. May be repeated.
    #[arg(long, value_name = "FILE")]
    ssh_keys: Vec<PathBuf>,
    /// What becomes of it when it crashes: restart or stay.
    #[arg(long, default_value = "restart", value_parser = choice::<CrashPolicy>)]
    on_crash: CrashPolicy,
    /// Start it with its node.
    #[arg(long)]
    autostart: bool,
    /// When it starts among the others of its node: smaller ones first.
    #[arg(long, value_name = "N", default_value_t = 0)]
    autostart_order: u16,
    /// How long the next one waits, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    autostart_delay: u16,
    /// A free label. May be repeated.
    #[arg(long)]
    tag: Vec<String>,
    /// Free text.
    #[arg(long, default_value = "")]
    notes: String,
    /// Start it when it is there.
    #[arg(long)]
    start: bool,
    /// Do not wait; print the task.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    disk_limits: NewDiskLimits,
    #[command(flatten)]
    cpu: CpuFlags,
    #[command(flatten)]
    interface: InterfaceFlags,
}

impl CreateArguments {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let wait = !self.no_wait;
        let spec = self.into_spec(client).await?;
        // Sent again by whoever repeats the request, it is carried out once.
        let key = uuid::Uuid::new_v4().to_string();
        let request = client
            .request(Method::POST, "/guests")
            .header("Idempotency-Key", key)
            .json(&spec);
        begin(client, request, wait, output).await
    }

    async fn into_spec(self, client: &Client) -> anyhow::Result<GuestSpec> {
        let name = GuestName::try_from(self.name.clone())?;
        let kernel = match &self.kernel {
            None => None,
            Some(kernel) => Some(KernelSpec {
                image: image_for(client, kernel).await?,
                initrd: match &self.initrd {
                    None => None,
                    Some(initrd) => Some(image_for(client, initrd).await?),
                },
                cmdline: self.cmdline.clone(),
            }),
        };
        let disks = self.disks(client).await?;
        let cloud_init = self.cloud_init()?;
        let interfaces = if self.no_network {
            Vec::new()
        } else {
            vec![self.interface.apply(InterfaceSpec::default())?]
        };
        Ok(GuestSpec {
            name,
            cpus: self.cpus,
            cpu_limits: self.cpu.apply(CpuLimits::default()).unwrap_or_default(),
            memory_mib: self.memory,
            baseline: self.baseline,
            kernel,
            disks,
            interfaces,
            cloud_init,
            autostart: Autostart {
                enabled: self.autostart,
                order: self.autostart_order,
                delay_s: self.autostart_delay,
            },
            on_crash: self.on_crash,
            tags: self.tag.into_iter().collect::<BTreeSet<_>>(),
            notes: self.notes,
            start: self.start,
        })
    }

    async fn disks(&self, client: &Client) -> anyhow::Result<Vec<DiskSpec>> {
        let image = match &self.image {
            None => None,
            Some(image) => Some(image_for(client, image).await?),
        };
        let pool = self.pool.clone().map(PoolName::try_from).transpose()?;
        let empty = |size_mib| DiskSpec {
            size_mib,
            image: None,
            pool: pool.clone(),
            format: self.format,
            limits: self.disk_limits.limits(),
        };
        let mut disks: Vec<DiskSpec> = self.disk.iter().map(|size| empty(Some(*size))).collect();
        if let Some(image) = image {
            if disks.is_empty() {
                disks.push(empty(None));
            }
            disks[0].image = Some(image);
        }
        Ok(disks)
    }

    fn cloud_init(&self) -> anyhow::Result<Option<CloudInit>> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).with_context(|| path.display().to_string())
        };
        let mut ssh_keys = Vec::new();
        for path in &self.ssh_keys {
            let text = read(path)?;
            let lines = text.lines().map(str::trim);
            let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
            ssh_keys.extend(keys.map(str::to_owned));
        }
        let cloud_init = CloudInit {
            user_data: self.user_data.as_ref().map(read).transpose()?,
            ssh_keys,
            network_config: self.network_config.as_ref().map(read).transpose()?,
        };
        Ok((cloud_init != CloudInit::default()).then_some(cloud_init))
    }
}
