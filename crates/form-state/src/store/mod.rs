//! The store: keys, values, and one counter of revisions, as in etcd.
//!
//! ```text
//!   commit ──▶ revision 41 ──▶ revision 42 ──▶ revision 43        one counter; a transaction is one revision
//!                  │               │               │
//!   watch after 40 ┴───────────────┴───────────────┴──▶ …         replays the log, then follows it
//! ```
//!
//! What an engine promises is written down as tests in [`conformance`], which every engine passes:
//! a commit that was acknowledged is on disk; a transaction is whole or not at all; a watch tells every change after its
//! revision in order, or says [`StoreError::Compacted`]; no watcher, however slow, makes the server's memory grow.

pub mod conformance;
mod sqlite;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use sqlite::{SqliteOptions, SqliteStore};

/// A value under a key, as it was at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// The revision of the commit that wrote it.
    pub revision: u64,
}

/// The keys that start with `prefix`, in order, from the one after `after`; at most `limit`, and fewer where they are large.
#[derive(Clone, Debug, Default)]
pub struct Range {
    pub prefix: String,
    pub after: Option<String>,
    pub limit: usize,
}

/// Part of a range, all of one moment.
#[derive(Clone, Debug)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// The store's revision at that moment: a watch that goes on from it misses nothing.
    pub revision: u64,
    /// There are entries after these.
    pub more: bool,
}

/// What has to be so for a transaction to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    Absent(String),
    Exists(String),
    /// The key's last change was this revision.
    Revision(String, u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// With a lease, the key goes when the lease ends.
    Put {
        key: String,
        value: Bytes,
        lease: Option<LeaseId>,
    },
    /// A put without a lease, whose change has the value before it as well.
    Replace {
        key: String,
        value: Bytes,
    },
    Delete {
        key: String,
    },
}

/// All of `ops` if all of `compares` hold, else nothing.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// On disk, at this revision. A transaction that changed nothing has the revision that it found.
    Committed { revision: u64 },
    /// The compare with this index did not hold.
    Conflict { compare: usize },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: u64,
    pub key: String,
    /// `None`: deleted.
    pub value: Option<Bytes>,
    /// For a deletion and an [`Op::Replace`]: the value before.
    pub previous: Option<Bytes>,
}

/// The changes of one or more whole revisions, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Empty where only other keys changed.
    pub changes: Vec<Change>,
    /// All changes up to this revision were told.
    pub revision: u64,
}

pub type LeaseId = u64;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The log no longer reaches back to the revision asked for. List, and watch from the list's revision.
    #[error("revision {asked} was compacted; the log starts after {compacted}")]
    Compacted { asked: u64, compacted: u64 },
    #[error("revision {asked} is in the future; the store is at {current}")]
    Future { asked: u64, current: u64 },
    #[error("the disk, or the store's share of it, is full")]
    Full,
    #[error("too many writes are waiting; try again soon")]
    Busy,
    #[error("there is no lease {0}; it ended, or never was")]
    NoLease(LeaseId),
    #[error("another process has the store open")]
    InUse,
    #[error("the store has stopped")]
    Stopped,
    #[error("the store's engine failed")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// An engine. See the module's head for what it promises.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    async fn list(&self, range: Range) -> Result<Page, StoreError>;

    /// All under `prefix`, page by page, and the revision of the first page: a watch from there misses nothing.
    async fn all(&self, prefix: &str) -> Result<(Vec<Entry>, u64), StoreError> {
        let mut range = Range { prefix: prefix.to_owned(), after: None, limit: usize::MAX };
        let mut page = self.list(range.clone()).await?;
        let (mut all, revision) = (page.entries, page.revision);
        while page.more {
            range.after = all.last().map(|entry| entry.key.clone());
            page = self.list(range.clone()).await?;
            all.append(&mut page.entries);
        }
        Ok((all, revision))
    }

    /// [`StoreError::NoLease`] where a key would hang on a lease that has ended: it would never go.
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError>;
    /// Changes of the keys under `prefix` after the revision `after`, for ever. Ends with an error, `Compacted` where the
    /// reader was too slow.
    async fn watch(
        &self,
        prefix: &str,
        after: u64,
    ) -> Result<BoxStream<'static, Result<Batch, StoreError>>, StoreError>;
    /// The last revision that was acknowledged.
    async fn revision(&self) -> Result<u64, StoreError>;
    /// Forgets the log up to and including `revision`. What is current stays.
    async fn compact(&self, revision: u64) -> Result<(), StoreError>;
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;
    /// Starts the lease's time anew. After a restart of the store every lease has its whole time.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError>;
    /// Ends the lease now.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}
