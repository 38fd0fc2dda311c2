//! The engine of a single node: one SQLite file, nothing to set up.
//!
//! One connection behind a lock, used on tokio's threads for blocking work. Each commit is one
//! SQLite transaction that is on disk when it returns, and is told to the watchers before the lock
//! is given up, so that all see the same order.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Transaction as Sql, params};
use tokio::sync::mpsc;

use super::{
    Change, Entry, LeaseId, Outcome, Page, Revision, Store, StoreError, Transaction, VALUE_MAX,
    Watch, Write,
};

/// Changes that are kept for watchers that come late.
const HISTORY: u64 = 10_000;
/// Changes that a watcher may lag behind.
const WATCHER_LAG: usize = 4_096;
/// How often leases are looked at.
const LEASE_TICK: Duration = Duration::from_millis(500);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS revision (one INTEGER PRIMARY KEY CHECK (one = 1), last INTEGER);
    INSERT OR IGNORE INTO revision VALUES (1, 0);
    CREATE TABLE IF NOT EXISTS entries (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, lease INTEGER
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS entries_lease ON entries (lease) WHERE lease IS NOT NULL;
    CREATE TABLE IF NOT EXISTS history (revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB);
    CREATE INDEX IF NOT EXISTS history_revision ON history (revision);
    CREATE TABLE IF NOT EXISTS leases (
        id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL
    );
";

/// A store in one file.
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    connection: Connection,
    watchers: Vec<Watcher>,
    /// Nothing may be changed: the records are on their way into a cluster.
    frozen: bool,
}

struct Watcher {
    prefix: String,
    sender: mpsc::Sender<Change>,
}

impl SqliteStore {
    /// Opens or creates the file. Must be called inside a tokio runtime, which then expires the
    /// leases.
    ///
    /// # Errors
    /// [`StoreError::Engine`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.execute_batch(SCHEMA)?;
        let inner = Arc::new(Mutex::new(Inner {
            connection,
            watchers: Vec::new(),
            frozen: false,
        }));
        tokio::spawn(expire_leases(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// Refuses all changes from now on, or takes them again.
    pub fn freeze(&self, frozen: bool) {
        lock(&self.inner).frozen = frozen;
    }

    /// All that does not go with a lease.
    ///
    /// # Errors
    /// [`StoreError::Engine`].
    pub async fn export(&self) -> Result<Vec<Entry>, StoreError> {
        self.run(|inner| {
            let mut statement = inner.connection.prepare(
                "SELECT key, value, revision FROM entries WHERE lease IS NULL ORDER BY key",
            )?;
            let rows = statement.query_map([], entry)?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&mut lock(&inner)))
            .await
            .map_err(|error| StoreError::Engine(error.to_string()))?
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn expire_leases(inner: Weak<Mutex<Inner>>) {
    let mut tick = tokio::time::interval(LEASE_TICK);
    loop {
        tick.tick().await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let expired = tokio::task::spawn_blocking(move || lock(&inner).end_expired_leases()).await;
        if let Ok(Err(error)) = expired {
            tracing::error!("leases cannot be ended: {error}");
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Engine(error.to_string())
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.run(move |inner| {
            let mut statement = inner
                .connection
                .prepare_cached("SELECT key, value, revision FROM entries WHERE key = ?1")?;
            Ok(statement.query_row([&key], entry).optional()?)
        })
        .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let prefix = prefix.to_owned();
        let after = after.map(str::to_owned);
        self.run(move |inner| inner.list(&prefix, after.as_deref(), limit))
            .await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.run(move |inner| inner.commit(&transaction)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let prefix = prefix.to_owned();
        self.run(move |inner| inner.watch(prefix, after)).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.run(move |inner| {
            let ttl_ms = ttl.as_millis() as i64;
            inner.connection.execute(
                "INSERT INTO leases (ttl_ms, expires_ms) VALUES (?1, ?2)",
                params![ttl_ms, now_ms().saturating_add(ttl_ms)],
            )?;
            Ok(LeaseId(inner.connection.last_insert_rowid()))
        })
        .await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.run(move |inner| {
            let changed = inner.connection.execute(
                "UPDATE leases SET expires_ms = ?2 + ttl_ms WHERE id = ?1 AND expires_ms > ?2",
                params![lease.0, now_ms()],
            )?;
            if changed == 0 {
                return Err(StoreError::LeaseGone(lease));
            }
            Ok(())
        })
        .await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.run(move |inner| inner.end_lease(lease)).await
    }
}

impl Inner {
    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT key, value, revision FROM entries
             WHERE key >= ?1 AND key > ?2 AND substr(key, 1, length(?1)) = ?1
             ORDER BY key LIMIT ?3",
        )?;
        let most = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let after = after.unwrap_or_default();
        let rows = statement.query_map(params![prefix, after, most], entry)?;
        let mut entries = rows.collect::<Result<Vec<_>, _>>()?;
        let more = entries.len() > limit;
        entries.truncate(limit);
        let revision = last_revision(&self.connection)?;
        Ok(Page {
            entries,
            revision,
            more,
        })
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        if self.frozen {
            let moving = "the records move into a cluster; try again in a moment";
            return Err(StoreError::Engine(moving.to_owned()));
        }
        for write in &transaction.writes {
            if let Write::Put { key, value, .. } = write
                && value.len() > VALUE_MAX
            {
                return Err(StoreError::TooLarge {
                    key: key.clone(),
                    bytes: value.len(),
                });
            }
        }
        let sql = self.connection.transaction()?;
        for condition in &transaction.conditions {
            let revision = sql
                .prepare_cached("SELECT revision FROM entries WHERE key = ?1")?
                .query_row([&condition.key], |row| row.get::<_, i64>(0))
                .optional()?;
            if revision.map(|revision| Revision(revision as u64)) != condition.revision {
                return Ok(Outcome::Conflict);
            }
        }
        let revision = Revision(last_revision(&sql)?.0 + 1);
        let mut changes = Vec::new();
        for write in &transaction.writes {
            changes.extend(apply(&sql, write, revision)?);
        }
        finish(sql, revision)?;
        self.tell(&changes);
        Ok(Outcome::Committed(revision))
    }

    fn watch(&mut self, prefix: String, after: Revision) -> Result<Watch, StoreError> {
        let last = last_revision(&self.connection)?;
        if last.0.saturating_sub(after.0) > HISTORY {
            return Err(StoreError::Compacted(after));
        }
        let mut statement = self.connection.prepare_cached(
            "SELECT key, value, revision FROM history
             WHERE revision > ?1 AND substr(key, 1, length(?2)) = ?2 ORDER BY revision, rowid",
        )?;
        let rows = statement.query_map(params![after.0 as i64, prefix], |row| {
            Ok(Change {
                key: row.get(0)?,
                value: row.get(1)?,
                revision: Revision(row.get::<_, i64>(2)? as u64),
            })
        })?;
        let past = rows.collect::<Result<Vec<_>, _>>()?;
        let (sender, changes) = mpsc::channel(past.len() + WATCHER_LAG);
        for change in past {
            // It has room for all of them, and its reader is at hand.
            let _ = sender.try_send(change);
        }
        self.watchers.push(Watcher { prefix, sender });
        Ok(Watch { changes })
    }

    /// A watcher that does not keep up is let go; it hears the end of its stream.
    fn tell(&mut self, changes: &[Change]) {
        self.watchers.retain(|watcher| {
            !watcher.sender.is_closed()
                && changes
                    .iter()
                    .filter(|change| change.key.starts_with(&watcher.prefix))
                    .all(|change| watcher.sender.try_send(change.clone()).is_ok())
        });
    }

    fn end_expired_leases(&mut self) -> Result<(), StoreError> {
        let expired: Vec<i64> = self
            .connection
            .prepare_cached("SELECT id FROM leases WHERE expires_ms <= ?1")?
            .query_map([now_ms()], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for lease in expired {
            self.end_lease(LeaseId(lease))?;
        }
        Ok(())
    }

    fn end_lease(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        let sql = self.connection.transaction()?;
        let keys: Vec<String> = sql
            .prepare_cached("SELECT key FROM entries WHERE lease = ?1 ORDER BY key")?
            .query_map([lease.0], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        sql.execute("DELETE FROM leases WHERE id = ?1", [lease.0])?;
        let mut changes = Vec::new();
        if keys.is_empty() {
            sql.commit()?;
        } else {
            let revision = Revision(last_revision(&sql)?.0 + 1);
            for key in keys {
                changes.extend(apply(&sql, &Write::Delete { key }, revision)?);
            }
            finish(sql, revision)?;
        }
        self.tell(&changes);
        Ok(())
    }
}

fn apply(sql: &Sql<'_>, write: &Write, revision: Revision) -> Result<Option<Change>, StoreError> {
    let (key, value) = match write {
        Write::Put { key, value, lease } => {
            if let Some(lease) = lease {
                require_lease(sql, *lease)?;
            }
            sql.prepare_cached("INSERT OR REPLACE INTO entries VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![
                    key,
                    value,
                    revision.0 as i64,
                    lease.map(|lease| lease.0)
                ])?;
            (key, Some(value))
        }
        Write::Delete { key } => {
            let removed = sql.execute("DELETE FROM entries WHERE key = ?1", [key])?;
            if removed == 0 {
                return Ok(None);
            }
            (key, None)
        }
    };
    sql.prepare_cached("INSERT INTO history VALUES (?1, ?2, ?3)")?
        .execute(params![revision.0 as i64, key, value])?;
    Ok(Some(Change {
        key: key.clone(),
        value: value.cloned(),
        revision,
    }))
}

fn require_lease(sql: &Sql<'_>, lease: LeaseId) -> Result<(), StoreError> {
    sql.query_row(
        "SELECT 1 FROM leases WHERE id = ?1 AND expires_ms > ?2",
        params![lease.0, now_ms()],
        |_| Ok(()),
    )
    .optional()?
    .ok_or(StoreError::LeaseGone(lease))
}

fn finish(sql: Sql<'_>, revision: Revision) -> Result<(), StoreError> {
    sql.execute("UPDATE revision SET last = ?1", [revision.0 as i64])?;
    let oldest = revision.0.saturating_sub(HISTORY) as i64;
    sql.execute("DELETE FROM history WHERE revision <= ?1", [oldest])?;
    Ok(sql.commit()?)
}

fn last_revision(connection: &Connection) -> Result<Revision, StoreError> {
    let last: i64 = connection
        .prepare_cached("SELECT last FROM revision")?
        .query_row([], |row| row.get(0))?;
    Ok(Revision(last as u64))
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: row.get(1)?,
        revision: Revision(row.get::<_, i64>(2)? as u64),
    })
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_millis() as i64
}
