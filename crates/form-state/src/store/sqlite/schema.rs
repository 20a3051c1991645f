//! The tables and the settings.

use std::fs::File;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _};

use crate::store::StoreError;

const PAGE_BYTES: u64 = 4096;

/// The bits of a change's id that are its position among the changes of its revision.
const POSITION_BITS: u32 = 20;
/// The most changes that one revision has.
pub(super) const POSITIONS: usize = 1 << POSITION_BITS;

/// Raised with each change of the tables; a file of a later version is refused.
const VERSION: i64 = 1;

const TABLES: &str = "
    -- What is current.
    CREATE TABLE entry (
        key      TEXT PRIMARY KEY,
        value    BLOB NOT NULL,
        revision INTEGER NOT NULL,
        lease    INTEGER
    ) WITHOUT ROWID;
    CREATE INDEX entry_lease ON entry (lease) WHERE lease IS NOT NULL;

    -- What changed: the log that watches read. value is NULL for a deletion; previous is the value before, for
    -- deletions and where it was asked for. The id, place(revision, position), only grows: SQLite appends to such a
    -- table for less than to any other.
    CREATE TABLE change (
        id       INTEGER PRIMARY KEY,
        key      TEXT NOT NULL,
        value    BLOB,
        previous BLOB
    );

    CREATE TABLE lease (
        id     INTEGER PRIMARY KEY,
        ttl_ms INTEGER NOT NULL
    );

    CREATE TABLE counter (
        name  TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) WITHOUT ROWID;
    INSERT INTO counter VALUES ('revision', 0), ('compacted', 0), ('lease', 0);
";

/// The counters as they were left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) revision: u64,
    pub(super) compacted: u64,
    pub(super) lease: u64,
}

/// Opens the writing connection and makes the tables where there are none.
///
/// Its log is opened beside it, for the syncs, and is synced: after a kill, what is read of it may not be on disk yet.
pub(super) fn open(path: &Path, max_bytes: u64) -> Result<(Connection, File, State), StoreError> {
    let mut connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // In WAL mode SQLite then syncs what it must before it copies the log into the database; the syncs that make an
    // acknowledgement mean "on disk" are ours.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    connection.pragma_update(None, "wal_autocheckpoint", 4000)?;
    connection.pragma_update(None, "max_page_count", signed((max_bytes / PAGE_BYTES).max(64)))?;
    connection.pragma_update(None, "foreign_keys", "ON")?;

    let txn = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: i64 = txn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match version {
        0 => {
            txn.execute_batch(TABLES)?;
            txn.pragma_update(None, "user_version", VERSION)?;
        }
        VERSION => {}
        newer => {
            let text = format!("the database is of version {newer}, and this program knows {VERSION}: update it");
            return Err(StoreError::Engine(text.into()));
        }
    }
    let state = State {
        revision: counter(&txn, "revision")?,
        compacted: counter(&txn, "compacted")?,
        lease: counter(&txn, "lease")?,
    };
    txn.commit()?;
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let wal = File::open(log).and_then(|wal| wal.sync_data().map(|()| wal));
    Ok((connection, wal.map_err(|error| StoreError::Engine(error.into()))?, state))
}

pub(super) fn counter(connection: &Connection, name: &str) -> Result<u64, rusqlite::Error> {
    let value: Option<i64> = connection
        .prepare_cached("SELECT value FROM counter WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    Ok(value.and_then(|value| value.try_into().ok()).unwrap_or(0))
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => StoreError::Full,
            _ => StoreError::Engine(error.into()),
        }
    }
}

/// The id of a change in the log.
pub(super) fn place(revision: u64, position: u64) -> i64 {
    signed((revision << POSITION_BITS) + position)
}

/// The id after those of all changes up to `revision`.
pub(super) fn after(revision: u64) -> i64 {
    place(revision + 1, 0)
}

/// The revision of the change with this id.
pub(super) fn revision_of(place: i64) -> u64 {
    unsigned(place) >> POSITION_BITS
}

/// SQLite has signed integers only; revisions do not reach the sign in any life of a cluster.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
