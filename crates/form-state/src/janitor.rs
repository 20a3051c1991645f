//! What has to be done without being asked: a node whose agent is silent is not ready; old events go.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use form_types::v1::{EventSpec, UpdateStatusRequest};
use form_types::{Object, kinds};
use futures::StreamExt as _;
use prost::Message as _;

use crate::registry::decode;
use crate::store::{Entry, Op, Range, StoreError, Txn};
use crate::{Error, Identity, Registry, keys};

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
        }
    };
    tokio::join!(presence, events);
}

async fn follow_presence(registry: &Registry) -> Result<(), Error> {
    let store = registry.store();
    let page = store.list(Range { prefix: keys::PRESENCE.to_owned(), after: None, limit: usize::MAX }).await?;
    let name = |key: &str| key.strip_prefix(keys::PRESENCE).unwrap_or_default().to_owned();
    let present: HashSet<String> = page.entries.iter().map(|entry| name(&entry.key)).collect();
    let nodes = store.list(Range { prefix: keys::kind("Node", ""), after: None, limit: usize::MAX }).await?;
    for entry in &nodes.entries {
        let node = decode(entry)?;
        if !present.contains(&node.name) {
            lost(registry, &node.name).await?;
        }
    }
    let mut watch = store.watch(keys::PRESENCE, page.revision).await?;
    while let Some(batch) = watch.next().await {
        for change in batch?.changes.iter().filter(|change| change.value.is_none()) {
            lost(registry, &name(&change.key)).await?;
        }
    }
    Ok(())
}

async fn lost(registry: &Registry, node: &str) -> Result<(), Error> {
    let key = Object::<kinds::Node>::new("", node, Default::default()).key();
    let Some((resource, _)) = registry.find(&key).await? else { return Ok(()) };
    let Ok(mut node) = Object::<kinds::Node>::try_from(resource) else { return Ok(()) };
    if !node.status.ready {
        return Ok(());
    }
    node.status.ready = false;
    node.status.ready_since = None;
    node.status.reason = "Silent".to_owned();
    node.status.message = "its vmm-service let its lease run out".to_owned();
    tracing::warn!(node = node.meta.name, "a node is silent");
    let request = UpdateStatusRequest { resource: Some(node.into()), lease: 0 };
    match registry.update_status(&Identity::myself(), request).await {
        // It spoke up meanwhile.
        Ok(_) | Err(Error::Conflict { .. } | Error::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn sweep_events(registry: &Registry, now: SystemTime) -> Result<(), Error> {
    let projects =
        registry.store().list(Range { prefix: keys::kind("Project", ""), after: None, limit: usize::MAX }).await?;
    for project in &projects.entries {
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
