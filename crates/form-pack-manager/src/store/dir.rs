use std::fs::{self, DirEntry, File, FileTimes, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use form_rootfs::{Algorithm, Digest, Hasher};
use tempfile::NamedTempFile;
use walkdir::WalkDir;

use super::{Blob, BlobInfo, BlobStore, BlobWriter, Document, Documents, StoreError};

/// Blobs and documents in a directory of one process. In it:
///
/// ```text
/// lock                       held while the store is open
/// tmp/...                    what is on its way in; swept when the store is opened
/// blobs/sha256/ab/abcd...    blobs, each whole and on disk before it gets its name
/// names/...                  documents, likewise
/// ```
#[derive(Debug, Clone)]
pub struct DirStore {
    root: Arc<Root>,
}

impl DirStore {
    /// Opens the store in `root`, makes it at need, and removes what a crash left unfinished.
    ///
    /// Fails with [`StoreError::InUse`] while another process has it open: the two would sweep each other's work.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = root.into();
        let (blobs, names, tmp) = (path.join("blobs"), path.join("names"), path.join("tmp"));
        let algorithms = [Algorithm::Sha256, Algorithm::Sha512].map(|algorithm| blobs.join(algorithm.name()));
        for dir in algorithms.iter().chain([&names, &tmp]) {
            fs::create_dir_all(dir).map_err(at(dir))?;
        }
        // The store may be new: its directories must survive a crash as its blobs do.
        for dir in blobs.ancestors().take(3).filter(|dir| !dir.as_os_str().is_empty()) {
            sync_dir(dir)?;
        }

        let lock_path = path.join("lock");
        let lock =
            OpenOptions::new().write(true).create(true).truncate(false).open(&lock_path).map_err(at(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(path)),
            Err(TryLockError::Error(source)) => return Err(StoreError::Io { path: lock_path, source }),
        }
        for entry in fs::read_dir(&tmp).map_err(at(&tmp))? {
            let leftover = entry.map_err(at(&tmp))?.path();
            fs::remove_file(&leftover).map_err(at(&leftover))?;
        }
        Ok(Self { root: Arc::new(Root { blobs, names, tmp, turn: Mutex::new(()), _lock: lock }) })
    }
}

impl BlobStore for DirStore {
    fn writer_of(&self, algorithm: Algorithm) -> Result<Box<dyn BlobWriter>, StoreError> {
        let file = self.root.temporary()?;
        Ok(Box::new(DirWriter { hashed: Hasher::with(algorithm, file), root: Arc::clone(&self.root) }))
    }

    fn get_from(&self, digest: &Digest, start: u64) -> Result<Option<Blob>, StoreError> {
        let path = self.root.path_of(digest);
        let Some(mut file) = found(File::open(&path), &path)? else { return Ok(None) };
        let size = file.metadata().map_err(at(&path))?.len();
        file.seek(SeekFrom::Start(start)).map_err(at(&path))?;
        Ok(Some(Blob { size, reader: Box::new(file) }))
    }

    fn head(&self, digest: &Digest) -> Result<Option<BlobInfo>, StoreError> {
        let path = self.root.path_of(digest);
        let metadata = found(fs::metadata(&path), &path)?;
        Ok(metadata.map(|metadata| BlobInfo { digest: *digest, size: metadata.len() }))
    }

    fn touch(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.root.renew(&self.root.path_of(digest))
    }

    fn delete(&self, digest: &Digest, unused_since: Option<SystemTime>) -> Result<bool, StoreError> {
        self.root.remove(&self.root.path_of(digest), unused_since)
    }

    fn list(&self) -> Result<Box<dyn Iterator<Item = Result<BlobInfo, StoreError>> + Send>, StoreError> {
        let files =
            |algorithm: Algorithm| {
                let base = self.root.blobs.join(algorithm.name());
                let shards = fs::read_dir(&base).map_err(at(&base))?;
                let files = shards.flat_map(|shard| -> Box<dyn Iterator<Item = io::Result<DirEntry>> + Send> {
                    match shard.and_then(|shard| fs::read_dir(shard.path())) {
                        Ok(files) => Box::new(files),
                        Err(e) => Box::new(std::iter::once(Err(e))),
                    }
                });
                Ok::<_, StoreError>(files.filter_map(move |file| {
                    file.and_then(|file| info(algorithm, &file)).map_err(at(&base)).transpose()
                }))
            };
        Ok(Box::new(files(Algorithm::Sha256)?.chain(files(Algorithm::Sha512)?)))
    }
}

impl Documents for DirStore {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.root.names.join(name);
        found(fs::read(&path), &path)
    }

    fn write(&self, name: &str, contents: &[u8]) -> Result<(), StoreError> {
        let mut file = self.root.temporary()?;
        file.write_all(contents).map_err(StoreError::Write)?;
        self.root.publish(file, &self.root.names.join(name), &self.root.names)
    }

    fn renew(&self, name: &str) -> Result<bool, StoreError> {
        self.root.renew(&self.root.names.join(name))
    }

    fn remove(&self, name: &str, unused_since: Option<SystemTime>) -> Result<bool, StoreError> {
        let path = self.root.names.join(name);
        let is_removed = self.root.remove(&path, unused_since)?;
        if is_removed {
            // A directory is there for what is in it. It refuses to go while something is.
            let _turn = self.root.turn();
            for dir in path.ancestors().skip(1).take_while(|dir| **dir != self.root.names) {
                if fs::remove_dir(dir).is_err() {
                    break;
                }
            }
        }
        Ok(is_removed)
    }

    fn under(&self, prefix: &str) -> Result<Vec<Document>, StoreError> {
        let base = self.root.names.join(prefix);
        let mut documents = Vec::new();
        for entry in WalkDir::new(&base) {
            let document = entry.and_then(|entry| {
                let Some(name) = entry.path().strip_prefix(&self.root.names).ok().and_then(Path::to_str) else {
                    return Ok(None);
                };
                let (name, metadata) = (name.to_owned(), entry.metadata()?);
                Ok(metadata.modified().ok().filter(|_| metadata.is_file()).map(|modified| Document { name, modified }))
            });
            match document {
                Ok(document) => documents.extend(document),
                // It went while we looked.
                Err(e) if e.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) => {}
                Err(e) => return Err(StoreError::Io { path: base, source: e.into() }),
            }
        }
        Ok(documents)
    }
}

/// What the file `file` holds; nothing if it is no blob, or has just been deleted.
fn info(algorithm: Algorithm, file: &DirEntry) -> io::Result<Option<BlobInfo>> {
    let Some(digest) = file.file_name().to_str().and_then(|name| algorithm.from_hex(name).ok()) else {
        return Ok(None);
    };
    match file.metadata() {
        Ok(metadata) => Ok(Some(BlobInfo { digest, size: metadata.len() })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[derive(Debug)]
struct Root {
    blobs: PathBuf,
    names: PathBuf,
    tmp: PathBuf,
    /// Whether a file is old enough to go, and its going, are two calls to the system; so are a directory's making and
    /// what is put in it. Nothing comes in between for whoever has the turn. No contents are written meanwhile.
    turn: Mutex<()>,
    _lock: File,
}

impl Root {
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of 256 directories, so that none of them grows slow.
    fn shard_of(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.algorithm().name()).join(digest.hex().chars().take(2).collect::<String>())
    }

    fn path_of(&self, digest: &Digest) -> PathBuf {
        self.shard_of(digest).join(digest.hex())
    }

    fn temporary(&self) -> Result<NamedTempFile, StoreError> {
        NamedTempFile::new_in(&self.tmp).map_err(at(&self.tmp))
    }

    /// Gives `file` the name `path`, whose directories below `base` are made at need. When this returns, both contents
    /// and name survive a crash of the machine.
    fn publish(&self, file: NamedTempFile, path: &Path, base: &Path) -> Result<(), StoreError> {
        file.as_file().sync_data().map_err(at(file.path()))?;
        // Of an upload that took its time, the last byte may have come long ago.
        file.as_file().set_modified(SystemTime::now()).map_err(at(file.path()))?;
        let dir = path.parent().unwrap_or(base);
        {
            let _turn = self.turn();
            let missing: Vec<&Path> = dir.ancestors().take_while(|dir| *dir != base && !dir.exists()).collect();
            for dir in missing.into_iter().rev() {
                fs::create_dir(dir).map_err(at(dir))?;
                // Within the turn: who finds the directory may rely on it.
                sync_dir(dir.parent().unwrap_or(base))?;
            }
            // Over what is there already, too: the one that put it may not have reached its sync yet.
            file.persist(path).map_err(|e| StoreError::Io { path: path.to_owned(), source: e.error })?;
        }
        sync_dir(dir)
    }

    fn renew(&self, path: &Path) -> Result<bool, StoreError> {
        let _turn = self.turn();
        let Some(file) = found(File::open(path), path)? else { return Ok(false) };
        file.set_times(FileTimes::new().set_modified(SystemTime::now())).map_err(at(path))?;
        Ok(true)
    }

    fn remove(&self, path: &Path, unused_since: Option<SystemTime>) -> Result<bool, StoreError> {
        {
            let _turn = self.turn();
            if let Some(unused_since) = unused_since {
                let Some(metadata) = found(fs::metadata(path), path)? else { return Ok(false) };
                if metadata.modified().map_err(at(path))? > unused_since {
                    return Ok(false);
                }
            }
            if found(fs::remove_file(path), path)?.is_none() {
                return Ok(false);
            }
        }
        match path.parent().map(sync_dir) {
            // Somebody removed the empty directory already.
            Some(Err(StoreError::Io { source, .. })) if source.kind() == io::ErrorKind::NotFound => Ok(true),
            Some(Err(error)) => Err(error),
            _ => Ok(true),
        }
    }
}

struct DirWriter {
    hashed: Hasher<NamedTempFile>,
    root: Arc<Root>,
}

impl Write for DirWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.hashed.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hashed.flush()
    }
}

impl BlobWriter for DirWriter {
    fn commit(self: Box<Self>, expected: Option<&Digest>) -> Result<BlobInfo, StoreError> {
        let (mut file, mut digest, size) = self.hashed.finish();
        if let Some(expected) = expected.filter(|expected| expected.algorithm() != digest.algorithm()) {
            file.rewind().map_err(at(file.path()))?;
            let mut again = Hasher::with(expected.algorithm(), io::sink());
            io::copy(file.as_file_mut(), &mut again).map_err(at(file.path()))?;
            digest = again.finish().1;
        }
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(StoreError::Mismatch { expected: Box::new(*expected), found: Box::new(digest) });
        }
        self.root.publish(file, &self.root.path_of(&digest), &self.root.blobs)?;
        Ok(BlobInfo { digest, size })
    }
}

/// What there is, where there may be nothing.
fn found<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, StoreError> {
    match result {
        Ok(found) => Ok(Some(found)),
        // A name below what is a document, or a document that is a directory of others: neither is one.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(StoreError::Io { path: path.to_owned(), source }),
    }
}

/// Makes the names in `dir` survive a crash of the machine.
fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
}

fn at(path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn store() -> (tempfile::TempDir, DirStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = DirStore::open(dir.path()).unwrap();
        (dir, store)
    }

    fn digests(store: &DirStore) -> Vec<Digest> {
        store.list().unwrap().map(|info| info.unwrap().digest).collect()
    }

    #[test]
    fn a_blob_is_read_listed_and_deleted_by_its_digest() {
        let (dir, store) = store();
        let info = store.put(&mut &b"hello"[..], None).unwrap();
        assert_eq!(info, BlobInfo { digest: Digest::of(b"hello"), size: 5 });
        assert!(dir.path().join("blobs/sha256/2c").join(info.digest.hex()).exists());

        let mut blob = store.get(&info.digest).unwrap().unwrap();
        assert_eq!(blob.size, 5);
        assert_eq!(digests(&store), [info.digest]);
        assert!(store.delete(&info.digest, None).unwrap());
        assert!(!store.delete(&info.digest, None).unwrap());
        assert!(store.get(&info.digest).unwrap().is_none());
        assert_eq!(digests(&store), []);

        let mut text = String::new();
        blob.reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_blob_that_is_not_what_was_expected_is_not_kept() {
        let (dir, store) = store();
        let expected = Digest::of(b"something else");
        let put = store.put(&mut &b"hello"[..], Some(&expected));
        assert!(matches!(put, Err(StoreError::Mismatch { .. })));
        assert_eq!(digests(&store), []);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_writer_that_is_dropped_leaves_nothing() {
        let (dir, store) = store();
        let mut writer = store.writer().unwrap();
        writer.write_all(b"half").unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn threads_that_put_the_same_blob_at_once_all_succeed() {
        let (_dir, store) = store();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| store.put(&mut &b"same"[..], Some(&Digest::of(b"same"))).unwrap());
            }
        });
        assert_eq!(digests(&store), [Digest::of(b"same")]);
    }

    #[test]
    fn a_blob_of_the_other_algorithm_is_kept_under_its_own_name_whatever_it_was_hashed_by() {
        let (_dir, store) = store();
        let expected = Algorithm::Sha512.digest(b"hello");
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut writer = store.writer_of(algorithm).unwrap();
            writer.write_all(b"hello").unwrap();
            assert_eq!(writer.commit(Some(&expected)).unwrap().digest, expected);
        }
        assert_eq!(digests(&store), [expected]);
        let mut text = String::new();
        store.get_from(&expected, 3).unwrap().unwrap().reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "lo");
    }

    #[test]
    fn what_was_touched_is_as_young_as_what_is_new() {
        let (_dir, store) = store();
        let digest = store.put(&mut &b"hello"[..], None).unwrap().digest;
        store.write("a/tag", b"one").unwrap();
        let before = SystemTime::now();
        assert!(store.touch(&digest).unwrap() && store.renew("a/tag").unwrap());
        assert!(!store.delete(&digest, Some(before)).unwrap() && !store.remove("a/tag", Some(before)).unwrap());
        let after = SystemTime::now();
        assert!(store.delete(&digest, Some(after)).unwrap() && store.remove("a/tag", Some(after)).unwrap());
        assert!(!store.touch(&digest).unwrap() && !store.renew("a/tag").unwrap());
    }

    #[test]
    fn a_document_is_read_replaced_listed_and_removed_by_its_name() {
        let (dir, store) = store();
        assert_eq!(store.read("p/name/tag").unwrap(), None);
        for contents in [&b"one"[..], b"two"] {
            store.write("p/name/tag", contents).unwrap();
            assert_eq!(store.read("p/name/tag").unwrap().unwrap(), contents);
        }
        store.write("p/other", b"").unwrap();
        let names = |prefix: &str| store.under(prefix).unwrap().into_iter().map(|found| found.name).collect::<Vec<_>>();
        assert_eq!(names("p/name"), ["p/name/tag"]);
        assert_eq!(names("p").len(), 2);
        assert!(names("q").is_empty());
        for no_document in ["p", "p/other/below"] {
            assert_eq!(store.read(no_document).unwrap(), None, "{no_document}");
        }
        assert!(store.remove("p/name/tag", None).unwrap());
        assert!(!store.remove("p/name/tag", None).unwrap());
        assert!(!dir.path().join("names/p/name").exists(), "what is empty goes");
        assert_eq!(names("p"), ["p/other"]);
    }

    #[test]
    fn threads_that_write_and_remove_one_name_leave_it_whole_or_not_at_all() {
        let (_dir, store) = store();
        std::thread::scope(|scope| {
            for byte in [b'a', b'b', b'c'] {
                let store = &store;
                scope.spawn(move || {
                    for _ in 0..50 {
                        store.write("deep/in/some/name", &[byte; 3000]).unwrap();
                        store.remove("deep/in/some/name", None).unwrap();
                        if let Some(found) = store.read("deep/in/some/name").unwrap() {
                            assert!(found.len() == 3000 && found.iter().all(|byte| *byte == found[0]));
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_store_has_one_owner() {
        let (dir, store) = store();
        assert!(matches!(DirStore::open(dir.path()), Err(StoreError::InUse(_))));
        drop(store);
        DirStore::open(dir.path()).unwrap();
    }
}
