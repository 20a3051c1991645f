//! A node that was removed is cut: the certificates that its services had until then open nothing any more.
//!
//! What is remembered of it is when it was removed. A machine that joins again under its name gets certificates that are
//! younger, and those count. All of it is in memory, as the store's watch tells it, so that asking costs nothing.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use form_service::identity::SERVICE_VALID;
use futures::StreamExt as _;

use super::Registry;
use crate::store::{Entry, Op, Txn};
use crate::{Error, Identity, keys};

/// When nodes were removed.
pub(super) type Removed = HashMap<String, SystemTime>;

/// Plans for the store that `node` was removed now.
pub(super) fn op(node: &str) -> Op {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Certificates know whole seconds.
    Op::Put { key: keys::removed(node), value: now.as_secs().to_string().into(), lease: None }
}

impl Registry {
    /// Refuses a service of a node that was removed after the service's certificate was made.
    pub(crate) fn let_in(&self, who: Identity) -> Result<Identity, Error> {
        if is_barred(&self.removed.borrow(), &who) { Err(refusal(&who)) } else { Ok(who) }
    }

    /// Returns when the node of `who` is removed.
    pub(crate) async fn until_removed(&self, who: &Identity) -> Error {
        let mut removed = self.removed.subscribe();
        // An error: this registry, which holds the other end, is gone.
        let _ = removed.wait_for(|removed| is_barred(removed, who)).await;
        refusal(who)
    }

    /// From when on a certificate for `node` that is made at `now` counts.
    pub(super) async fn counts_from(&self, node: &str, now: SystemTime) -> Result<SystemTime, Error> {
        let removed = self.store.get(&keys::removed(node)).await?.and_then(|entry| time(&entry));
        let after = removed.and_then(|at| at.checked_add(Duration::from_secs(1)));
        Ok(after.map_or(now, |after| after.max(now)))
    }

    /// Reads all that is stored; answers with the revision that [`Registry::follow_removed`] goes on from.
    pub(crate) async fn load_removed(&self) -> Result<u64, Error> {
        let (entries, revision) = self.store.all(keys::REMOVED).await?;
        self.removed.send_replace(entries.iter().filter_map(pair).collect());
        Ok(revision)
    }

    /// Takes in what is removed, until it is dropped.
    pub(crate) async fn follow_removed(self, mut revision: u64) {
        loop {
            if let Err(error) = self.follow_from(revision).await {
                tracing::warn!(error = form_service::run::chain(&error), "the watch of removed nodes starts over");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            match self.load_removed().await {
                Ok(loaded) => revision = loaded,
                Err(error) => tracing::warn!(error = form_service::run::chain(&error), "removed nodes were not read"),
            }
        }
    }

    async fn follow_from(&self, revision: u64) -> Result<(), Error> {
        let mut changes = self.store.watch(keys::REMOVED, revision).await?;
        while let Some(batch) = changes.next().await {
            for change in batch?.changes {
                let Some(node) = change.key.strip_prefix(keys::REMOVED) else { continue };
                let value = change.value.clone().unwrap_or_default();
                let at = time(&Entry { key: change.key.clone(), value, revision: change.revision });
                self.removed.send_modify(|removed| match at {
                    Some(at) => drop(removed.insert(node.to_owned(), at)),
                    None => drop(removed.remove(node)),
                });
            }
        }
        Ok(())
    }

    /// Forgets nodes whose last certificate has expired by now.
    pub(crate) async fn forget_removed(&self, now: SystemTime) -> Result<(), Error> {
        let is_old = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age > SERVICE_VALID * 2);
        let old: Vec<Op> = {
            let removed = self.removed.borrow();
            let old = removed.iter().filter(|(_, at)| is_old(at));
            old.map(|(node, _)| Op::Delete { key: keys::removed(node) }).collect()
        };
        if !old.is_empty() {
            self.store.commit(Txn { compares: Vec::new(), ops: old }).await?;
        }
        Ok(())
    }
}

fn is_barred(removed: &Removed, who: &Identity) -> bool {
    match who {
        Identity::Service { name, node, issued } if name != "form-state" => {
            removed.get(node).is_some_and(|at| issued <= at)
        }
        _ => false,
    }
}

fn refusal(who: &Identity) -> Error {
    let node = if let Identity::Service { node, .. } = who { node.as_str() } else { "" };
    Error::Denied(format!(
        "node {node} was removed from the cluster; to be let in again, it has to join: form node join"
    ))
}

fn pair(entry: &Entry) -> Option<(String, SystemTime)> {
    Some((entry.key.strip_prefix(keys::REMOVED)?.to_owned(), time(entry)?))
}

fn time(entry: &Entry) -> Option<SystemTime> {
    let seconds = std::str::from_utf8(&entry.value).ok()?.parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
