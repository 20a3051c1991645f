//! A few read-only connections, handed out one at a time. Each read sees one moment of the store, which may be ahead of
//! what is durable: who reads waits until it is.

use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ring::{CHUNK_BYTES, Chunk};
use super::schema::{after, counter, revision_of, unsigned};
use crate::store::{Change, Entry, Page, Range, StoreError};

const CONNECTIONS: usize = 4;

pub(super) struct Readers {
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
}

/// A connection on loan.
pub(super) struct Reader {
    connection: Option<Connection>,
    idle: Arc<Mutex<Vec<Connection>>>,
    _permit: OwnedSemaphorePermit,
}

impl Readers {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = |_| Connection::open_with_flags(path, flags);
        let idle = (0..CONNECTIONS).map(open).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { idle: Arc::new(Mutex::new(idle)), permits: Arc::new(Semaphore::new(CONNECTIONS)) })
    }

    pub(super) async fn take(&self) -> Result<Reader, StoreError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| StoreError::Stopped)?;
        let connection = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Ok(Reader { connection, idle: Arc::clone(&self.idle), _permit: permit })
    }
}

impl Deref for Reader {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match &self.connection {
            Some(connection) => connection,
            None => unreachable!("there are as many permits as connections"),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(self.connection.take());
    }
}

impl Reader {
    /// The entry, and a revision by which it was so.
    pub(super) fn get(&self, key: &str) -> Result<(Option<Entry>, u64), StoreError> {
        let mut statement = self.prepare_cached("SELECT key, value, revision FROM entry WHERE key = ?1")?;
        let found = statement.query_row([key], entry).optional()?;
        // That there is none may be the work of any commit up to now.
        let revision = found.as_ref().map_or_else(|| counter(self, "revision"), |entry| Ok(entry.revision))?;
        Ok((found, revision))
    }

    pub(super) fn list(&self, range: &Range) -> Result<Page, StoreError> {
        // One transaction, so that the entries and the revision are of one moment.
        let txn = self.unchecked_transaction()?;
        let start = range.after.as_deref().unwrap_or(&range.prefix);
        let limit = i64::try_from(range.limit).unwrap_or(i64::MAX).max(1);
        // The first key may be `after` itself, which was told already.
        let mut statement = txn.prepare_cached(
            "SELECT key, value, revision FROM entry WHERE key >= ?1 AND key < ?2 AND key IS NOT ?3 ORDER BY key LIMIT ?4",
        )?;
        let rows =
            statement.query_map(params![start, end(&range.prefix), range.after, limit.saturating_add(1)], entry)?;
        let (mut entries, mut bytes, mut more) = (Vec::new(), 0, false);
        for row in rows {
            let row = row?;
            more = entries.len() as i64 == limit || bytes >= CHUNK_BYTES;
            if more {
                break;
            }
            bytes += row.value.len();
            entries.push(row);
        }
        drop(statement);
        let revision = counter(&txn, "revision")?;
        Ok(Page { entries, revision, more })
    }

    /// The changes right after `revision` and up to `last`, in whole revisions.
    pub(super) fn log(&self, revision: u64, last: u64) -> Result<Vec<Arc<Change>>, StoreError> {
        let mut statement =
            self.prepare_cached("SELECT id, key, value, previous FROM change WHERE id >= ?1 AND id < ?2 ORDER BY id")?;
        let rows = statement.query_map([after(revision), after(last)], |row| {
            Ok(Arc::new(Change {
                revision: revision_of(row.get(0)?),
                key: row.get(1)?,
                value: row.get::<_, Option<Vec<u8>>>(2)?.map(Bytes::from),
                previous: row.get::<_, Option<Vec<u8>>>(3)?.map(Bytes::from),
            }))
        })?;
        let mut chunk = Chunk::default();
        for row in rows {
            if !chunk.takes(row?) {
                break;
            }
        }
        Ok(chunk.changes)
    }
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { key: row.get(0)?, value: Bytes::from(row.get::<_, Vec<u8>>(1)?), revision: unsigned(row.get(2)?) })
}

/// The first text after all that start with `prefix`. No key holds the highest character.
fn end(prefix: &str) -> String {
    format!("{prefix}\u{10FFFF}")
}
