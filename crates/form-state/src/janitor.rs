//! What has to be done without being asked: a node whose agent is silent is not ready; old events go.

use std::time::{Duration, SystemTime};

use form_types::v1::EventSpec;
use futures::{StreamExt as _, stream};
use prost::Message as _;

use crate::registry::decode;
use crate::store::{Entry, Op, Range, StoreError, Txn};
use crate::{Error, Registry, keys};

const EVENTS_LIVE: Duration = Duration::from_secs(24 * 3600);
const EVENTS_PER_PROJECT: usize = 2000;
const SWEEP_EVERY: Duration = Duration::from_secs(300);
const PAGE: usize = 500;

/// Runs until it is dropped.
pub(crate) async fn run(registry: Registry) {
    let presence = async {
        loop {
            if let Err(error) = follow_presence(&registry).await {
                tracing::warn!(error = form_service::run::chain(&error), "the watch of nodes starts over");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let events = async {
        let mut tick = tokio::time::interval(SWEEP_EVERY);
        loop {
            tick.tick().await;
            if let Err(error) = sweep_events(&registry, SystemTime::now()).await {
                tracing::warn!(error = form_service::run::chain(&error), "old events were not swept");
            }
            if let Err(error) = registry.forget_removed(SystemTime::now()).await {
                tracing::warn!(
                    error = form_service::run::chain(&error),
                    "nodes that were removed long ago were not forgotten"
                );
            }
        }
    };
    tokio::join!(presence, events);
}

/// Looks at each node, and again whenever it changes or its presence does: however it came to say that it is ready
/// without a lease that makes it so, it does not stay like that.
async fn follow_presence(registry: &Registry) -> Result<(), Error> {
    registry.resume_deletions().await?;
    let store = registry.store();
    let nodes = keys::kind("Node", "");
    let (entries, revision) = store.all(&nodes).await?;
    for entry in &entries {
        registry.mark_silent(&decode(entry)?.name).await?;
    }
    // A cluster's kind has an empty project in its keys.
    let nodes = format!("{nodes}/");
    let mut changes =
        stream::select(store.watch(keys::PRESENCE, revision).await?, store.watch(&nodes, revision).await?);
    while let Some(batch) = changes.next().await {
        for change in batch?.changes {
            let node = change.key.strip_prefix(keys::PRESENCE).or_else(|| change.key.strip_prefix(&nodes));
            registry.mark_silent(node.unwrap_or_default()).await?;
        }
    }
    Ok(())
}

async fn sweep_events(registry: &Registry, now: SystemTime) -> Result<(), Error> {
    let (projects, _) = registry.store().all(&keys::kind("Project", "")).await?;
    for project in &projects {
        let prefix = keys::kind("Event", &decode(project)?.name);
        let mut kept = Vec::new();
        let mut after = None;
        loop {
            let page = registry.store().list(Range { prefix: prefix.clone(), after, limit: PAGE }).await?;
            after = page.entries.last().map(|entry| entry.key.clone());
            let (old, rest): (Vec<Entry>, Vec<Entry>) = page.entries.into_iter().partition(|entry| is_old(entry, now));
            drop_all(registry, old.into_iter().map(|entry| entry.key)).await?;
            kept.extend(rest.into_iter().map(|entry| entry.key));
            if !page.more {
                break;
            }
        }
        // Names are in the order of time.
        let too_many = kept.len().saturating_sub(EVENTS_PER_PROJECT);
        drop_all(registry, kept.into_iter().take(too_many)).await?;
    }
    Ok(())
}

fn is_old(entry: &Entry, now: SystemTime) -> bool {
    let spec = decode(entry).ok().and_then(|event| EventSpec::decode(event.spec?.value.as_slice()).ok());
    let at = spec.and_then(|spec| SystemTime::try_from(spec.at?).ok());
    at.is_none_or(|at| now.duration_since(at).is_ok_and(|age| age > EVENTS_LIVE))
}

async fn drop_all(registry: &Registry, keys: impl Iterator<Item = String>) -> Result<(), StoreError> {
    let ops: Vec<Op> = keys.map(|key| Op::Delete { key }).collect();
    for ops in ops.chunks(PAGE) {
        registry.store().commit(Txn { compares: Vec::new(), ops: ops.to_vec() }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use form_types::v1::{CreateRequest, ProjectSpec, Resource};
    use form_types::{Object, kinds, timestamp};

    use super::*;
    use crate::store::{SqliteOptions, SqliteStore};
    use crate::{Cluster, Identity};

    async fn names(registry: &Registry, project: &str) -> Vec<String> {
        let (entries, _) = registry.store().all(&keys::kind("Event", project)).await.unwrap();
        entries.iter().map(|entry| decode(entry).unwrap().name).collect()
    }

    /// Writes events of these ages, past the registry, which would be slow.
    async fn events(registry: &Registry, project: &str, ages: impl Iterator<Item = Duration>) -> Vec<String> {
        let event = |(number, age): (usize, Duration)| {
            let at = Some(timestamp(SystemTime::now() - age));
            let spec = EventSpec { at, ..Default::default() };
            Object::<kinds::Event>::new(project, &format!("e{number:05}"), spec)
        };
        let events: Vec<_> = ages.enumerate().map(event).collect();
        let put = |event: &Object<kinds::Event>| Op::Put {
            key: keys::resource(&event.key()),
            value: Resource::from(event.clone()).encode_to_vec().into(),
            lease: None,
        };
        for ops in events.chunks(PAGE).map(|events| events.iter().map(put).collect()) {
            registry.store().commit(Txn { compares: Vec::new(), ops }).await.unwrap();
        }
        events.into_iter().map(|event| event.meta.name).collect()
    }

    #[tokio::test]
    async fn events_go_when_they_are_a_day_old_and_the_oldest_where_they_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let options = SqliteOptions { history: 1000, max_bytes: 1 << 30 };
        let store = SqliteStore::open(&dir.path().join("state.db"), options).await.unwrap();
        let cluster = Cluster { ipv4: "100.64.0.0/10".parse().unwrap(), ipv6: "fd00::/48".parse().unwrap() };
        let registry = Registry::new(Arc::new(store), cluster);
        for project in ["busy", "old"] {
            let resource = Object::<kinds::Project>::new("", project, ProjectSpec::default()).into();
            let request = CreateRequest { resource: Some(resource), idempotency_key: String::new() };
            registry.create(&Identity::myself(), request).await.unwrap();
        }
        let minute = Duration::from_secs(60);
        let (over, under) = (EVENTS_LIVE + minute, EVENTS_LIVE - minute);
        // More than a page of old ones, and young ones among them.
        let ages = |count: usize| (0..count).map(move |n| if n % 2 == 0 { over } else { under });
        let old = events(&registry, "old", ages(PAGE * 2 + 10)).await;
        let busy = events(&registry, "busy", std::iter::repeat_n(minute, EVENTS_PER_PROJECT + 7)).await;
        let mut changes = registry.store().watch(&keys::kind("Event", ""), 0).await.unwrap();

        let janitor = tokio::spawn(run(registry.clone()));
        let young: Vec<String> = old.into_iter().skip(1).step_by(2).collect();
        let mut gone = 0;
        while gone < young.len() + 7 {
            let batch = changes.next().await.unwrap().unwrap();
            gone += batch.changes.iter().filter(|change| change.value.is_none()).count();
        }
        assert_eq!(names(&registry, "old").await, young);
        assert_eq!(names(&registry, "busy").await, busy[7..]);
        sweep_events(&registry, SystemTime::now()).await.unwrap();
        assert_eq!(names(&registry, "busy").await.len(), EVENTS_PER_PROJECT, "what is kept is kept");
        janitor.abort();
    }
}
