//! A copy of the cluster's records on this node's own disk: what can be read without a majority.
//!
//! It follows the store by list and watch. What it holds may be old, never half of a commit that
//! a reader would notice, and never newer than the store.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};

use super::{Change, Entry, Page, Revision, StoreError};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS revision (one INTEGER PRIMARY KEY CHECK (one = 1), last INTEGER);
    INSERT OR IGNORE INTO revision VALUES (1, 0);
    CREATE TABLE IF NOT EXISTS entries (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL
    ) WITHOUT ROWID;
";

/// The copy.
#[derive(Clone)]
pub struct Mirror {
    connection: Arc<Mutex<Connection>>,
}

impl Mirror {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// [`StoreError::Engine`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // The last changes may be lost with the host's power: the store has them.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.execute_batch(SCHEMA)?;
        let connection = Arc::new(Mutex::new(connection));
        Ok(Self { connection })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let connection = Arc::clone(&self.connection);
        let done = tokio::task::spawn_blocking(move || work(&mut lock(&connection)));
        done.await
            .map_err(|error| StoreError::Engine(error.to_string()))?
    }

    /// Holds exactly these from now on.
    pub(super) async fn replace(&self, page: Page) -> Result<(), StoreError> {
        self.run(move |connection| {
            let sql = connection.transaction()?;
            sql.execute("DELETE FROM entries", [])?;
            for entry in &page.entries {
                sql.prepare_cached("INSERT INTO entries VALUES (?1, ?2, ?3)")?
                    .execute(params![entry.key, entry.value, entry.revision.0 as i64])?;
            }
            sql.execute("UPDATE revision SET last = ?1", [page.revision.0 as i64])?;
            Ok(sql.commit()?)
        })
        .await
    }

    /// Takes one change more.
    pub(super) async fn apply(&self, change: Change) -> Result<(), StoreError> {
        self.run(move |connection| {
            let revision = change.revision.0 as i64;
            let sql = connection.transaction()?;
            match &change.value {
                Some(value) => sql.execute(
                    "INSERT OR REPLACE INTO entries VALUES (?1, ?2, ?3)",
                    params![change.key, value, revision],
                )?,
                None => sql.execute("DELETE FROM entries WHERE key = ?1", [&change.key])?,
            };
            sql.execute("UPDATE revision SET last = max(last, ?1)", [revision])?;
            Ok(sql.commit()?)
        })
        .await
    }

    /// What `key` held when it was last heard of.
    ///
    /// # Errors
    /// [`StoreError::Engine`].
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.run(move |connection| {
            let mut statement = connection
                .prepare_cached("SELECT key, value, revision FROM entries WHERE key = ?1")?;
            Ok(statement.query_row([&key], entry).optional()?)
        })
        .await
    }

    /// As [`super::Store::list`], of what was last heard.
    ///
    /// # Errors
    /// [`StoreError::Engine`].
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let prefix = prefix.to_owned();
        let after = after.unwrap_or_default().to_owned();
        self.run(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT key, value, revision FROM entries
                 WHERE key >= ?1 AND key > ?2 AND substr(key, 1, length(?1)) = ?1
                 ORDER BY key LIMIT ?3",
            )?;
            let most = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
            let rows = statement.query_map(params![prefix, after, most], entry)?;
            let mut entries = rows.collect::<Result<Vec<_>, _>>()?;
            let more = entries.len() > limit;
            entries.truncate(limit);
            let last = "SELECT last FROM revision";
            let last: i64 = connection.query_row(last, [], |row| row.get(0))?;
            Ok(Page {
                entries,
                revision: Revision(last as u64),
                more,
            })
        })
        .await
    }
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: row.get(1)?,
        revision: Revision(row.get::<_, i64>(2)? as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn copy_is_what_was_last_heard_and_outlives_us() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mirror.db");
        let entry = |key: &str, revision| Entry {
            key: key.to_owned(),
            value: b"1".to_vec(),
            revision: Revision(revision),
        };
        let mirror = Mirror::open(&path).unwrap();
        let page = Page {
            entries: vec![entry("a/x", 3), entry("a/y", 4)],
            revision: Revision(7),
            more: false,
        };
        mirror.replace(page).await.unwrap();
        for (key, value, revision) in [("a/x", None, 8), ("a/z", Some(b"2".to_vec()), 9)] {
            let change = Change {
                key: key.to_owned(),
                value,
                revision: Revision(revision),
            };
            mirror.apply(change).await.unwrap();
        }
        drop(mirror);
        let mirror = Mirror::open(&path).unwrap();
        let page = mirror.list("a/", None, 1).await.unwrap();
        assert_eq!(
            (page.entries.as_slice(), page.more),
            (&[entry("a/y", 4)][..], true)
        );
        assert_eq!(page.revision, Revision(9));
        let rest = mirror.list("a/", Some("a/y"), 9).await.unwrap();
        assert_eq!(rest.entries[0].key, "a/z");
        assert_eq!(mirror.get("a/x").await.unwrap(), None);
    }
}
