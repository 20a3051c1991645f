use std::fs::{self, DirEntry, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use form_rootfs::{Digest, Hasher};
use tempfile::NamedTempFile;

use super::{Blob, BlobInfo, BlobStore, BlobWriter, StoreError};

/// Blobs in a directory of one process.
///
/// ```text
/// ROOT/lock                       held while the store is open
/// ROOT/tmp/...                    blobs on their way in; swept when the store is opened
/// ROOT/blobs/sha256/ab/abcd...    blobs, each whole and on disk before it gets its name
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
        let blobs = path.join("blobs/sha256");
        let tmp = path.join("tmp");
        for dir in [&blobs, &tmp] {
            fs::create_dir_all(dir).map_err(at(dir))?;
        }
        // The store may be new: its directories must survive a crash as its blobs do.
        for dir in blobs.ancestors().skip(1).take(3).filter(|dir| !dir.as_os_str().is_empty()) {
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
        Ok(Self { root: Arc::new(Root { blobs, tmp, _lock: lock }) })
    }
}

impl BlobStore for DirStore {
    fn writer(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        let file = NamedTempFile::new_in(&self.root.tmp).map_err(at(&self.root.tmp))?;
        Ok(Box::new(DirWriter { hashed: Hasher::new(file), root: Arc::clone(&self.root) }))
    }

    fn get(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let path = self.root.path_of(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        let size = file.metadata().map_err(at(&path))?.len();
        Ok(Some(Blob { size, reader: Box::new(file) }))
    }

    fn delete(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.root.path_of(digest);
        match fs::remove_file(&path) {
            Ok(()) => {
                sync_dir(&self.root.shard_of(digest))?;
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    fn list(&self) -> Result<Box<dyn Iterator<Item = Result<BlobInfo, StoreError>> + Send>, StoreError> {
        let base = self.root.blobs.clone();
        let shards = fs::read_dir(&base).map_err(at(&base))?;
        let files = shards.flat_map(|shard| -> Box<dyn Iterator<Item = io::Result<DirEntry>> + Send> {
            match shard.and_then(|shard| fs::read_dir(shard.path())) {
                Ok(files) => Box::new(files),
                Err(e) => Box::new(std::iter::once(Err(e))),
            }
        });
        Ok(Box::new(files.filter_map(move |file| file.and_then(|file| info(&file)).map_err(at(&base)).transpose())))
    }
}

/// What the file `file` holds; nothing if it is no blob, or has just been deleted.
fn info(file: &DirEntry) -> io::Result<Option<BlobInfo>> {
    let Some(digest) = file.file_name().to_str().and_then(|name| Digest::from_hex(name).ok()) else {
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
    tmp: PathBuf,
    _lock: File,
}

impl Root {
    /// One of 256 directories, so that none of them grows slow.
    fn shard_of(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex().chars().take(2).collect::<String>())
    }

    fn path_of(&self, digest: &Digest) -> PathBuf {
        self.shard_of(digest).join(digest.hex())
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
        let (file, digest, size) = self.hashed.finish();
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(StoreError::Mismatch { expected: *expected, found: digest });
        }
        file.as_file().sync_data().map_err(at(file.path()))?;

        let shard = self.root.shard_of(&digest);
        match fs::create_dir(&shard) {
            Ok(()) => sync_dir(&self.root.blobs)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(StoreError::Io { path: shard, source }),
        }
        let path = self.root.path_of(&digest);
        // Over a blob that is here already, too: the one that put it may not have reached its sync yet.
        file.persist(&path).map_err(|e| StoreError::Io { path: path.clone(), source: e.error })?;
        sync_dir(&shard)?;
        Ok(BlobInfo { digest, size })
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
        assert!(store.delete(&info.digest).unwrap());
        assert!(!store.delete(&info.digest).unwrap());
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
    fn a_store_has_one_owner() {
        let (dir, store) = store();
        assert!(matches!(DirStore::open(dir.path()), Err(StoreError::InUse(_))));
        drop(store);
        DirStore::open(dir.path()).unwrap();
    }
}
