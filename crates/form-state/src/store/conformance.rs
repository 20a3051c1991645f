//! What every engine promises, as tests against the trait. An engine's own tests call [`all`] with a way to open it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::future::Future;
use std::time::Duration;

use futures::StreamExt as _;

use super::{Compare, Op, Outcome, Range, Store, StoreError, Txn};

/// Runs the whole suite, each part on a store of its own.
pub async fn all<S: Store, F: Future<Output = S>>(open: impl Fn() -> F) {
    a_commit_is_read_back_with_its_revision(&open().await).await;
    a_transaction_is_whole_or_not_at_all(&open().await).await;
    a_transaction_that_changes_nothing_is_no_revision(&open().await).await;
    of_two_writers_with_one_revision_one_wins(&open().await).await;
    a_list_comes_in_order_and_in_pages(&open().await).await;
    a_watch_replays_the_log_and_then_follows_it(&open().await).await;
    a_watch_tells_of_its_prefix_only(&open().await).await;
    a_watch_of_what_was_compacted_says_so(&open().await).await;
    a_watch_from_the_future_is_refused(&open().await).await;
    a_lease_takes_its_keys_along(&open().await).await;
    a_lease_that_is_kept_alive_stays(&open().await).await;
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.to_owned(), value: value.to_owned().into(), lease: None }
}

async fn commit(store: &impl Store, compares: Vec<Compare>, ops: Vec<Op>) -> Outcome {
    store.commit(Txn { compares, ops }).await.unwrap()
}

async fn write(store: &impl Store, key: &str, value: &str) -> u64 {
    match commit(store, vec![], vec![put(key, value)]).await {
        Outcome::Committed { revision } => revision,
        conflict => panic!("{conflict:?} without a compare"),
    }
}

async fn a_commit_is_read_back_with_its_revision(store: &impl Store) {
    assert!(store.get("a").await.unwrap().is_none());
    let first = write(store, "a", "1").await;
    let second = write(store, "a", "2").await;
    assert_eq!(second, first + 1);
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((&entry.value[..], entry.revision), (&b"2"[..], second));
    assert_eq!(store.revision().await.unwrap(), second);
}

async fn a_transaction_is_whole_or_not_at_all(store: &impl Store) {
    let revision = write(store, "a", "1").await;
    let compares =
        vec![Compare::Revision("a".into(), revision), Compare::Absent("b".into()), Compare::Exists("c".into())];
    let ops = vec![put("a", "2"), put("b", "2")];
    assert_eq!(commit(store, compares.clone(), ops.clone()).await, Outcome::Conflict { compare: 2 });
    assert!(store.get("b").await.unwrap().is_none());

    write(store, "c", "").await;
    let Outcome::Committed { revision } = commit(store, compares, ops).await else { panic!("all compares hold") };
    for key in ["a", "b"] {
        assert_eq!(store.get(key).await.unwrap().unwrap().revision, revision, "one transaction is one revision");
    }
}

async fn a_transaction_that_changes_nothing_is_no_revision(store: &impl Store) {
    let revision = write(store, "a", "1").await;
    let nothing = commit(store, vec![], vec![Op::Delete { key: "b".into() }]).await;
    assert_eq!(nothing, Outcome::Committed { revision });
}

async fn of_two_writers_with_one_revision_one_wins(store: &impl Store) {
    let revision = write(store, "a", "0").await;
    let attempt = |value: &'static str| {
        let compares = vec![Compare::Revision("a".into(), revision)];
        store.commit(Txn { compares, ops: vec![put("a", value)] })
    };
    let (one, two) = tokio::join!(attempt("1"), attempt("2"));
    let won =
        [one.unwrap(), two.unwrap()].iter().filter(|outcome| matches!(outcome, Outcome::Committed { .. })).count();
    assert_eq!(won, 1);
}

async fn a_list_comes_in_order_and_in_pages(store: &impl Store) {
    for key in ["p/c", "p/a", "p/b", "q/a", "p"] {
        write(store, key, key).await;
    }
    let page =
        |after: Option<&str>, limit| store.list(Range { prefix: "p/".into(), after: after.map(str::to_owned), limit });
    let first = page(None, 2).await.unwrap();
    assert_eq!(first.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["p/a", "p/b"]);
    assert!(first.more);
    assert_eq!(first.revision, store.revision().await.unwrap());
    let second = page(Some("p/b"), 2).await.unwrap();
    assert_eq!((second.entries[0].key.as_str(), second.entries.len(), second.more), ("p/c", 1, false));
    let all = page(None, usize::MAX).await.unwrap();
    assert_eq!((all.entries.len(), all.more), (3, false));
}

async fn a_watch_replays_the_log_and_then_follows_it(store: &impl Store) {
    let start = write(store, "a", "0").await;
    write(store, "a", "1").await;
    commit(store, vec![], vec![Op::Delete { key: "a".into() }, put("b", "1")]).await;
    let mut watch = store.watch("", start).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 3 {
        told.extend(watch.next().await.unwrap().unwrap().changes);
    }
    assert_eq!(told[0].value.as_deref(), Some(&b"1"[..]));
    assert_eq!((&told[1].value, told[1].previous.as_deref()), (&None, Some(&b"1"[..])));
    assert_eq!(told[1].revision, told[2].revision);

    let live = write(store, "b", "2").await;
    let batch = watch.next().await.unwrap().unwrap();
    assert_eq!((batch.revision, batch.changes.len()), (live, 1));
    assert_eq!(batch.changes[0].previous, None);
    for before in [Some(&b"2"[..]), None] {
        let key = before.map_or("new", |_| "b");
        commit(store, vec![], vec![Op::Replace { key: key.into(), value: "3".into() }]).await;
        let change = watch.next().await.unwrap().unwrap().changes.remove(0);
        assert_eq!((change.value.as_deref(), change.previous.as_deref()), (Some(&b"3"[..]), before));
        assert_eq!(&store.get(key).await.unwrap().unwrap().value[..], b"3");
    }
}

async fn a_watch_tells_of_its_prefix_only(store: &impl Store) {
    let start = store.revision().await.unwrap();
    let mut watch = store.watch("x/", start).await.unwrap();
    write(store, "y/1", "").await;
    write(store, "x/1", "").await;
    let batch = watch.next().await.unwrap().unwrap();
    assert_eq!(batch.changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>(), ["x/1"]);
}

async fn a_watch_of_what_was_compacted_says_so(store: &impl Store) {
    let old = write(store, "a", "1").await;
    let mut late = store.watch("", old).await.unwrap();
    let kept = write(store, "a", "2").await;
    let last = write(store, "a", "3").await;
    store.compact(kept).await.unwrap();
    let refused = store.watch("", old).await.err().unwrap();
    assert!(matches!(refused, StoreError::Compacted { asked, compacted } if asked == old && compacted == kept));
    let batch = store.watch("", kept).await.unwrap().next().await.unwrap().unwrap();
    assert_eq!(batch.changes[0].revision, last);
    // One that stands behind is told too, or still has all that it needs; never less.
    match late.next().await.unwrap() {
        Ok(batch) => assert_eq!(batch.changes.first().unwrap().revision, kept),
        Err(error) => assert!(matches!(error, StoreError::Compacted { .. })),
    }
    assert_eq!(store.get("a").await.unwrap().unwrap().revision, last, "what is current stays");
}

async fn a_watch_from_the_future_is_refused(store: &impl Store) {
    let now = write(store, "a", "1").await;
    let refused = store.watch("", now + 1).await.err().unwrap();
    assert!(matches!(refused, StoreError::Future { .. }));
}

async fn a_lease_takes_its_keys_along(store: &impl Store) {
    let lease = store.grant(Duration::from_secs(1)).await.unwrap();
    let held = Op::Put { key: "held".into(), value: "".into(), lease: Some(lease) };
    commit(store, vec![], vec![held, put("free", "")]).await;
    let mut watch = store.watch("", store.revision().await.unwrap()).await.unwrap();
    let batch = watch.next().await.unwrap().unwrap();
    assert_eq!((batch.changes[0].key.as_str(), &batch.changes[0].value), ("held", &None));
    assert!(store.get("free").await.unwrap().is_some());
    assert!(matches!(store.keep_alive(lease).await, Err(StoreError::NoLease(_))));
    let late = Op::Put { key: "held".into(), value: "".into(), lease: Some(lease) };
    let late = store.commit(Txn { compares: vec![], ops: vec![put("beside", ""), late] }).await;
    assert!(matches!(late, Err(StoreError::NoLease(_))), "it would never go");
    assert!(store.get("beside").await.unwrap().is_none());

    let other = store.grant(Duration::from_secs(600)).await.unwrap();
    assert_ne!(other, lease, "a lease's number is not used again");
    commit(store, vec![], vec![Op::Put { key: "held".into(), value: "".into(), lease: Some(other) }]).await;
    store.revoke(other).await.unwrap();
    assert!(store.get("held").await.unwrap().is_none());
}

async fn a_lease_that_is_kept_alive_stays(store: &impl Store) {
    let ttl = Duration::from_secs(1);
    let (kept, measure) = (store.grant(ttl).await.unwrap(), store.grant(ttl).await.unwrap());
    let held = |key: &str, lease| Op::Put { key: key.into(), value: "".into(), lease: Some(lease) };
    commit(store, vec![], vec![held("kept", kept), held("measure", measure)]).await;
    let mut watch = store.watch("measure", store.revision().await.unwrap()).await.unwrap();
    // Until the lease beside it has ended by itself.
    loop {
        store.keep_alive(kept).await.unwrap();
        if tokio::time::timeout(ttl / 10, watch.next()).await.is_ok() {
            break;
        }
    }
    assert!(store.get("kept").await.unwrap().is_some());
}
