//! What was last known of the cluster, on disk: for a start while form-state is away.
//!
//! It is a copy, and nothing hangs on it: lost or broken, it is made anew from form-state. So it is written without
//! waiting for the disk, and by one thread for all.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use form_types::v1::Resource;
use form_types::{Kind, Object};
use prost::Message as _;
use rusqlite::{Connection, params};
use tokio::sync::mpsc;

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = OFF;
    CREATE TABLE IF NOT EXISTS known (
        kind TEXT NOT NULL, project TEXT NOT NULL, name TEXT NOT NULL, resource BLOB NOT NULL,
        PRIMARY KEY (kind, project, name)
    ) WITHOUT ROWID;";

/// Changes that wait for the disk; whoever has one more waits with them.
const WAITING: usize = 1024;

#[derive(Debug, thiserror::Error)]
#[error("what was last known of the cluster, {}", .path.display())]
pub struct KnownError {
    path: PathBuf,
    source: rusqlite::Error,
}

/// The way to the thread that writes.
#[derive(Clone, Debug)]
pub(crate) struct Known(mpsc::Sender<Change>);

#[derive(Debug)]
enum Change {
    Put(Box<Resource>),
    Gone {
        kind: &'static str,
        project: String,
        name: String,
    },
    /// Of this kind, there are no others.
    Only {
        kind: &'static str,
        there: HashSet<(String, String)>,
    },
}

impl Known {
    /// All that was known, and the way to keep it so.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<Resource>), KnownError> {
        let fail = |source| KnownError { path: path.to_owned(), source };
        let (connection, resources) = match read(path) {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what was last known cannot be read; it is made anew");
                for file in ["", "-wal", "-shm"] {
                    let mut name = path.as_os_str().to_owned();
                    name.push(file);
                    // What cannot be removed is found when it is opened again.
                    let _ = std::fs::remove_file(name);
                }
                read(path).map_err(fail)?
            }
        };
        let (sender, changes) = mpsc::channel(WAITING);
        std::thread::spawn(move || write(connection, changes));
        Ok((Self(sender), resources))
    }

    pub(crate) async fn put<K: Kind>(&self, object: Object<K>) {
        self.send(Change::Put(Box::new(object.into()))).await;
    }

    pub(crate) async fn gone<K: Kind>(&self, project: &str, name: &str) {
        self.send(Change::Gone { kind: K::INFO.name, project: project.to_owned(), name: name.to_owned() }).await;
    }

    pub(crate) async fn only<K: Kind>(&self, all: &[Object<K>]) {
        let there = all.iter().map(|object| (object.meta.project.clone(), object.meta.name.clone())).collect();
        self.send(Change::Only { kind: K::INFO.name, there }).await;
    }

    async fn send(&self, change: Change) {
        // The thread ends only with us, or with a disk that takes nothing more, and it has said so.
        let _ = self.0.send(change).await;
    }
}

fn read(path: &Path) -> Result<(Connection, Vec<Resource>), rusqlite::Error> {
    let connection = Connection::open(path)?;
    connection.execute_batch(SCHEMA)?;
    let blobs: Vec<Vec<u8>> =
        connection.prepare("SELECT resource FROM known")?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    // One that an older formnet wrote in another way is told anew.
    let resources = blobs.iter().filter_map(|blob| Resource::decode(blob.as_slice()).ok()).collect();
    Ok((connection, resources))
}

fn write(mut connection: Connection, mut changes: mpsc::Receiver<Change>) {
    let mut batch = Vec::new();
    while let Some(first) = changes.blocking_recv() {
        batch.push(first);
        while let Ok(next) = changes.try_recv() {
            batch.push(next);
        }
        if let Err(error) = commit(&mut connection, batch.drain(..)) {
            tracing::warn!(%error, "what is known of the cluster cannot be kept on disk");
        }
    }
}

fn commit(connection: &mut Connection, batch: impl Iterator<Item = Change>) -> Result<(), rusqlite::Error> {
    let transaction = connection.transaction()?;
    for change in batch {
        match change {
            Change::Put(resource) => {
                let sql = "INSERT OR REPLACE INTO known (kind, project, name, resource) VALUES (?1, ?2, ?3, ?4)";
                let row = params![resource.kind, resource.project, resource.name, resource.encode_to_vec()];
                transaction.prepare_cached(sql)?.execute(row)?;
            }
            Change::Gone { kind, project, name } => {
                let sql = "DELETE FROM known WHERE kind = ?1 AND project = ?2 AND name = ?3";
                transaction.prepare_cached(sql)?.execute(params![kind, project, name])?;
            }
            Change::Only { kind, there } => {
                let names: Vec<(String, String)> = transaction
                    .prepare_cached("SELECT project, name FROM known WHERE kind = ?1")?
                    .query_map([kind], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect::<Result<_, _>>()?;
                for (project, name) in names.iter().filter(|name| !there.contains(name)) {
                    let sql = "DELETE FROM known WHERE kind = ?1 AND project = ?2 AND name = ?3";
                    transaction.prepare_cached(sql)?.execute(params![kind, project, name])?;
                }
            }
        }
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use form_types::kinds;
    use form_types::v1::PeerSpec;

    use super::*;

    fn peer(name: &str) -> Object<kinds::Peer> {
        Object::new("p", name, PeerSpec { description: format!("the laptop {name}"), ..Default::default() })
    }

    /// Opens it again and again until it has these names: the thread is behind by a moment.
    async fn eventually(path: &Path, wanted: &[&str]) {
        loop {
            let (_, resources) = Known::open(path).unwrap();
            let mut names: Vec<&str> = resources.iter().map(|resource| resource.name.as_str()).collect();
            names.sort_unstable();
            if names == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn what_was_known_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known.db");
        let (known, before) = Known::open(&path).unwrap();
        assert!(before.is_empty());
        for name in ["a", "b", "c"] {
            known.put(peer(name)).await;
        }
        known.gone::<kinds::Peer>("p", "b").await;
        eventually(&path, &["a", "c"]).await;
        known.only::<kinds::Peer>(&[peer("c")]).await;
        eventually(&path, &["c"]).await;
        known.only::<kinds::Node>(&[]).await;
        known.put(peer("d")).await;
        eventually(&path, &["c", "d"]).await;
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known.db");
        std::fs::write(&path, "something else, and more of it than a header has bytes".repeat(100)).unwrap();
        let (known, before) = Known::open(&path).unwrap();
        assert!(before.is_empty());
        known.put(peer("a")).await;
        eventually(&path, &["a"]).await;
    }
}
