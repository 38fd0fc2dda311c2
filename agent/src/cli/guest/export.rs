//! `pindah guest export`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{path, segment};
use crate::api::GuestView;
use crate::cli::download::download_disk;
use crate::cli::output::{Output, mib};
use crate::client::Client;

/// Which disk, and where to.
#[derive(Debug, Args)]
pub(in crate::cli) struct ExportArguments {
    /// Name or UUID.
    guest: String,
    /// The file to write, which must not be there yet. Its format is the disk's, qcow2 or raw.
    file: PathBuf,
    /// The disk.
    #[arg(long, default_value = "disk0")]
    disk: String,
}

impl ExportArguments {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let (name, disk) = (segment(&self.guest)?, segment(&self.disk)?);
        let guest: GuestView = client.get(&path(name, "")?).await?;
        let bytes = download_disk(client, (name, disk), &self.file).await?;
        let mut disks = guest.disks.iter();
        let format = disks.find(|one| one.id == disk).map(|one| one.format);
        let done = json!({ "file": self.file, "disk": disk, "format": format, "bytes": bytes });
        output.show(&done, |done| {
            let format = done["format"].as_str().unwrap_or_default();
            let size = mib(bytes.div_ceil(1 << 20));
            format!(
                "{disk} of {name} is in {}: {size} of {format}",
                self.file.display()
            )
        })
    }
}
