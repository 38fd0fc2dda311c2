//! Typed records: JSON with kind and schema version, under one prefix a kind.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Entry, Outcome, Revision, Store, StoreError, Transaction, VALUE_MAX};

/// Something that the store keeps.
pub trait Record: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Prefix of the keys, and the name in the record.
    const KIND: &'static str;
    /// Version of the JSON. A reader refuses what is newer.
    const SCHEMA: u32;
}

/// A record with its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T> {
    /// The record.
    pub value: T,
    /// Its last change: what an ETag says and a swap compares.
    pub revision: Revision,
}

#[derive(Serialize)]
struct EnvelopeOut<'a, T> {
    kind: &'static str,
    schema: u32,
    value: &'a T,
}

#[derive(Deserialize)]
struct EnvelopeIn {
    kind: String,
    schema: u32,
    value: serde_json::Value,
}

/// The bytes that the store keeps for `value` under `key`.
///
/// # Errors
/// [`StoreError::TooLarge`]; [`StoreError::Record`] for what JSON cannot say.
pub fn encode<T: Record>(key: &str, value: &T) -> Result<Vec<u8>, StoreError> {
    let envelope = EnvelopeOut {
        kind: T::KIND,
        schema: T::SCHEMA,
        value,
    };
    let bytes =
        serde_json::to_vec(&envelope).map_err(|error| unreadable(key, error.to_string()))?;
    if bytes.len() > VALUE_MAX {
        return Err(StoreError::TooLarge {
            key: key.to_owned(),
            bytes: bytes.len(),
        });
    }
    Ok(bytes)
}

/// The record that `entry` holds.
///
/// # Errors
/// [`StoreError::Record`].
pub fn decode<T: Record>(entry: &Entry) -> Result<Stored<T>, StoreError> {
    let refuse = |reason: String| unreadable(&entry.key, reason);
    let envelope: EnvelopeIn =
        serde_json::from_slice(&entry.value).map_err(|error| refuse(error.to_string()))?;
    if envelope.kind != T::KIND {
        return Err(refuse(format!(
            "it is a {}, not a {}",
            envelope.kind,
            T::KIND
        )));
    }
    if envelope.schema > T::SCHEMA {
        let message = "its schema is {}, and this version of pindahd knows {}; upgrade this node";
        let message = message
            .replacen("{}", &envelope.schema.to_string(), 1)
            .replacen("{}", &T::SCHEMA.to_string(), 1);
        return Err(refuse(message));
    }
    let value =
        serde_json::from_value(envelope.value).map_err(|error| refuse(error.to_string()))?;
    Ok(Stored {
        value,
        revision: entry.revision,
    })
}

fn unreadable(key: &str, reason: impl Into<String>) -> StoreError {
    StoreError::Record {
        key: key.to_owned(),
        reason: reason.into(),
    }
}

/// All records of one kind.
pub struct Collection<T> {
    store: Arc<dyn Store>,
    kind: PhantomData<fn() -> T>,
}

impl<T> Clone for Collection<T> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            kind: PhantomData,
        }
    }
}

impl<T: Record> Collection<T> {
    /// Those in `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            kind: PhantomData,
        }
    }

    /// The key of the record `id`.
    pub fn key(id: &str) -> String {
        format!("{}/{id}", T::KIND)
    }

    /// The record `id`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(&self, id: &str) -> Result<Option<Stored<T>>, StoreError> {
        let entry = self.store.get(&Self::key(id)).await?;
        entry.as_ref().map(decode).transpose()
    }

    /// At most `limit` records after the id `after`, and whether there are more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Stored<T>>, bool), StoreError> {
        let after = after.map(Self::key);
        let prefix = Self::key("");
        let page = self.store.list(&prefix, after.as_deref(), limit).await?;
        let records = page.entries.iter().map(decode).collect::<Result<_, _>>()?;
        Ok((records, page.more))
    }

    /// As [`Store::settled`].
    pub async fn settled(&self, patience: std::time::Duration) -> bool {
        self.store.settled(patience).await
    }

    /// All records.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn all(&self) -> Result<Vec<Stored<T>>, StoreError> {
        Ok(self.list(None, usize::MAX).await?.0)
    }

    /// All records, with their ids.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn all_with_ids(&self) -> Result<Vec<(String, Stored<T>)>, StoreError> {
        let prefix = Self::key("");
        let page = self.store.list(&prefix, None, usize::MAX).await?;
        let with_id = |entry: &Entry| {
            let id = entry.key.strip_prefix(&prefix).unwrap_or(&entry.key);
            Ok((id.to_owned(), decode(entry)?))
        };
        page.entries.iter().map(with_id).collect()
    }

    /// Creates `id`, if it does not exist.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create(&self, id: &str, value: &T) -> Result<Outcome, StoreError> {
        let key = Self::key(id);
        let bytes = encode(&key, value)?;
        let transaction = Transaction::new().if_absent(&key).put(&key, bytes);
        self.store.commit(transaction).await
    }

    /// Creates or replaces `id`, whatever it was.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put(&self, id: &str, value: &T) -> Result<(), StoreError> {
        let key = Self::key(id);
        let transaction = Transaction::new().put(&key, encode(&key, value)?);
        self.store.commit(transaction).await.map(|_| ())
    }

    /// Replaces `id`, if it was last changed at `revision`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn replace(
        &self,
        id: &str,
        value: &T,
        revision: Revision,
    ) -> Result<Outcome, StoreError> {
        let key = Self::key(id);
        let bytes = encode(&key, value)?;
        let transaction = Transaction::new()
            .if_unchanged(&key, revision)
            .put(&key, bytes);
        self.store.commit(transaction).await
    }

    /// Changes `id` by `change` until nobody else has changed it in between. `None`: there is no
    /// such record.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn update(
        &self,
        id: &str,
        change: impl Fn(&mut T) + Send + Sync,
    ) -> Result<Option<Stored<T>>, StoreError> {
        loop {
            let Some(Stored {
                mut value,
                revision,
            }) = self.get(id).await?
            else {
                return Ok(None);
            };
            change(&mut value);
            if let Outcome::Committed(revision) = self.replace(id, &value, revision).await? {
                return Ok(Some(Stored { value, revision }));
            }
        }
    }

    /// Removes `id`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete(&self, id: &str) -> Result<(), StoreError> {
        let transaction = Transaction::new().delete(Self::key(id));
        self.store.commit(transaction).await.map(|_| ())
    }
}
