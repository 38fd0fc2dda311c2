//! What nodes keep, as files of this machine: images, and disks of guests.

use std::io::SeekFrom;
use std::path::Path;

use anyhow::Context;
use futures_util::StreamExt;
use reqwest::Method;
use ring::digest::{Context as Digest, SHA256};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

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
    let path = format!("/images/{}/content?pool={}", image.name, image.pool);
    let mut digest = Digest::new(&SHA256);
    let received = into_new_file(to, async |file| {
        receive(client, &path, name.as_str(), file, |piece| {
            digest.update(piece);
        })
        .await?;
        if let Some(sha256) = &image.sha256 {
            let same = hex(digest.finish().as_ref()) == *sha256;
            anyhow::ensure!(
                same,
                "what came is not what was uploaded: its SHA-256 differs"
            );
        }
        Ok(())
    });
    received.await?;
    Ok(image)
}

/// Downloads a disk of a guest into a new file: all of it, or nothing is left. Returns its bytes.
pub(super) async fn download_disk(
    client: &Client,
    (guest, disk): (&str, &str),
    to: &Path,
) -> anyhow::Result<u64> {
    let path = format!("/guests/{guest}/disks/{disk}/content");
    into_new_file(to, async |file| {
        receive(client, &path, disk, file, |_| {}).await
    })
    .await
}

async fn into_new_file<T>(
    to: &Path,
    fill: impl AsyncFnOnce(File) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let created = File::options().write(true).create_new(true).open(to).await;
    let received = fill(created.with_context(|| to.display().to_string())?).await;
    if received.is_err() {
        std::fs::remove_file(to).with_context(|| to.display().to_string())?;
    }
    received
}

/// Writes what is at `path` into the file, in which zeroes are holes.
async fn receive(
    client: &Client,
    path: &str,
    name: &str,
    mut file: File,
    mut look: impl FnMut(&[u8]),
) -> anyhow::Result<u64> {
    let response = client.send(client.request(Method::GET, path)).await?;
    let length = response.content_length();
    let bar = transfer_bar("downloading", length.unwrap_or(0), name);
    let mut pieces = response.bytes_stream();
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece.with_context(|| format!("downloading {name}"))?;
        look(&piece);
        if piece.iter().all(|&byte| byte == 0) {
            let past = i64::try_from(piece.len())?;
            file.seek(SeekFrom::Current(past)).await?;
        } else {
            file.write_all(&piece).await?;
        }
        bytes += piece.len() as u64;
        bar.inc(piece.len() as u64);
    }
    file.flush().await?;
    file.set_len(bytes).await?;
    file.sync_all().await?;
    bar.finish_and_clear();
    let whole = length.is_none_or(|length| length == bytes);
    anyhow::ensure!(
        whole,
        "downloading {name}: it broke off after {bytes} bytes"
    );
    Ok(bytes)
}
