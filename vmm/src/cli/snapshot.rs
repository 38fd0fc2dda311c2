//! `pindah-vmm snapshot` and `restore`.

use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use pindah_vmm::api::client::Client;
use pindah_vmm::config::Config;
use pindah_vmm::snapshot::{PartialSnapshot, Snapshot};
use pindah_vmm::vm::machine::ExitReason;
use pindah_vmm::vm::migratable::Migratable;
use pindah_vmm_api::{AfterSnapshot, SnapshotReport, SnapshotRequest};

use super::options::parse_choice;
use super::run::{self, ProcessArguments};

/// Arguments of `snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArguments {
    /// The guest's API socket.
    #[arg(long, value_name = "SOCKET")]
    api: PathBuf,
    /// What the guest does afterwards: continue, pause or exit.
    #[arg(long, default_value = "continue", value_name = "WHAT",
          value_parser = parse_choice::<AfterSnapshot>)]
    then: AfterSnapshot,
    /// The directory to make. What it holds is as secret as the guest's memory.
    directory: PathBuf,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// A directory that `snapshot` made. The guest's disks must be as they were then.
    directory: PathBuf,
    #[command(flatten)]
    process: ProcessArguments,
}

/// Opens the files, has the VMM write them, and puts the directory in its place.
pub fn snapshot(arguments: &SnapshotArguments) -> anyhow::Result<()> {
    let mut client = Client::connect(&arguments.api)?;
    let partial = PartialSnapshot::create(&arguments.directory)?;
    let request = SnapshotRequest {
        then: arguments.then,
    };
    let descriptors = [partial.state.as_fd(), partial.memory.as_fd()];
    let report: SnapshotReport =
        client.post_with_descriptors("/api/v1/snapshot", &request, &descriptors)?;
    partial
        .commit()
        .context("the snapshot was written, but not put in its place")?;
    let stood_still = report
        .paused_ms
        .map(|ms| format!(", the guest stood still for {ms} ms"));
    println!(
        "{}: {} MiB of {} MiB written in {} ms{}",
        arguments.directory.display(),
        report.written_bytes >> 20,
        report.ram_bytes >> 20,
        report.total_ms,
        stood_still.unwrap_or_default()
    );
    Ok(())
}

/// Runs a guest from where its snapshot was taken.
pub fn restore(arguments: &RestoreArguments) -> anyhow::Result<ExitReason> {
    let snapshot = Snapshot::open(&arguments.directory)?;
    let state = &snapshot.manifest.vm;
    let config = Config::try_from(state.config.clone())
        .context("the snapshot's configuration is not valid")?;
    let prepared = run::prepare(&config, &arguments.process)?;
    let built = run::build(&config, prepared)?;
    built.vm.own()?;
    snapshot.load_memory(&built.vm.memory())?;
    built.vm.restore(state)?;
    Ok(run::finish(built))
}
