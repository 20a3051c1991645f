//! The embedded engine: the suite that every engine passes, and what is its own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use form_state::store::{Compare, Op, Outcome, Range, SqliteOptions, SqliteStore, Store, StoreError, Txn, conformance};
use futures::StreamExt as _;

async fn open(dir: &tempfile::TempDir, options: SqliteOptions) -> SqliteStore {
    SqliteStore::open(&dir.path().join("state.db"), options).await.unwrap()
}

fn put(key: impl Into<String>, value: impl Into<bytes::Bytes>) -> Txn {
    Txn { compares: vec![], ops: vec![Op::Put { key: key.into(), value: value.into(), lease: None }] }
}

#[tokio::test]
async fn the_sqlite_engine_keeps_every_promise_of_the_trait() {
    let root = tempfile::tempdir().unwrap();
    let fresh = || async {
        let dir = tempfile::tempdir_in(root.path()).unwrap().keep();
        SqliteStore::open(&dir.join("state.db"), SqliteOptions::default()).await.unwrap()
    };
    conformance::all(fresh).await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart_with_its_revisions_and_leases() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, SqliteOptions::default()).await;
    let lease = store.grant(Duration::from_secs(600)).await.unwrap();
    store.commit(put("a", "1")).await.unwrap();
    store.commit(put("a", "2")).await.unwrap();
    drop(store);

    let store = open(&dir, SqliteOptions::default()).await;
    assert_eq!(store.get("a").await.unwrap().unwrap().revision, 2);
    assert_eq!(store.keep_alive(lease).await.unwrap(), Duration::from_secs(600));
    let batch = store.watch("", 1).await.unwrap().next().await.unwrap().unwrap();
    assert_eq!(batch.changes[0].value.as_deref(), Some(&b"2"[..]), "the log is on disk too");
}

#[tokio::test]
async fn the_log_is_bounded_and_what_is_current_is_not_touched_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, SqliteOptions { history: 1000, ..SqliteOptions::default() }).await;
    let writes = (0..3000).map(|n| store.commit(put(format!("k{}", n % 10), n.to_string())));
    futures::stream::iter(writes).buffered(256).for_each(|outcome| async move { assert!(outcome.is_ok()) }).await;
    assert!(matches!(store.watch("", 1).await, Err(StoreError::Compacted { .. })));
    assert!(store.watch("", 2500).await.is_ok());
    let page = store.list(Range { prefix: "k".into(), after: None, limit: 100 }).await.unwrap();
    assert_eq!(page.entries.len(), 10);
}

#[tokio::test]
async fn a_watcher_that_sleeps_through_a_compaction_is_told_to_list_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, SqliteOptions { history: 1000, ..SqliteOptions::default() }).await;
    store.commit(put("a", "0")).await.unwrap();
    let mut asleep = store.watch("", 1).await.unwrap();
    // More than the ring holds, so that only the log could help, and more than the log keeps.
    let writes = (0..12_000).map(|n| store.commit(put("a", n.to_string())));
    futures::stream::iter(writes).buffered(512).for_each(|outcome| async move { assert!(outcome.is_ok()) }).await;
    assert!(matches!(asleep.next().await.unwrap(), Err(StoreError::Compacted { asked: 1, .. })));
}

#[tokio::test]
async fn a_full_store_refuses_writes_and_goes_on_reading() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, SqliteOptions { max_bytes: 1 << 20, ..SqliteOptions::default() }).await;
    store.commit(put("first", "kept")).await.unwrap();
    let mut written = 0;
    let refused = loop {
        match store.commit(put(format!("big{written}"), vec![0_u8; 64 << 10])).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StoreError::Full), "{refused:?}");
    assert_eq!(&store.get("first").await.unwrap().unwrap().value[..], b"kept");
    assert!(store.get(&format!("big{written}")).await.unwrap().is_none(), "the refused write left nothing");
    let (entries, _) = store.all("big").await.unwrap();
    assert_eq!(entries.len(), written, "what was acknowledged before is whole");

    // A deletion is a write too; the log gives way for it.
    let delete = || Txn { compares: vec![], ops: vec![Op::Delete { key: "big0".into() }] };
    while let Err(error) = store.commit(delete()).await {
        assert!(matches!(error, StoreError::Full), "{error:?}");
    }
    while let Err(error) = store.commit(put("first", "changed")).await {
        assert!(matches!(error, StoreError::Full), "{error:?}");
    }
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, SqliteOptions::default()).await;
    let path = dir.path().join("state.db");
    assert!(matches!(SqliteStore::open(&path, SqliteOptions::default()).await, Err(StoreError::InUse)));
    drop(store);
    assert!(SqliteStore::open(&path, SqliteOptions::default()).await.is_ok());
}

#[tokio::test]
async fn a_page_and_a_batch_of_large_values_are_short() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, SqliteOptions::default()).await;
    for n in 0..9 {
        store.commit(put(format!("k{n}"), vec![0_u8; 512 << 10])).await.unwrap();
    }
    let page = store.list(Range { prefix: "k".into(), after: None, limit: 500 }).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (2, true));
    assert_eq!(store.all("k").await.unwrap().0.len(), 9);
    drop(store);
    // From the disk, as after a restart.
    let store = open(&dir, SqliteOptions::default()).await;
    let batch = store.watch("k", 0).await.unwrap().next().await.unwrap().unwrap();
    assert_eq!((batch.changes.len(), batch.revision), (2, 2));
}

#[tokio::test]
async fn sixty_four_writers_of_one_counter_lose_no_step() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, SqliteOptions::default()).await;
    store.commit(put("n", "0")).await.unwrap();
    let writers = (0..64).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            loop {
                let entry = store.get("n").await.unwrap().unwrap();
                let next = std::str::from_utf8(&entry.value).unwrap().parse::<u32>().unwrap() + 1;
                let txn = Txn {
                    compares: vec![Compare::Revision("n".into(), entry.revision)],
                    ops: vec![Op::Put { key: "n".into(), value: next.to_string().into(), lease: None }],
                };
                if matches!(store.commit(txn).await.unwrap(), Outcome::Committed { .. }) {
                    return;
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(&store.get("n").await.unwrap().unwrap().value[..], b"64");
}

#[tokio::test]
async fn a_file_of_a_later_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let refused = SqliteStore::open(&path, SqliteOptions::default()).await.err().unwrap();
    assert!(format!("{refused:?}").contains("version 99"), "{refused:?}");
}
