//! Whether a service can do its work, and what it waits for where it cannot.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// The open waits of one service. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Health {
    waits: Arc<Mutex<BTreeMap<&'static str, String>>>,
    ready: watch::Sender<bool>,
}

impl Default for Health {
    fn default() -> Self {
        Self { waits: Arc::default(), ready: watch::Sender::new(true) }
    }
}

impl Health {
    /// Not ready, for the reason of `what`, until [`Health::done`] is called with the same `what`.
    pub fn wait_for(&self, what: &'static str, why: impl Into<String>) {
        self.change(|waits| {
            waits.insert(what, why.into());
        });
    }

    /// What was waited for is there.
    pub fn done(&self, what: &'static str) {
        self.change(|waits| {
            waits.remove(what);
        });
    }

    /// What is waited for, and why; empty: ready.
    pub fn waits(&self) -> BTreeMap<&'static str, String> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns when nothing is waited for.
    pub async fn ready(&self) {
        // The sender lives in self, so the wait cannot fail.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<&'static str, String>)) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut waits);
        self.ready.send_replace(waits.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_means_that_nothing_is_waited_for() {
        let health = Health::default();
        health.wait_for("state", "no connection yet");
        health.wait_for("zones", "the first list has not come");
        assert_eq!(health.waits().len(), 2);
        health.done("state");
        assert_eq!(health.waits()["zones"], "the first list has not come");
        let other = health.clone();
        let ready = tokio::spawn(async move { other.ready().await });
        health.done("zones");
        ready.await.unwrap();
    }
}
