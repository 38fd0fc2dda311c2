//! The file: minutes for fifteen days, hours for a year.
//!
//! A row is a block ([`super::block`]) of one subject: an hour of minutes, or a day of hours. Its key
//! is the subject's number and the block's, so that what is asked for lies together. An hour is
//! always what its minutes come to, so it is as good as they are after any end of the agent.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};
use uuid::Uuid;

use super::block::{decode, encode};
use super::bucket::Bucket;
use super::resolution::Resolution;

/// Largest file, in bytes: about 300 guests of a year. Beyond, the oldest goes first.
const BYTES_MAX: u64 = 256 << 20;
/// What SQLite may keep in memory of the file, in KiB.
const CACHE_KIB: i64 = 512;
/// Bits of a key that are the block's number.
const BLOCK_BITS: u32 = 24;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS subjects (id INTEGER PRIMARY KEY, uuid BLOB NOT NULL UNIQUE);
    CREATE TABLE IF NOT EXISTS minutes (key INTEGER PRIMARY KEY, block BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS hours (key INTEGER PRIMARY KEY, block BLOB NOT NULL);
";

/// A minute of all subjects.
#[derive(Clone, Debug, Default)]
pub(super) struct Minute {
    /// Its number since the Unix epoch.
    pub number: u64,
    /// What was measured in it.
    pub of: HashMap<Uuid, Bucket>,
}

/// The file, open for writing.
pub(super) struct File {
    connection: Connection,
    bytes_max: u64,
}

/// Whether an error says that the file is no good, whatever is tried.
pub(super) fn is_damaged(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(
        code,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// Where a damaged file is kept, for who wants to look.
pub(super) fn damaged_path(path: &Path) -> PathBuf {
    path.with_extension("damaged")
}

fn table(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::Hour => "hours",
        Resolution::Live | Resolution::Minute => "minutes",
    }
}

/// What lies beyond the year 3800 lies there.
fn key(subject: i64, block: u64) -> i64 {
    (subject << BLOCK_BITS) | block.min((1 << BLOCK_BITS) - 1) as i64
}

fn block_of(key: i64) -> u64 {
    (key & ((1 << BLOCK_BITS) - 1)) as u64
}

impl File {
    /// Opens or creates it.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // What was written last may be lost with the power, and nothing before it.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self {
            connection,
            bytes_max: BYTES_MAX,
        })
    }

    /// Opens it for a look.
    pub(super) fn open_to_read(path: &Path) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.busy_timeout(Duration::from_secs(2))?;
        Ok(Self {
            connection,
            bytes_max: BYTES_MAX,
        })
    }

    /// Writes a minute down, beside what there is of it already.
    pub(super) fn write(&mut self, minute: &Minute) -> rusqlite::Result<()> {
        let begin = TransactionBehavior::Immediate;
        let transaction = self.connection.transaction_with_behavior(begin)?;
        for (uuid, bucket) in &minute.of {
            let subject = subject_for(&transaction, *uuid)?;
            let of_hour = add(
                &transaction,
                subject,
                Resolution::Minute,
                minute.number,
                |old| {
                    let mut new = old.cloned().unwrap_or_default();
                    new.merge(bucket);
                    new
                },
            )?;
            let mut hour = Bucket::default();
            for minute in of_hour.values() {
                hour.merge(minute);
            }
            add(
                &transaction,
                subject,
                Resolution::Hour,
                minute.number / 60,
                |_| hour,
            )?;
        }
        transaction.commit()
    }

    /// The buckets of a subject in the slots of this range, by slot.
    pub(super) fn read(
        &self,
        uuid: Uuid,
        resolution: Resolution,
        slots: Range<u64>,
    ) -> rusqlite::Result<BTreeMap<u64, Bucket>> {
        let mut found = BTreeMap::new();
        let Some(subject) = subject(&self.connection, uuid)? else {
            return Ok(found);
        };
        let per_block = resolution.block_slots();
        let first = key(subject, slots.start / per_block);
        let last = key(subject, slots.end.max(1).div_ceil(per_block));
        let sql = format!(
            "SELECT key, block FROM {} WHERE key >= ? AND key < ?",
            table(resolution)
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params![first, last])?;
        while let Some(row) = rows.next()? {
            let first_slot = block_of(row.get(0)?) * per_block;
            // One that cannot be read is a gap.
            let block = decode(row.get_ref(1)?.as_blob()?).unwrap_or_default();
            let block = block.into_iter();
            let block = block.map(|(slot, bucket)| (first_slot + u64::from(slot), bucket));
            found.extend(block.filter(|(slot, _)| slots.contains(slot)));
        }
        Ok(found)
    }

    /// All subjects.
    pub(super) fn subjects(&self) -> rusqlite::Result<Vec<Uuid>> {
        let mut statement = self.connection.prepare("SELECT uuid FROM subjects")?;
        let uuids = statement.query_map([], |row| {
            let uuid = Uuid::from_slice(row.get_ref(0)?.as_blob()?);
            Ok(uuid.unwrap_or_default())
        })?;
        uuids.collect()
    }

    /// Forgets what is too old at this time, what is of a time that has not come, and more of the
    /// oldest while the file is too large.
    pub(super) fn forget(&mut self, now_s: u64) -> rusqlite::Result<()> {
        for resolution in [Resolution::Minute, Resolution::Hour] {
            self.keep_only(resolution, now_s, resolution.kept_s())?;
        }
        for tenths in (1..10).rev() {
            if self.used_bytes()? <= self.bytes_max {
                break;
            }
            for resolution in [Resolution::Minute, Resolution::Hour] {
                self.keep_only(resolution, now_s, resolution.kept_s() / 10 * tenths)?;
            }
        }
        self.connection.execute_batch(&format!(
            "DELETE FROM subjects WHERE
                NOT EXISTS (SELECT 1 FROM minutes WHERE key BETWEEN id << {BLOCK_BITS}
                    AND ((id + 1) << {BLOCK_BITS}) - 1)
                AND NOT EXISTS (SELECT 1 FROM hours WHERE key BETWEEN id << {BLOCK_BITS}
                    AND ((id + 1) << {BLOCK_BITS}) - 1)"
        ))
    }

    fn keep_only(
        &mut self,
        resolution: Resolution,
        now_s: u64,
        kept_s: u64,
    ) -> rusqlite::Result<()> {
        let block_s = resolution.slot_s() * resolution.block_slots();
        let oldest = now_s.saturating_sub(kept_s) / block_s;
        let newest = now_s / block_s + 1;
        let table = table(resolution);
        self.connection.execute_batch(&format!(
            "BEGIN;
             DELETE FROM {table} WHERE key IN (SELECT {table}.key FROM subjects JOIN {table}
                ON {table}.key BETWEEN id << {BLOCK_BITS} AND (id << {BLOCK_BITS}) + {oldest} - 1);
             DELETE FROM {table} WHERE key IN (SELECT {table}.key FROM subjects JOIN {table}
                ON {table}.key BETWEEN (id << {BLOCK_BITS}) + {newest} + 1
                    AND ((id + 1) << {BLOCK_BITS}) - 1);
             COMMIT"
        ))
    }

    fn used_bytes(&self) -> rusqlite::Result<u64> {
        let pragma = |name| {
            let value = self
                .connection
                .pragma_query_value(None, name, |row| row.get(0));
            value.map(|value: i64| value as u64)
        };
        Ok((pragma("page_count")? - pragma("freelist_count")?) * pragma("page_size")?)
    }
}

fn subject(connection: &Connection, uuid: Uuid) -> rusqlite::Result<Option<i64>> {
    let mut statement = connection.prepare_cached("SELECT id FROM subjects WHERE uuid = ?")?;
    let id = statement.query_row([uuid.as_bytes()], |row| row.get(0));
    id.optional()
}

fn subject_for(transaction: &Transaction<'_>, uuid: Uuid) -> rusqlite::Result<i64> {
    if let Some(id) = subject(transaction, uuid)? {
        return Ok(id);
    }
    transaction.execute("INSERT INTO subjects (uuid) VALUES (?)", [uuid.as_bytes()])?;
    Ok(transaction.last_insert_rowid())
}

/// Changes a bucket in its block, which is returned.
fn add(
    transaction: &Transaction<'_>,
    subject: i64,
    resolution: Resolution,
    slot: u64,
    change: impl FnOnce(Option<&Bucket>) -> Bucket,
) -> rusqlite::Result<BTreeMap<u8, Bucket>> {
    let per_block = resolution.block_slots();
    let key = key(subject, slot / per_block);
    let table = table(resolution);
    let select = format!("SELECT block FROM {table} WHERE key = ?");
    let mut select = transaction.prepare_cached(&select)?;
    let bytes: Option<Vec<u8>> = select.query_row([key], |row| row.get(0)).optional()?;
    let bytes = bytes.unwrap_or_default();
    let mut block = decode(&bytes).unwrap_or_default();
    let slot = (slot % per_block) as u8;
    let changed = change(block.get(&slot));
    block.insert(slot, changed);
    let put = format!("INSERT OR REPLACE INTO {table} (key, block) VALUES (?, ?)");
    let mut put = transaction.prepare_cached(&put)?;
    put.execute(params![key, encode(&block)])?;
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::super::bucket::{QUANTITIES, Quantity};
    use super::*;

    const NOW_S: u64 = 1_800_000_000;
    const GUEST: Uuid = Uuid::from_u128(1);

    fn minute(number: u64, cpu: f64) -> Minute {
        let mut values = [Some(1e6); QUANTITIES];
        values[Quantity::CpuPercent as usize] = Some(cpu);
        Minute {
            number,
            of: HashMap::from([(GUEST, Bucket::sample(values))]),
        }
    }

    fn open() -> (tempfile::TempDir, File) {
        let directory = tempfile::tempdir().unwrap();
        let file = File::open(&directory.path().join("history.db")).unwrap();
        (directory, file)
    }

    fn cpus(file: &File, resolution: Resolution) -> Vec<(u64, f64)> {
        let buckets = file.read(GUEST, resolution, 0..1 << 27).unwrap();
        let cpu = |bucket: &Bucket| bucket.get(Quantity::CpuPercent).unwrap().mean;
        buckets
            .iter()
            .map(|(slot, bucket)| (*slot, cpu(bucket)))
            .collect()
    }

    #[test]
    fn minute_that_is_written_twice_is_one_and_counts_both() {
        let (_directory, mut file) = open();
        let number = NOW_S / 60;
        file.write(&minute(number, 10.0)).unwrap();
        file.write(&minute(number + 1, 30.0)).unwrap();
        // The clock was set back.
        file.write(&minute(number, 20.0)).unwrap();
        assert_eq!(
            cpus(&file, Resolution::Minute),
            [(number, 15.0), (number + 1, 30.0)]
        );
        assert_eq!(cpus(&file, Resolution::Hour), [(number / 60, 20.0)]);
    }

    #[test]
    fn old_and_future_is_forgotten_and_guests_without_any_too() {
        let (_directory, mut file) = open();
        let (old, ancient) = (NOW_S - 16 * 86_400, NOW_S - 400 * 86_400);
        for time_s in [ancient, old, NOW_S, NOW_S + 30 * 86_400] {
            file.write(&minute(time_s / 60, 1.0)).unwrap();
        }
        file.forget(NOW_S).unwrap();
        assert_eq!(cpus(&file, Resolution::Minute), [(NOW_S / 60, 1.0)]);
        assert_eq!(
            cpus(&file, Resolution::Hour),
            [(old / 3600, 1.0), (NOW_S / 3600, 1.0)]
        );
        assert_eq!(file.subjects().unwrap(), [GUEST]);
        file.forget(NOW_S + 400 * 86_400).unwrap();
        assert!(file.subjects().unwrap().is_empty());
    }

    #[test]
    fn file_that_is_too_large_forgets_the_oldest_first() {
        let (_directory, mut file) = open();
        for hour in 0..15 * 24 {
            file.write(&minute((NOW_S - hour * 3600) / 60, 1.0))
                .unwrap();
        }
        file.bytes_max = file.used_bytes().unwrap() - 1;
        file.forget(NOW_S).unwrap();
        assert!(file.used_bytes().unwrap() <= file.bytes_max);
        let left = cpus(&file, Resolution::Minute);
        assert!(left.len() > 200 && left.len() < 15 * 24, "{}", left.len());
        assert_eq!(left.last(), Some(&(NOW_S / 60, 1.0)));
    }
}
