//! Where blobs live, named by the digest of their contents, and the small documents that name them.
//!
//! [`BlobStore`] and [`Documents`] ask for no more than an object store can give: an object is written in one stream,
//! appears whole under its name or not at all, is read from any place on, and is listed by how its name begins.
//! [`DirStore`] keeps both in a directory.

mod dir;

pub use dir::DirStore;

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use form_rootfs::{Algorithm, Digest};

/// A content-addressed store. All calls block.
pub trait BlobStore: Send + Sync {
    /// Starts a blob that `algorithm` names. Dropped before [`BlobWriter::commit`], it leaves nothing behind.
    fn writer_of(&self, algorithm: Algorithm) -> Result<Box<dyn BlobWriter>, StoreError>;

    /// Starts a blob that its SHA-256 names.
    fn writer(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.writer_of(Algorithm::Sha256)
    }

    /// The blob `digest` from the byte `start` on, or `None` if it is not here. Its contents are as they were written,
    /// but are not hashed again.
    fn get_from(&self, digest: &Digest, start: u64) -> Result<Option<Blob>, StoreError>;

    /// The whole blob `digest`, as [`BlobStore::get_from`].
    fn get(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        self.get_from(digest, 0)
    }

    /// What is known of the blob `digest` without reading it, or `None` if it is not here.
    fn head(&self, digest: &Digest) -> Result<Option<BlobInfo>, StoreError>;

    /// Makes the blob `digest` as young as one that was just written; says whether it is here. From then on
    /// [`BlobStore::delete`] leaves it alone for as long as it would a new one.
    fn touch(&self, digest: &Digest) -> Result<bool, StoreError>;

    /// Removes the blob `digest` for good; says whether it did. With `unused_since`, only if it was neither written nor
    /// touched after that. Who reads it at that moment reads on.
    fn delete(&self, digest: &Digest, unused_since: Option<SystemTime>) -> Result<bool, StoreError>;

    /// All blobs, in no order. What is put or deleted meanwhile may show or not.
    fn list(&self) -> Result<Box<dyn Iterator<Item = Result<BlobInfo, StoreError>> + Send>, StoreError>;

    /// Stores all that `contents` yields. With `expected`, only if it has that digest.
    fn put(&self, contents: &mut dyn Read, expected: Option<&Digest>) -> Result<BlobInfo, StoreError> {
        let mut writer = self.writer()?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = match contents.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(StoreError::Source(e)),
            };
            writer.write_all(buffer.get(..read).unwrap_or_default()).map_err(StoreError::Write)?;
        }
        writer.commit(expected)
    }
}

/// Small objects under names: parts that are joined by `/`, none of them empty, `.` or `..`. All calls block.
pub trait Documents: Send + Sync {
    /// What was last written to `name`, or `None` if there is nothing.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Replaces what is at `name`. When this returns, it survives a crash of the machine; until then there is the old or
    /// the new, whole. Of two at once, one is the last.
    fn write(&self, name: &str, contents: &[u8]) -> Result<(), StoreError>;

    /// Makes it as young as one that was just written; says whether it is here.
    fn renew(&self, name: &str) -> Result<bool, StoreError>;

    /// Removes it for good; says whether it did. With `unused_since`, only if it was neither written nor renewed after
    /// that.
    fn remove(&self, name: &str, unused_since: Option<SystemTime>) -> Result<bool, StoreError>;

    /// All whose name begins with `prefix` and a `/`, in no order.
    fn under(&self, prefix: &str) -> Result<Vec<Document>, StoreError>;
}

/// A document as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its whole name.
    pub name: String,
    /// When it was last written or renewed.
    pub modified: SystemTime,
}

/// A blob on its way into a store.
pub trait BlobWriter: Write + Send {
    /// Ends the blob. When this returns, it is on disk under its name, and survives a crash of the machine.
    ///
    /// With `expected`, fails and stores nothing if what was written has another digest. Is `expected` of another
    /// algorithm than the writer, all is read once more.
    fn commit(self: Box<Self>, expected: Option<&Digest>) -> Result<BlobInfo, StoreError>;
}

/// An open blob.
pub struct Blob {
    /// Length in bytes.
    pub size: u64,
    /// Its contents, from the first byte.
    pub reader: Box<dyn Read + Send>,
}

/// What is known of a blob without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobInfo {
    /// Digest of its contents.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory of the store failed us.
    #[error("the blob store fails at {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A blob cannot be written; the disk may be full.
    #[error("cannot write to the blob store")]
    Write(#[source] io::Error),
    /// What was to be stored cannot be read.
    #[error("the contents of the blob cannot be read")]
    Source(#[source] io::Error),
    /// What was written is not what was expected.
    #[error("the contents have the digest {found} and should have {expected}; send them again")]
    Mismatch {
        /// What the caller expected.
        expected: Box<Digest>,
        /// What came.
        found: Box<Digest>,
    },
    /// Another process has the store open.
    #[error("{} belongs to another process; stop it, or use another directory", .0.display())]
    InUse(PathBuf),
}
