//! Images of the node that become files of this machine.

use std::path::Path;

use anyhow::Context;
use futures_util::StreamExt;
use reqwest::Method;
use ring::digest::{Context as Digest, SHA256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::progress::transfer_bar;
use crate::client::Client;
use crate::domain::{FileName, PoolName};
use crate::security::hex;
use crate::storage::Image;

/// Downloads an image into a new file: all of it, or nothing is left.
pub(super) async fn download(
    client: &Client,
    (name, pool): (&FileName, &PoolName),
    to: &Path,
) -> anyhow::Result<Image> {
    let image: Image = client.get(&format!("/images/{name}?pool={pool}")).await?;
    let created = File::options().write(true).create_new(true).open(to).await;
    let file = created.with_context(|| to.display().to_string())?;
    let received = receive(client, &image, file).await;
    if received.is_err() {
        std::fs::remove_file(to).with_context(|| to.display().to_string())?;
    }
    received.with_context(|| format!("downloading {name}"))?;
    Ok(image)
}

async fn receive(client: &Client, image: &Image, mut file: File) -> anyhow::Result<()> {
    let path = format!("/images/{}/content?pool={}", image.name, image.pool);
    let response = client.send(client.request(Method::GET, &path)).await?;
    let bar = transfer_bar("downloading", image.file_bytes, &image.name);
    let mut digest = Digest::new(&SHA256);
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        digest.update(&piece);
        bar.inc(piece.len() as u64);
        file.write_all(&piece).await?;
    }
    file.sync_all().await?;
    bar.finish_and_clear();
    if let Some(sha256) = &image.sha256 {
        let same = hex(digest.finish().as_ref()) == *sha256;
        anyhow::ensure!(
            same,
            "what came is not what was uploaded: its SHA-256 differs"
        );
    }
    Ok(())
}
