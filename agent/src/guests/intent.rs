//! What is wanted of a guest, when the store takes no changes: kept beside the guest's process,
//! and written into the record as soon as it does.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use super::{GuestError, Guests};
use crate::domain::{Guest, Wanted};
use crate::files;
use crate::store::StoreError;

const FILE: &str = "wanted.json";
/// How long one wait for the majority is.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a failure waits for the next try.
const RETRY: Duration = Duration::from_secs(5);

impl Guests {
    fn intent_path(&self, uuid: Uuid) -> PathBuf {
        self.directory(uuid).join(FILE)
    }

    /// What is wanted of the guest now, whether or not its record says so yet.
    pub(super) fn wanted(&self, guest: &Guest) -> Wanted {
        self.remembered(guest.uuid).unwrap_or(guest.wanted)
    }

    fn remembered(&self, uuid: Uuid) -> Option<Wanted> {
        let bytes = fs::read(self.intent_path(uuid)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Sets what is wanted of the guest: in its record, or for later.
    pub(super) async fn want(&self, uuid: Uuid, wanted: Wanted) -> Result<(), GuestError> {
        let machine = self.machine(uuid);
        let _intent = machine.intent().await;
        match self.record(uuid, wanted).await {
            Ok(()) => Ok(()),
            Err(StoreError::NoMajority) => self.remember(uuid, wanted),
            Err(error) => Err(error.into()),
        }
    }

    async fn record(&self, uuid: Uuid, wanted: Wanted) -> Result<(), StoreError> {
        let key = uuid.to_string();
        let updated = self.records().update(&key, |guest| {
            guest.wanted = wanted;
        });
        updated.await?;
        self.forget_intent(uuid);
        Ok(())
    }

    /// For when the store takes changes again. The caller holds the machine's intent.
    pub(super) fn remember(&self, uuid: Uuid, wanted: Wanted) -> Result<(), GuestError> {
        let path = self.intent_path(uuid);
        let written = fs::create_dir_all(self.directory(uuid))
            .and_then(|()| files::replace_by_json_durably(&path, &wanted));
        written.map_err(|source| GuestError::Io { path, source })?;
        let guests = self.clone();
        tokio::spawn(async move { guests.record_later(uuid).await });
        Ok(())
    }

    /// The record says what is wanted. The caller holds the machine's intent.
    pub(super) fn forget_intent(&self, uuid: Uuid) {
        // Mostly there is none.
        let _ = fs::remove_file(self.intent_path(uuid));
    }

    /// Until the record says what was remembered.
    pub(super) async fn record_later(&self, uuid: Uuid) {
        while self.remembered(uuid).is_some() {
            if !self.resources().store.settled(PATIENCE).await {
                continue;
            }
            let machine = self.machine(uuid);
            let intent = machine.intent().await;
            // What is wanted by now: that may have changed while we waited.
            let Some(wanted) = self.remembered(uuid) else {
                return;
            };
            let recorded = self.record(uuid, wanted).await;
            drop(intent);
            if let Err(error) = recorded {
                tracing::warn!("guest {uuid}: what is wanted of it: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
