//! Reading a console log: its last lines, and what comes after them, whatever is rotated meanwhile.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, file};
use crate::rotate::{self, KEPT};
use crate::watch::DirectoryWatch;

/// The most bytes that [`LogReader::next`] returns, and the step of the search for the last lines.
const PIECE: usize = 64 * 1024;

/// A place in a console log.
#[derive(Debug)]
pub struct LogReader {
    directory: PathBuf,
    current: Option<File>,
    watch: Option<DirectoryWatch>,
}

impl LogReader {
    /// Opens the console log in an instance's `directory`: its last `tail` lines, or all that is kept; with `follow`,
    /// also what comes.
    ///
    /// # Errors
    /// If a log is there and cannot be read.
    pub async fn open(directory: &Path, tail: Option<usize>, follow: bool) -> Result<Self> {
        // Watched first: what is written while we look for the beginning is not missed.
        let watch = if follow { Some(DirectoryWatch::new(directory)?) } else { None };
        let place = directory.to_owned();
        let current = blocking(directory, move || find_start(&place, tail)).await?;
        Ok(Self { directory: directory.to_owned(), current, watch })
    }

    /// The next bytes; `None` at the end, which a log that is followed has only when its instance is deleted.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let (current, place) = (self.current.take(), self.directory.clone());
            let (current, bytes) = blocking(&self.directory, move || advance(&place, current)).await?;
            self.current = current;
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
            match &mut self.watch {
                Some(watch) if self.directory.exists() => watch.changed().await?,
                _ => return Ok(None),
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    directory: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(file("read the console log in", directory))
}

/// Reads on in `current`, or in what follows it.
fn advance(directory: &Path, mut current: Option<File>) -> io::Result<(Option<File>, Vec<u8>)> {
    loop {
        // Asked before the read: once there is a successor, the current one grows no more, so that its end is the end.
        let successor = successor(directory, current.as_ref())?;
        let mut bytes = Vec::new();
        if let Some(file) = &mut current {
            file.take(PIECE as u64).read_to_end(&mut bytes)?;
        }
        match successor {
            Some(next) if bytes.is_empty() => current = Some(next),
            _ => return Ok((current, bytes)),
        }
    }
}

/// The log after `current`: the one that is one younger, or the oldest if `current` is kept no more.
fn successor(directory: &Path, current: Option<&File>) -> io::Result<Option<File>> {
    let inode = current.map(File::metadata).transpose()?.map(|meta| meta.ino());
    let mut younger = None;
    for age in 0..=KEPT {
        let Some(file) = open(directory, age)? else { continue };
        if Some(file.metadata()?.ino()) == inode {
            return Ok(younger);
        }
        younger = Some(file);
    }
    Ok(younger)
}

/// The log, and the position in it, where the last `tail` lines begin.
fn find_start(directory: &Path, tail: Option<usize>) -> io::Result<Option<File>> {
    let mut start = None;
    let mut wanted = tail.unwrap_or(usize::MAX);
    for age in 0..=KEPT {
        let Some(mut file) = open(directory, age)? else { continue };
        match last_lines(&mut file, &mut wanted)? {
            Some(position) => {
                file.seek(SeekFrom::Start(position))?;
                return Ok(Some(file));
            }
            None => {
                file.rewind()?;
                start = Some(file);
            }
        }
    }
    Ok(start)
}

/// Where the last `wanted` lines of `file` begin; `None` if it has fewer, and then they are subtracted.
fn last_lines(file: &mut File, wanted: &mut usize) -> io::Result<Option<u64>> {
    let length = file.metadata()?.len();
    let mut end = length;
    while end > 0 {
        let begin = end.saturating_sub(PIECE as u64);
        let mut piece = Vec::new();
        file.seek(SeekFrom::Start(begin))?;
        file.take(end - begin).read_to_end(&mut piece)?;
        for (index, _) in piece.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let position = begin + index as u64;
            // The newline that ends the log begins no line.
            if position + 1 == length {
                continue;
            }
            if *wanted <= 1 {
                return Ok(Some(if *wanted == 0 { length } else { position + 1 }));
            }
            *wanted -= 1;
        }
        end = begin;
    }
    if *wanted == 0 {
        return Ok(Some(length));
    }
    if length > 0 {
        *wanted -= 1;
    }
    Ok(None)
}

fn open(directory: &Path, age: usize) -> io::Result<Option<File>> {
    match File::open(rotate::path(directory, age)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// All that is kept of a console log, or its last `tail` lines, at most `limit` bytes from the beginning of those.
///
/// # Errors
/// If it cannot be read.
pub async fn read(directory: &Path, tail: Option<usize>, limit: usize) -> Result<Vec<u8>, Error> {
    let mut reader = LogReader::open(directory, tail, false).await?;
    let mut all = Vec::new();
    while let Some(bytes) = reader.next().await? {
        all.extend_from_slice(&bytes);
        if all.len() >= limit {
            all.truncate(limit);
            break;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn append(directory: &Path, text: &str) {
        let path = rotate::path(directory, 0);
        let mut log = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        log.write_all(text.as_bytes()).unwrap();
    }

    async fn tail(directory: &Path, lines: Option<usize>) -> String {
        String::from_utf8(read(directory, lines, usize::MAX).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn the_last_lines_reach_back_over_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        append(directory, "1\n2\n");
        rotate::shift(directory).unwrap();
        append(directory, "3\n4");
        assert_eq!(tail(directory, Some(1)).await, "4");
        assert_eq!(tail(directory, Some(2)).await, "3\n4");
        assert_eq!(tail(directory, Some(3)).await, "2\n3\n4");
        assert_eq!(tail(directory, Some(9)).await, "1\n2\n3\n4");
        assert_eq!(tail(directory, None).await, "1\n2\n3\n4");
        assert_eq!(tail(directory, Some(0)).await, "");
    }

    #[tokio::test]
    async fn a_log_that_is_not_there_yet_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(tail(directory.path(), None).await, "");
    }

    #[tokio::test]
    async fn a_follower_misses_nothing_when_the_log_is_rotated_under_it() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        append(directory, "one\n");
        let mut reader = LogReader::open(directory, Some(1), true).await.unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap(), b"one\n");
        append(directory, "two\n");
        rotate::shift(directory).unwrap();
        append(directory, "three\n");
        rotate::shift(directory).unwrap();
        append(directory, "four\n");
        let mut seen = Vec::new();
        while !seen.ends_with(b"four\n") {
            seen.extend(reader.next().await.unwrap().unwrap());
        }
        assert_eq!(seen, b"two\nthree\nfour\n");
    }

    #[tokio::test]
    async fn a_follower_ends_when_the_instance_is_deleted() {
        let directory = tempfile::tempdir().unwrap();
        append(directory.path(), "one\n");
        let mut reader = LogReader::open(directory.path(), Some(1), true).await.unwrap();
        assert!(reader.next().await.unwrap().is_some());
        // Not before it waits: what is gone by then is seen anyway.
        let ended = tokio::spawn(async move { reader.next().await.unwrap() });
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        directory.close().unwrap();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(20), ended).await;
        assert_eq!(ended.expect("it waits for ever").unwrap(), None);
    }
}
