//! A disk of a guest that is off, on its way to who asked for it. Until it is there nobody changes
//! the guest; one who does not take what is sent holds it up for a minute, no longer.

use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;

use super::disk_record::find_disk;
use super::{GuestError, Guests};
use crate::domain::{Guest, TaskKind};
use crate::storage::Download;
use crate::tasks::{Failure, TaskContext};

/// How long the next piece may wait to be taken.
const TAKE_DEADLINE: Duration = Duration::from_secs(60);

/// A disk that is being sent, as it is kept.
pub struct Export {
    bytes: u64,
    left: u64,
    pieces: mpsc::Receiver<Vec<u8>>,
}

impl Export {
    /// How much is sent in all, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next piece; `None`: that was all.
    ///
    /// # Errors
    /// [`GuestError::Cancelled`]: no more comes; its task says why.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, GuestError> {
        match self.pieces.recv().await {
            Some(piece) => {
                self.left = self.left.saturating_sub(piece.len() as u64);
                Ok(Some(piece))
            }
            None if self.left == 0 => Ok(None),
            None => Err(GuestError::Cancelled),
        }
    }
}

impl Guests {
    /// Begins to send a disk of a guest of this node that is off.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn export_disk(
        &self,
        guest: &Guest,
        id: &str,
        user: &str,
    ) -> Result<Export, GuestError> {
        let (reading, guest) = self.begin_to_read(guest).await?;
        let disk = find_disk(&guest, id)?;
        let pool = self.resources().pools.get(&disk.volume.pool).await?;
        let download = Download::of_volume(&pool, guest.uuid, disk).await?;
        let bytes = download.bytes();
        let (sender, pieces) = mpsc::channel(1);
        let (uuid, id) = (guest.uuid, id.to_owned());
        let name = guest.name.as_str();
        let tasks = &self.resources().tasks;
        let begun = tasks.start(TaskKind::ExportDisk, name, user, |context| async move {
            let _reading = reading;
            let text = format!("sending {id}");
            tokio::select! {
                sent = send(download, sender, &context, &text) => sent?,
                () = context.cancelled() => return Err(Failure::Cancelled),
            }
            Ok(json!({ "uuid": uuid, "disk": id, "bytes": bytes }))
        });
        begun.await?;
        Ok(Export {
            bytes,
            left: bytes,
            pieces,
        })
    }
}

async fn send(
    mut download: Download,
    pieces: mpsc::Sender<Vec<u8>>,
    context: &TaskContext,
    text: &str,
) -> Result<(), Failure> {
    context.log(text);
    while let Some(piece) = download.next().await.map_err(GuestError::from)? {
        match tokio::time::timeout(TAKE_DEADLINE, pieces.send(piece)).await {
            Ok(Ok(())) => context.progress(download.percent(), text),
            Ok(Err(_)) => return Err(Failure::Failed("who asked for it has gone".to_owned())),
            Err(_) => {
                let seconds = TAKE_DEADLINE.as_secs();
                let why = format!("who asked for it has taken nothing for {seconds} s");
                return Err(Failure::Failed(why));
            }
        }
    }
    Ok(())
}
