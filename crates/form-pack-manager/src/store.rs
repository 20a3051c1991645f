//! Where blobs live, named by the digest of their contents.
//!
//! [`BlobStore`] asks for no more than an object store can give: a blob is written in one stream, appears whole under
//! its name or not at all, and is read in one stream. [`DirStore`] keeps blobs in a directory.

mod dir;

pub use dir::DirStore;

use std::io::{self, Read, Write};
use std::path::PathBuf;

use form_rootfs::Digest;

/// A content-addressed store. All calls block.
pub trait BlobStore: Send + Sync {
    /// Starts a blob. Dropped before [`BlobWriter::commit`], it leaves nothing behind.
    fn writer(&self) -> Result<Box<dyn BlobWriter>, StoreError>;

    /// The blob `digest`, or `None` if it is not here. Its contents are as they were written, but are not hashed again.
    fn get(&self, digest: &Digest) -> Result<Option<Blob>, StoreError>;

    /// Removes the blob `digest` for good; says whether it was here. Who reads it at that moment reads on.
    fn delete(&self, digest: &Digest) -> Result<bool, StoreError>;

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

/// A blob on its way into a store.
pub trait BlobWriter: Write + Send {
    /// Ends the blob. When this returns, it is on disk under its name, and survives a crash of the machine.
    ///
    /// With `expected`, fails and stores nothing if what was written has another digest.
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
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// Another process has the store open.
    #[error("{} belongs to another process; stop it, or use another directory", .0.display())]
    InUse(PathBuf),
}
