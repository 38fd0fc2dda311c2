//! `pindah image …`.

use std::path::PathBuf;

use clap::Subcommand;
use reqwest::Method;

use super::download::download;
use super::output::{Output, mib, table};
use super::upload::upload;
use crate::client::Client;
use crate::domain::{FileName, PoolName};
use crate::storage::Image;

/// Images that disks are copied from, and kernels.
#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// List all images, of all pools that can be used.
    List {
        /// Only those of this pool.
        #[arg(long)]
        pool: Option<String>,
    },
    /// Upload a file: raw, qcow2 or vmdk, or a kernel.
    Upload {
        /// The file.
        file: PathBuf,
        /// Its name there [default: the file's].
        #[arg(long)]
        name: Option<String>,
        /// The pool.
        #[arg(long, default_value = "local")]
        pool: String,
    },
    /// Download an image, as it was uploaded.
    Download {
        /// The image.
        name: String,
        /// The pool.
        #[arg(long, default_value = "local")]
        pool: String,
        /// The file to write, which must not be there yet [default: the image's name].
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Delete an image. Disks that were made from it stay.
    Delete {
        /// The image.
        name: String,
        /// The pool.
        #[arg(long, default_value = "local")]
        pool: String,
    },
}

impl ImageCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List { pool } => {
                let path = match pool.map(PoolName::try_from).transpose()? {
                    Some(pool) => format!("/images?pool={pool}"),
                    None => "/images".to_owned(),
                };
                let images: Vec<Image> = client.list(&path).await?;
                output.show(&images, |images| {
                    let rows = images.iter().map(row);
                    table(&["POOL", "NAME", "FORMAT", "DISK", "FILE"], rows)
                })
            }
            Self::Upload { file, name, pool } => {
                let pool = PoolName::try_from(pool)?;
                let name = name.map(FileName::try_from).transpose()?;
                let image = upload(client, &file, &pool, name).await?;
                output.show(&image, |image| format!("image {}", image.name))
            }
            Self::Download { name, pool, to } => {
                let name = FileName::try_from(name)?;
                let pool = PoolName::try_from(pool)?;
                let to = to.unwrap_or_else(|| PathBuf::from(name.as_str()));
                let image = download(client, (&name, &pool), &to).await?;
                output.show(&image, |image| {
                    format!("image {} is in {}", image.name, to.display())
                })
            }
            Self::Delete { name, pool } => {
                let name = FileName::try_from(name)?;
                let pool = PoolName::try_from(pool)?;
                let path = format!("/images/{name}?pool={pool}");
                let request = client.request(Method::DELETE, &path);
                client.send(request).await?;
                Ok(())
            }
        }
    }
}

fn row(image: &Image) -> Vec<String> {
    vec![
        image.pool.to_string(),
        image.name.to_string(),
        image.format.name().to_owned(),
        mib(image.virtual_bytes.div_ceil(1 << 20)),
        mib(image.file_bytes.div_ceil(1 << 20)),
    ]
}
