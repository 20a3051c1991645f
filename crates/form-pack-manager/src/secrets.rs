//! What a build is given to know and is not to keep: in memory only, for one build, for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// The most bytes of one secret: a key, a certificate, a credentials file.
pub(crate) const MOST_BYTES: usize = 512 << 10;
/// The most that one project has waiting.
const MOST: usize = 64;
/// How long one waits for its build.
const LIFE: Duration = Duration::from_secs(3600);

#[derive(Clone, Default)]
pub(crate) struct Secrets(Arc<Mutex<HashMap<String, Secret>>>);

struct Secret {
    project: String,
    contents: Vec<u8>,
    until: Instant,
}

impl Secrets {
    /// Keeps it; answers with its handle, or `None` if the project has too many.
    pub(crate) fn put(&self, project: &str, contents: Vec<u8>) -> Option<String> {
        let mut secrets = self.all();
        let now = Instant::now();
        secrets.retain(|_, secret| secret.until > now);
        if secrets.values().filter(|secret| secret.project == project).count() >= MOST {
            return None;
        }
        let handle = Uuid::new_v4().simple().to_string();
        let until = now.checked_add(LIFE)?;
        secrets.insert(handle.clone(), Secret { project: project.to_owned(), contents, until });
        Some(handle)
    }

    /// What the project put under this handle.
    pub(crate) fn get(&self, project: &str, handle: &str) -> Option<Vec<u8>> {
        let secrets = self.all();
        let secret = secrets.get(handle).filter(|secret| secret.project == project && secret.until > Instant::now());
        secret.map(|secret| secret.contents.clone())
    }

    pub(crate) fn forget<'h>(&self, handles: impl IntoIterator<Item = &'h String>) {
        let mut secrets = self.all();
        for handle in handles {
            secrets.remove(handle);
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Secret>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_for_its_project_and_for_one_build() {
        let secrets = Secrets::default();
        let handle = secrets.put("mine", b"x".to_vec()).unwrap();
        assert_eq!(secrets.get("mine", &handle), Some(b"x".to_vec()));
        assert_eq!(secrets.get("other", &handle), None);
        secrets.forget([&handle]);
        assert_eq!(secrets.get("mine", &handle), None);
        for _ in 0..MOST {
            assert!(secrets.put("mine", Vec::new()).is_some());
        }
        assert!(secrets.put("mine", Vec::new()).is_none() && secrets.put("other", Vec::new()).is_some());
    }
}
