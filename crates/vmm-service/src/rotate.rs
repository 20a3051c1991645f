//! Keeping console logs within bounds.
//!
//! QEMU is given a new file first, [`next`], and goes on there; then the logs change their names, [`shift`]. So a log that
//! has a successor grows no more, and no byte is lost. Killed in between, we leave `console.next`, which [`is_due`] sees,
//! and all of it is done once more: to be given the same file again changes nothing for QEMU.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Result, file};
use crate::store::{absent_is_fine, append_to};

/// How many rotated ones are kept.
pub(crate) const KEPT: usize = 2;

/// The log of this age: 0 is the one that is written to.
pub(crate) fn path(directory: &Path, age: usize) -> PathBuf {
    if age == 0 { directory.join("console.log") } else { directory.join(format!("console.log.{age}")) }
}

/// Whether QEMU has to go on with a new log: the current one is full or gone, or a change was cut short.
pub(crate) fn is_due(directory: &Path, limit: u64) -> bool {
    if next_path(directory).exists() {
        return true;
    }
    match path(directory, 0).metadata() {
        Ok(meta) => meta.len() >= limit,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// The log that QEMU is to go on with.
pub(crate) fn next(directory: &Path) -> Result<File> {
    append_to(&next_path(directory))
}

/// Moves every log one place on; the oldest is overwritten. What was cut short is done to its end, and nothing twice.
pub(crate) fn shift(directory: &Path) -> Result<()> {
    if path(directory, 0).exists() {
        for age in (0..KEPT).rev() {
            let from = path(directory, age);
            if from.exists() {
                fs::rename(&from, path(directory, age + 1)).map_err(file("rotate", &from))?;
            }
        }
    }
    finish(directory)
}

/// The end of a change that was cut short before QEMU ended.
pub(crate) fn complete(directory: &Path) -> Result<()> {
    if next_path(directory).exists() { shift(directory) } else { Ok(()) }
}

fn finish(directory: &Path) -> Result<()> {
    let next = next_path(directory);
    fs::rename(&next, path(directory, 0)).or_else(absent_is_fine).map_err(file("rotate", &next))
}

fn next_path(directory: &Path) -> PathBuf {
    directory.join("console.next")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

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

    #[test]
    fn a_change_that_was_cut_short_is_seen_and_done_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        fs::write(path(directory, 0), "old").unwrap();
        assert!(!is_due(directory, 100));
        next(directory).unwrap().write_all(b"new").unwrap();
        assert!(is_due(directory, 100));
        next(directory).unwrap().write_all(b"er").unwrap();
        complete(directory).unwrap();
        assert_eq!(fs::read_to_string(path(directory, 0)).unwrap(), "newer");
        assert_eq!(fs::read_to_string(path(directory, 1)).unwrap(), "old");
        assert!(!is_due(directory, 100));
        complete(directory).unwrap();
        assert_eq!(fs::read_to_string(path(directory, 0)).unwrap(), "newer", "once");
    }
}
