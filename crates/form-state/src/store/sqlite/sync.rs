//! The thread that makes commits durable: SQLite writes the next group while the disk still syncs the ones before.
//!
//! The writer's COMMIT puts a group into the WAL and syncs nothing (`synchronous = NORMAL`); here the WAL is synced, and
//! only then is anybody told of the group: its askers, watchers, and readers, who wait for what they saw to be durable.
//! After a power failure SQLite takes the WAL up to the first frame that did not reach the disk whole, so what is lost is
//! always the end, of which nobody was told.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::Shared;
use super::writer::{Answer, Finish};
use crate::store::Change;

/// A group that is committed and not yet durable.
pub(super) struct Written {
    pub(super) started: Instant,
    pub(super) finish: Vec<Finish>,
    pub(super) changes: Vec<Arc<Change>>,
    /// The store's revision after it.
    pub(super) revision: u64,
    /// It left something in the WAL that somebody is told of.
    pub(super) wrote: bool,
}

pub(super) fn run(wal: &File, written: &Receiver<Written>, shared: &Shared, answers: &UnboundedSender<Vec<Answer>>) {
    while let Ok(first) = written.recv() {
        let groups: Vec<Written> = std::iter::once(first).chain(written.try_iter()).collect();
        if groups.iter().any(|group| group.wrote)
            && let Err(error) = wal.sync_data()
        {
            // The kernel may have dropped what it could not write, and would call the next sync a success. Only a new
            // start, which reads what is on the disk, can know what is there.
            tracing::error!(%error, "the disk did not sync the log of the store; stopping at once, to start from what it has");
            std::process::abort();
        }
        for group in groups {
            // The ring first: a watcher that wakes must find what it was woken for.
            shared.ring.push(group.changes);
            shared.revision.send_if_modified(|revision| std::mem::replace(revision, group.revision) != group.revision);
            metrics::histogram!("form_state_commit_seconds").record(group.started.elapsed().as_secs_f64());
            metrics::histogram!("form_state_commit_requests").record(group.finish.len() as f64);
            // If it cannot be sent, the runtime is gone, and whoever waited with it.
            let _ = answers.send(group.finish.into_iter().map(|finish| (finish, Ok(()))).collect());
        }
    }
}
