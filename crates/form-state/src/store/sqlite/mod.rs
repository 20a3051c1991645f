//! The embedded engine: SQLite in WAL mode.
//!
//! ```text
//!  commit ──▶ channel ──▶ writer thread: BEGIN … many transactions … COMMIT ──▶ sync thread: fdatasync
//!                                                                                  │
//!                       ring of recent changes, and then: acknowledge all of them ◀┘
//!                          └──▶ watchers; one that fell behind reads the log table
//!  get, list ──▶ a few read-only connections, each on a snapshot of its own; answered when that is durable
//! ```
//!
//! One thread writes, so transactions need no locks, and those that arrive while the disk syncs share the next sync.

mod readers;
mod ring;
mod schema;
mod sync;
mod writer;

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::{oneshot, watch};

use self::readers::Readers;
use self::ring::Ring;
use self::writer::{Request, Writer};
use super::{Batch, Change, Entry, LeaseId, Outcome, Page, Range, Store, StoreError, Txn};

/// At most this many changes of other keys are passed over before a watcher is told how far it is.
const PROGRESS_EVERY: u64 = 1024;
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// How many revisions of the log are kept; older ones are compacted.
    pub history: u64,
    /// The most bytes that the database may take; past it, writes are refused and reads go on.
    pub max_bytes: u64,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { history: 100_000, max_bytes: 8 << 30 }
    }
}

/// A store in one SQLite file. Clones share it; the writer stops with the last of them.
#[derive(Clone)]
pub struct SqliteStore {
    writer: Arc<Writer>,
    shared: Arc<Shared>,
}

/// What the writer tells and watchers read.
struct Shared {
    /// Held as long as the store is open. SQLite itself would let a second process write between our transactions.
    _lock: File,
    readers: Readers,
    ring: Ring,
    /// The last revision that is on disk.
    revision: watch::Sender<u64>,
    compacted: watch::Sender<u64>,
}

impl SqliteStore {
    /// Opens the store at `path`, or makes it. One process at a time may have it open.
    pub async fn open(path: &Path, options: SqliteOptions) -> Result<Self, StoreError> {
        let path = path.to_owned();
        let lock = lock(&path.with_extension("lock")).await?;
        let opened = tokio::task::spawn_blocking(move || {
            let (connection, wal, state) = schema::open(&path, options.max_bytes)?;
            let shared = Arc::new(Shared {
                _lock: lock,
                readers: Readers::open(&path)?,
                ring: Ring::after_revision(state.revision),
                revision: watch::Sender::new(state.revision),
                compacted: watch::Sender::new(state.compacted),
            });
            let writer = Arc::new(Writer::start(connection, wal, state, options, Arc::clone(&shared))?);
            Ok(Self { writer, shared })
        });
        opened.await.map_err(|error| StoreError::Engine(error.into()))?
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writer.send(make(reply))?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }
}

/// The lock that keeps a second process out; one that is about to stop is waited for.
async fn lock(path: &Path) -> Result<File, StoreError> {
    let engine = |error: io::Error| StoreError::Engine(error.into());
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(engine)?;
    let patience = tokio::time::Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(engine(error)),
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() > patience => return Err(StoreError::InUse),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        let (entry, revision) = self.shared.read(move |reader| reader.get(&key)).await?;
        self.shared.durable(revision).await?;
        Ok(entry)
    }

    async fn list(&self, range: Range) -> Result<Page, StoreError> {
        let page = self.shared.read(move |reader| reader.list(&range)).await?;
        self.shared.durable(page.revision).await?;
        Ok(page)
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.ask(|reply| Request::Commit { txn, reply }).await
    }

    async fn watch(
        &self,
        prefix: &str,
        after: u64,
    ) -> Result<BoxStream<'static, Result<Batch, StoreError>>, StoreError> {
        let current = *self.shared.revision.borrow();
        if after > current {
            return Err(StoreError::Future { asked: after, current });
        }
        self.shared.check_compacted(after)?;
        let watcher = Watcher {
            shared: Arc::clone(&self.shared),
            wake: self.shared.revision.subscribe(),
            prefix: prefix.to_owned(),
            told: after,
            at: after,
        };
        Ok(stream::try_unfold(watcher, |mut watcher| async {
            let batch = watcher.next().await?;
            Ok(batch.map(|batch| (batch, watcher)))
        })
        .boxed())
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        Ok(*self.shared.revision.borrow())
    }

    async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        self.ask(|reply| Request::Compact { revision, reply }).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.ask(|reply| Request::Grant { ttl, reply }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.ask(|reply| Request::KeepAlive { lease, reply }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Request::Revoke { lease, reply }).await
    }
}

impl Shared {
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&readers::Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reader = self.readers.take().await?;
        tokio::task::spawn_blocking(move || read(&reader)).await.map_err(|error| StoreError::Engine(error.into()))?
    }

    /// Returns when all up to `revision` is on disk. What was read before might be gone after a power failure.
    async fn durable(&self, revision: u64) -> Result<(), StoreError> {
        if *self.revision.borrow() >= revision {
            return Ok(());
        }
        let reached = self.revision.subscribe().wait_for(|durable| *durable >= revision).await.map(|_| ());
        reached.map_err(|_| StoreError::Stopped)
    }

    fn check_compacted(&self, asked: u64) -> Result<(), StoreError> {
        let compacted = *self.compacted.borrow();
        if asked < compacted { Err(StoreError::Compacted { asked, compacted }) } else { Ok(()) }
    }
}

/// One watch. It holds a place in the log and no queue, so that it costs the same however slowly it is read.
struct Watcher {
    shared: Arc<Shared>,
    wake: watch::Receiver<u64>,
    prefix: String,
    /// Told to the reader up to here.
    told: u64,
    /// Looked at up to here.
    at: u64,
}

impl Watcher {
    /// `None`: the store stopped.
    async fn next(&mut self) -> Result<Option<Batch>, StoreError> {
        loop {
            let at = self.at;
            let Ok(Ok(current)) =
                self.wake.wait_for(|revision| *revision > at).await.map(|revision| Ok::<_, ()>(*revision))
            else {
                return Ok(None);
            };
            let found = match self.shared.ring.after(at) {
                Some(found) => found,
                None => {
                    self.shared.check_compacted(at)?;
                    let found = self.shared.read(move |reader| reader.log(at, current)).await?;
                    // What was read may have been deleted in the middle of the reading.
                    self.shared.check_compacted(at)?;
                    found
                }
            };
            self.at = found.last().map_or(current, |change| change.revision);
            let changes: Vec<Change> = found
                .iter()
                .filter(|change| change.key.starts_with(&self.prefix))
                .map(|change| (**change).clone())
                .collect();
            if !changes.is_empty() || self.at - self.told >= PROGRESS_EVERY {
                self.told = self.at;
                return Ok(Some(Batch { changes, revision: self.at }));
            }
        }
    }
}
