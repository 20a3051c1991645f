//! Secrets come from files that only their owner can read; never from argv, never into a log.

use std::fmt;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::file;

/// A text that is wiped when dropped and never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself: for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("secret file {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("secret file {path} can be read by others (mode {mode:o}); run: chmod 600 {path}")]
    Open { path: PathBuf, mode: u32 },
    #[error("secret file {path} is larger than {MOST_BYTES} bytes")]
    Large { path: PathBuf },
}

const MOST_BYTES: u64 = 64 * 1024;

/// Reads a secret, without the line's end. A file that others can read is refused.
pub fn read(path: &Path) -> Result<Secret, SecretError> {
    let fail = |source| SecretError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mode = file.metadata().map_err(fail)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretError::Open { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(SecretError::Large { path: path.to_owned() });
    }
    Ok(Secret::new(text.trim_end().to_owned()))
}

/// Writes a secret so that at every instant there is the old file or the new one, and only its owner can read either.
pub fn write(path: &Path, secret: &str) -> io::Result<()> {
    file::replace(path, secret.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_secret_is_read_back_and_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write(&path, "one\n").unwrap();
        write(&path, "two\n").unwrap();
        let secret = read(&path).unwrap();
        assert_eq!(secret.reveal(), "two");
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        file::replace(&path, b"x", 0o644).unwrap();
        let said = read(&path).unwrap_err().to_string();
        assert!(said.contains("chmod 600"), "{said}");
    }
}
