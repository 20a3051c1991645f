//! The last changes, in memory, shared by all watchers. Bounded in number and in bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::store::Change;

const MOST_CHANGES: usize = 8192;
const MOST_BYTES: usize = 16 << 20;
/// What one read hands out at the most, give or take the rest of a revision.
const CHUNK: usize = 512;
pub(super) const CHUNK_BYTES: usize = 1 << 20;

pub(super) struct Ring(Mutex<Inner>);

/// Changes in whole revisions, as many as one read hands out.
#[derive(Default)]
pub(super) struct Chunk {
    pub(super) changes: Vec<Arc<Change>>,
    bytes: usize,
}

impl Chunk {
    /// Whether there was room for `change`.
    pub(super) fn takes(&mut self, change: Arc<Change>) -> bool {
        let full = self.changes.len() >= CHUNK || self.bytes >= CHUNK_BYTES;
        if full && self.changes.last().is_some_and(|last| last.revision != change.revision) {
            return false;
        }
        self.bytes += size(&change);
        self.changes.push(change);
        true
    }
}

struct Inner {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// The ring holds all changes after this revision.
    after: u64,
}

impl Ring {
    /// An empty one, which is complete from `revision` on.
    pub(super) fn after_revision(revision: u64) -> Self {
        Self(Mutex::new(Inner { changes: VecDeque::new(), bytes: 0, after: revision }))
    }

    /// Adds the changes of whole revisions.
    pub(super) fn push(&self, changes: Vec<Arc<Change>>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            inner.bytes += size(&change);
            inner.changes.push_back(change);
        }
        while inner.changes.len() > MOST_CHANGES || inner.bytes > MOST_BYTES {
            let Some(gone) = inner.changes.pop_front() else { break };
            inner.bytes -= size(&gone);
            inner.after = gone.revision;
        }
    }

    /// The changes right after `revision`, in whole revisions; `None`: they are no longer here, the log has them.
    pub(super) fn after(&self, revision: u64) -> Option<Vec<Arc<Change>>> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if revision < inner.after {
            return None;
        }
        let start = inner.changes.partition_point(|change| change.revision <= revision);
        let mut chunk = Chunk::default();
        for change in inner.changes.range(start..) {
            if !chunk.takes(Arc::clone(change)) {
                break;
            }
        }
        Some(chunk.changes)
    }
}

fn size(change: &Change) -> usize {
    let bytes = |value: &Option<bytes::Bytes>| value.as_ref().map_or(0, bytes::Bytes::len);
    change.key.len() + bytes(&change.value) + bytes(&change.previous) + size_of::<Change>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64) -> Arc<Change> {
        Arc::new(Change { revision, key: "k".into(), value: None, previous: None })
    }

    #[test]
    fn what_fell_out_is_not_passed_off_as_nothing() {
        let ring = Ring::after_revision(0);
        let most = MOST_CHANGES as u64;
        ring.push((1..=most + 10).map(change).collect());
        assert!(ring.after(9).is_none());
        assert_eq!(ring.after(10).unwrap().first().unwrap().revision, 11);
        assert!(ring.after(most + 10).unwrap().is_empty());
    }

    #[test]
    fn large_changes_come_a_few_at_a_time() {
        let ring = Ring::after_revision(0);
        let large = |revision| Change { value: Some(vec![0; CHUNK_BYTES / 2].into()), ..(*change(revision)).clone() };
        ring.push((1..=9).map(|revision| Arc::new(large(revision))).collect());
        assert_eq!(ring.after(0).unwrap().len(), 2);
    }

    #[test]
    fn a_revision_is_never_cut_in_two() {
        let ring = Ring::after_revision(0);
        ring.push(vec![change(1); CHUNK - 1]);
        ring.push(vec![change(2); 5]);
        ring.push(vec![change(3)]);
        let found = ring.after(0).unwrap();
        assert_eq!((found.len(), found.last().unwrap().revision), (CHUNK + 4, 2));
    }
}
