//! Keeping console logs within bounds.
//!
//! `console.log` is renamed away, and QEMU is told to open it anew; in between, QEMU goes on writing to the renamed
//! file, so no byte is lost. Killed in between, we leave no `console.log`, which [`is_due`] sees.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Result, file};

/// How many rotated ones are kept.
pub(crate) const KEPT: usize = 2;

/// The log of this age: 0 is the one that is written to.
pub(crate) fn path(directory: &Path, age: usize) -> PathBuf {
    if age == 0 { directory.join("console.log") } else { directory.join(format!("console.log.{age}")) }
}

/// Whether QEMU has to open a new log: the current one is full, or was moved away.
pub(crate) fn is_due(directory: &Path, limit: u64) -> bool {
    match path(directory, 0).metadata() {
        Ok(meta) => meta.len() >= limit,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Moves every log one place on; the oldest is overwritten. Nothing is moved for a log that was moved away before.
pub(crate) fn shift(directory: &Path) -> Result<()> {
    if !path(directory, 0).exists() {
        return Ok(());
    }
    for age in (0..KEPT).rev() {
        let from = path(directory, age);
        if from.exists() {
            fs::rename(&from, path(directory, age + 1)).map_err(file("rotate", &from))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_log_goes_and_the_rest_moves_on() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["first", "second", "third", "fourth"] {
            fs::write(path(directory.path(), 0), text).unwrap();
            shift(directory.path()).unwrap();
        }
        assert!(is_due(directory.path(), u64::MAX), "moved away");
        assert_eq!(fs::read_to_string(path(directory.path(), 1)).unwrap(), "fourth");
        assert_eq!(fs::read_to_string(path(directory.path(), 2)).unwrap(), "third");
        assert!(!path(directory.path(), 3).exists());
        shift(directory.path()).unwrap();
        assert_eq!(fs::read_to_string(path(directory.path(), 1)).unwrap(), "fourth", "cut short, it is not done twice");
    }
}
