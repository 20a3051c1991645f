//! This node's key. It is made here, and only its public half ever leaves.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::Result;
use crate::tunnel::PrivateKey;

const FILE: &str = "mesh.key";

pub(crate) struct Keys {
    path: PathBuf,
    current: PrivateKey,
}

impl Keys {
    /// The key in `dir`, or a new one.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let current = PrivateKey::load_or_create(&path)?;
        Ok(Self { path, current })
    }

    pub(crate) fn current(&self) -> &PrivateKey {
        &self.current
    }

    /// Since when it is this one.
    pub(crate) fn since(&self) -> SystemTime {
        std::fs::metadata(&self.path).and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Whether it is older than `days`. A clock that was put back does not make it so.
    pub(crate) fn is_old(&self, days: u32, now: SystemTime) -> bool {
        let most = Duration::from_secs(u64::from(days) * 86_400);
        days > 0 && now.duration_since(self.since()).is_ok_and(|age| age > most)
    }

    /// Another key, on disk before anybody hears of it.
    pub(crate) fn renew(&mut self) -> Result<&PrivateKey> {
        let next = PrivateKey::generate();
        next.save(&self.path)?;
        self.current = next;
        Ok(&self.current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_until_it_is_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = Keys::open(dir.path()).unwrap();
        let first = keys.current().public();
        assert_eq!(Keys::open(dir.path()).unwrap().current().public(), first);
        let day = Duration::from_secs(86_400);
        assert!(!keys.is_old(2, SystemTime::now() + day));
        assert!(keys.is_old(2, SystemTime::now() + 3 * day));
        assert!(!keys.is_old(0, SystemTime::now() + 3000 * day), "0 is never");
        let second = keys.renew().unwrap().public();
        assert_ne!(second, first);
        assert_eq!(Keys::open(dir.path()).unwrap().current().public(), second);
    }
}
