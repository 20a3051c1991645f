//! Files that are there whole, or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result, file};

/// How the names of files begin that are not whole yet. The rest is random: whoever wrote one may have been killed, and
/// what it had started (qemu-img) may still write.
pub(crate) const TEMPORARY: &str = ".new-";

/// Replaces `path`. When this returns, the new content survives a loss of power; until then, the old one does.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let replace = || -> io::Result<()> {
        let mut temporary = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(directory)?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(path)?;
        sync_directory(directory)
    };
    replace().map_err(file("write", path))
}

/// As [`write`], of a value's JSON.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|source| Error::Damaged { path: path.to_owned(), source })?;
    write(path, &bytes)
}

/// Reads what [`write_json`] wrote; `None` if it never did.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file("read", path)(error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::Damaged { path: path.to_owned(), source })
}

/// Makes the names in `directory` durable: a rename is only a promise until then.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
