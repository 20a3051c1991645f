//! What builds write, a file each, and who follows it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The most bytes of one log.
const MOST: u64 = 16 << 20;
/// Of a failed step's output, what its build's message shows.
const TAIL: usize = 4 << 10;

/// All logs; one that is being written tells who follows it.
#[derive(Clone)]
pub(crate) struct Logs {
    dir: PathBuf,
    open: Arc<Mutex<HashMap<String, watch::Sender<u64>>>>,
    /// Changes when a log is begun.
    begun: watch::Sender<()>,
}

/// A log that is being written; dropped, it has ended.
pub(crate) struct Log {
    logs: Logs,
    uid: String,
    file: File,
    written: u64,
    tail: Vec<u8>,
}

impl Logs {
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir, open: Arc::default(), begun: watch::channel(()).0 })
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.dir.join(uid.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_"))
    }

    /// Begins the log of the build `uid` anew.
    pub(crate) fn begin(&self, uid: &str) -> io::Result<Log> {
        let file = File::create(self.path(uid))?;
        self.opened().insert(uid.to_owned(), watch::channel(0).0);
        self.begun.send_replace(());
        Ok(Log { logs: self.clone(), uid: uid.to_owned(), file, written: 0, tail: Vec::new() })
    }

    /// Changes when any log is begun.
    pub(crate) fn begun(&self) -> watch::Receiver<()> {
        self.begun.subscribe()
    }

    /// The log of the build `uid`, if it has one, and how long it is, if it grows.
    pub(crate) fn read(&self, uid: &str) -> io::Result<Option<(File, Option<watch::Receiver<u64>>)>> {
        let growing = self.opened().get(uid).map(watch::Sender::subscribe);
        match File::open(self.path(uid)) {
            Ok(file) => Ok(Some((file, growing))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Removes the logs of builds that are not among `uids`.
    pub(crate) fn retain(&self, uids: &[&str]) -> io::Result<()> {
        let kept: Vec<PathBuf> = uids.iter().map(|uid| self.path(uid)).collect();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if !kept.contains(&path) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn opened(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<u64>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Writes what fits; a full disk costs a build its log and not itself.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let old = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..old);
        let left = MOST.saturating_sub(self.written);
        if left == 0 {
            return;
        }
        let fits = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        if self.file.write_all(bytes.get(..fits).unwrap_or_default()).is_ok() {
            self.written = self.written.saturating_add(fits as u64);
        }
        if self.written >= MOST {
            let _ = self.file.write_all(b"\n[the log is full; the build goes on]\n");
        }
        if let Some(sender) = self.logs.opened().get(&self.uid) {
            sender.send_replace(self.written);
        }
    }

    /// Forgets what the step before wrote.
    pub(crate) fn begin_step(&mut self) {
        self.tail.clear();
    }

    /// The end of what the last step wrote.
    pub(crate) fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail).trim().to_owned()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.logs.opened().remove(&self.uid);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_log_is_bounded_and_keeps_the_end_of_a_step_for_the_message() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path().join("logs")).unwrap();
        let mut log = logs.begin("one").unwrap();
        let line = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            log.write(&line);
        }
        log.begin_step();
        log.write(b"the end\n");
        assert_eq!(log.tail(), "the end");
        let (mut file, growing) = logs.read("one").unwrap().unwrap();
        assert!(growing.is_some());
        let mut text = Vec::new();
        file.read_to_end(&mut text).unwrap();
        assert!(text.len() < (16 << 20) + 100 && text.ends_with(b"goes on]\n"));
        drop(log);
        assert!(logs.read("one").unwrap().unwrap().1.is_none());
        logs.retain(&["two"]).unwrap();
        assert!(logs.read("one").unwrap().is_none());
    }
}
