//! Files of this machine that become images of the node.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use futures_util::StreamExt;
use reqwest::Method;
use ring::digest::{Context as Digest, SHA256};
use serde::de::DeserializeOwned;

use super::progress::{is_absent, transfer_bar};
use crate::client::Client;
use crate::domain::{FileName, ImageRef, PoolName};
use crate::security::hex;
use crate::storage::Image;

/// The image for `file_or_name`: a file of ours is uploaded, unless the node has it already.
pub(super) async fn image_for(client: &Client, file_or_name: &str) -> anyhow::Result<ImageRef> {
    let path = Path::new(file_or_name);
    if path.is_file() {
        let image = upload(client, path, &PoolName::local(), None).await?;
        return Ok(ImageRef {
            pool: Some(image.pool),
            file: image.name,
        });
    }
    match ImageRef::try_from(file_or_name.to_owned()) {
        Ok(name) => Ok(name),
        Err(_) => anyhow::bail!("there is no file {file_or_name}"),
    }
}

/// Uploads a file as an image of a pool, if that does not have it already.
pub(super) async fn upload(
    client: &Client,
    path: &Path,
    pool: &PoolName,
    name: Option<FileName>,
) -> anyhow::Result<Image> {
    let name = if let Some(name) = name {
        name
    } else {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        FileName::try_from(name.into_owned())?
    };
    let place = format!("/images/{name}?pool={pool}");
    match client.get::<Image>(&place).await {
        Ok(image) if image.sha256 == Some(sha256(path)?) => return Ok(image),
        Ok(_) => anyhow::bail!(
            "pool {pool} has another image {name}; delete it with `pindah image delete {name} --pool \
             {pool}`, or upload yours with `pindah image upload {} --pool {pool} --name OTHER`",
            path.display()
        ),
        Err(error) if is_absent(&error) => {}
        Err(error) => return Err(error.into()),
    }
    put_file(client, &place, path, name.as_str()).await
}

/// `PUT` of a file of ours, which is `name` to people.
pub(super) async fn put_file<T: DeserializeOwned>(
    client: &Client,
    place: &str,
    path: &Path,
    name: &str,
) -> anyhow::Result<T> {
    let file = tokio::fs::File::open(path).await;
    let file = file.with_context(|| path.display().to_string())?;
    let length = file.metadata().await?.len();
    let bar = transfer_bar("uploading", length, name);
    let counted = bar.clone();
    let pieces = tokio_util::io::ReaderStream::with_capacity(file, 256 << 10);
    let pieces = pieces.inspect(move |piece| {
        counted.inc(piece.as_ref().map_or(0, |piece| piece.len() as u64));
    });
    let request = client
        .request(Method::PUT, place)
        .header(reqwest::header::CONTENT_LENGTH, length)
        .body(reqwest::Body::wrap_stream(pieces));
    let response = client.send(request).await?;
    bar.finish_and_clear();
    let answer: crate::api::Data<T> = response.json().await?;
    Ok(answer.data)
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut digest = Digest::new(&SHA256);
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex(digest.finish().as_ref())),
            count => digest.update(&chunk[..count]),
        }
    }
}
