//! `pindah image …`.

use std::path::PathBuf;

use clap::Subcommand;
use reqwest::Method;

use super::output::{Output, mib, table};
use super::upload::upload;
use crate::client::Client;
use crate::domain::FileName;
use crate::storage::Image;

/// Images that disks are copied from, and kernels.
#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// List all images.
    List,
    /// Upload a file: raw, qcow2 or vmdk, or a kernel.
    Upload {
        /// The file.
        file: PathBuf,
        /// Its name there [default: the file's].
        #[arg(long)]
        name: Option<String>,
    },
    /// Delete an image. Disks that were made from it stay.
    Delete {
        /// The image.
        name: String,
    },
}

impl ImageCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List => {
                let images: Vec<Image> = client.list("/images").await?;
                output.show(&images, |images| {
                    let rows = images.iter().map(row);
                    table(&["NAME", "FORMAT", "DISK", "FILE"], rows)
                })
            }
            Self::Upload { file, name } => {
                let name = name.map(FileName::try_from).transpose()?;
                let image = upload(client, &file, name).await?;
                output.show(&image, |image| format!("image {}", image.name))
            }
            Self::Delete { name } => {
                let name = FileName::try_from(name)?;
                let request = client.request(Method::DELETE, &format!("/images/{name}"));
                client.send(request).await?;
                Ok(())
            }
        }
    }
}

fn row(image: &Image) -> Vec<String> {
    vec![
        image.name.to_string(),
        image.format.name().to_owned(),
        mib(image.virtual_bytes.div_ceil(1 << 20)),
        mib(image.file_bytes.div_ceil(1 << 20)),
    ]
}
