//! What a machine's directory keeps, written by [`form_service::file`].

use std::io;
use std::path::Path;

use form_service::file::replace;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result, file};

/// Replaces `path`, for its owner alone.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, 0o600).map_err(file("write", path))
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
