//! What ends by itself: a Peer at its time, and a JoinToken a day after it stopped working, so that until then one is told
//! that it has.
//!
//! The ends are kept in memory, in their order, as the store's watch tells them: nobody looks at what does not end yet.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use form_types::v1::{DeleteRequest, JoinTokenSpec, Key, PeerSpec, Resource, event_spec};
use form_types::{Kind as _, KindInfo, Object, event, kinds};
use futures::{StreamExt as _, stream};

use crate::registry::claims::part;
use crate::registry::decode;
use crate::store::Entry;
use crate::{Error, Identity, Registry, keys};

/// A clock may be set; so often it is looked at.
const LOOK: Duration = Duration::from_secs(60);
/// For how long one that shows an expired JoinToken is told so.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

const ENDING: [&KindInfo; 2] = [kinds::Peer::INFO, kinds::JoinToken::INFO];

/// Runs until it is dropped.
pub(crate) async fn run(registry: Registry) {
    loop {
        if let Err(error) = follow(&registry).await {
            tracing::warn!(error = form_service::run::chain(&error), "what expires is listed again");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn follow(registry: &Registry) -> Result<(), Error> {
    let mut ends = Ends::default();
    let mut watches = Vec::new();
    for kind in ENDING {
        let prefix = keys::kind(kind.name, "");
        let (entries, revision) = registry.store().all(&prefix).await?;
        for entry in &entries {
            ends.set(&entry.key, end(&decode(entry)?));
        }
        watches.push(registry.store().watch(&prefix, revision).await?);
    }
    let mut changes = stream::select_all(watches);
    loop {
        while let Some(key) = ends.take_due(SystemTime::now()) {
            expire(registry, &key).await?;
        }
        let Ok(batch) = tokio::time::timeout(ends.wait(SystemTime::now()), changes.next()).await else { continue };
        let Some(batch) = batch else { return Ok(()) };
        for change in batch?.changes {
            let revision = change.revision;
            let now = change.value.map(|value| decode(&Entry { key: change.key.clone(), value, revision }));
            ends.set(&change.key, now.transpose()?.as_ref().and_then(end));
        }
    }
}

/// Deletes what is under `key`, if it is still over.
async fn expire(registry: &Registry, key: &str) -> Result<(), Error> {
    let Some(entry) = registry.store().get(key).await? else { return Ok(()) };
    let resource = decode(&entry)?;
    if end(&resource).is_none_or(|end| end > SystemTime::now()) {
        return Ok(());
    }
    let key = Key { kind: resource.kind.clone(), project: resource.project.clone(), name: resource.name.clone() };
    let request = DeleteRequest { key: Some(key), revision: resource.revision, uid: resource.uid.clone() };
    match registry.delete(&Identity::myself(), request).await {
        Ok(_) => {}
        // Changed or gone meanwhile: the watch tells.
        Err(Error::NotFound(_) | Error::Conflict { .. } | Error::OtherUid { .. }) => return Ok(()),
        Err(error) => return Err(error),
    }
    if let Ok(peer) = Object::<kinds::Peer>::try_from(resource) {
        let text = "its time is over; it is let in no more";
        registry.note(event::<kinds::Peer>(&peer.meta, event_spec::Type::Normal, "Expired", text, "form-state")).await;
    }
    Ok(())
}

/// When it is to go.
fn end(resource: &Resource) -> Option<SystemTime> {
    let (end, after) = match resource.kind.as_str() {
        "Peer" => (part::<PeerSpec>(&resource.spec).expires_at, Duration::ZERO),
        _ => (part::<JoinTokenSpec>(&resource.spec).expires_at, REMEMBERED),
    };
    SystemTime::try_from(end?).ok()?.checked_add(after)
}

#[derive(Default)]
struct Ends {
    of: HashMap<String, SystemTime>,
    order: BTreeSet<(SystemTime, String)>,
}

impl Ends {
    fn set(&mut self, key: &str, end: Option<SystemTime>) {
        if let Some(old) = self.of.remove(key) {
            self.order.remove(&(old, key.to_owned()));
        }
        if let Some(end) = end {
            self.of.insert(key.to_owned(), end);
            self.order.insert((end, key.to_owned()));
        }
    }

    fn take_due(&mut self, now: SystemTime) -> Option<String> {
        let (_, key) = self.order.first().filter(|(end, _)| *end <= now)?.clone();
        self.set(&key, None);
        Some(key)
    }

    /// Until the next is due.
    fn wait(&self, now: SystemTime) -> Duration {
        let next = self.order.first().and_then(|(end, _)| end.duration_since(now).ok());
        // A bit more, so that it is over by then.
        next.map_or(LOOK, |next| (next + Duration::from_millis(1)).min(LOOK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_first_goes_first_and_an_end_that_is_moved_counts_as_it_is_now() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut ends = Ends::default();
        assert_eq!(ends.wait(start), LOOK);
        for (key, end) in [("b", 20), ("a", 10), ("c", 30), ("d", 40)] {
            ends.set(key, Some(at(end)));
        }
        ends.set("a", Some(at(35)));
        ends.set("d", None);
        assert_eq!(ends.wait(start), Duration::from_millis(20_001));
        assert_eq!(ends.take_due(at(19)), None);
        let order: Vec<String> = std::iter::from_fn(|| ends.take_due(at(100))).collect();
        assert_eq!(order, ["b", "c", "a"]);
        assert!(ends.of.is_empty());
    }
}
