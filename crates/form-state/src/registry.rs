//! The registry: resources over the store, with every rule that keeps them right.
//!
//! A write is planned from what is stored, and committed only if that is still what is stored; where another was faster,
//! it is planned again. So the rules need no locks, and hold for as many form-states as share a store.

pub(crate) mod claims;
mod joining;
mod parts;
mod peers;
mod plan;
mod prefixes;
mod removed;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use form_service::Authority;
use form_types::v1::{
    Change, CreateRequest, DeleteRequest, FinalizeRequest, Key, Lease, ListRequest, ListResponse, Operation, Resource,
    UpdateStatusRequest, WatchRequest, WatchResponse, change, operation,
};
use form_types::{Invalid, KINDS, Kind as _, KindInfo, Object, Selector, kinds};
use futures::StreamExt as _;
use futures::future;
use futures::stream::{self, BoxStream};
use prost::Message as _;
use tokio::sync::watch;

pub use self::joining::JoinError;
use self::plan::Plan;
use crate::auth::Verb;
use crate::store::{self, Compare, Entry, Op, Outcome, Range, Store, StoreError};
use crate::{Cluster, Error, Identity, keys};

const MOST_OPERATIONS: usize = 128;
const PAGE: usize = 500;
/// Projects whose revision is kept in mind.
const PROJECTS: usize = 1024;
/// How often a write is planned again before its caller is told to come back.
const ATTEMPTS: usize = 32;

#[derive(Clone)]
pub struct Registry {
    store: Arc<dyn Store>,
    cluster: Cluster,
    projects: Arc<Projects>,
    removed: watch::Sender<removed::Removed>,
    authority: Option<Arc<Authority>>,
    /// The node that this form-state runs on; its services are not cut from it.
    home: String,
}

/// The revisions of projects that were open when they were last looked at: what a write into one has to compare. One
/// that is out of date fails the compare, and the write is planned again from what is stored.
#[derive(Default)]
struct Projects(Mutex<HashMap<String, u64>>);

impl Registry {
    pub fn new(store: Arc<dyn Store>, cluster: Cluster) -> Self {
        let removed = watch::Sender::default();
        Self { store, cluster, projects: Arc::default(), removed, authority: None, home: String::new() }
    }

    /// With the cluster's CA, if it is here, and on this node.
    #[must_use]
    pub fn on(self, node: &str, authority: Option<Authority>) -> Self {
        Self { home: node.to_owned(), authority: authority.map(Arc::new), ..self }
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub async fn get(&self, who: &Identity, key: &Key) -> Result<Resource, Error> {
        let (kind, key) = canonical(Some(key))?;
        who.may(Verb::Read, kind, &key.project)?;
        let Some((resource, _)) = self.find(&key).await? else {
            // Where there is no project, that is what is missing.
            let project = Key { kind: "Project".into(), project: String::new(), name: key.project.clone() };
            let missing = !key.project.is_empty() && self.find(&project).await?.is_none();
            return Err(Error::NotFound(if missing { project } else { key }));
        };
        who.may_touch(Verb::Read, kind, &key.name, &claims::about(&resource))?;
        Ok(resource)
    }

    /// A page of a kind's resources, by project and name.
    pub async fn list(&self, who: &Identity, request: &ListRequest) -> Result<ListResponse, Error> {
        let kind = kind_of(&request.kind)?;
        who.may(Verb::Read, kind, &request.project)?;
        let selector = selector(&request.label_selector)?;
        let prefix = keys::kind(kind.name, &request.project);
        let limit = match request.limit as usize {
            0 => PAGE,
            limit => limit.min(PAGE),
        };
        let after = Some(&request.page).filter(|page| !page.is_empty()).map(|page| format!("{prefix}{page}"));
        let page = self.store.list(Range { prefix: prefix.clone(), after, limit }).await?;
        let last = page.entries.last().and_then(|entry| entry.key.strip_prefix(&prefix)).unwrap_or_default();
        let next = if page.more { last.to_owned() } else { String::new() };
        let mut items = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            let resource = decode(&entry)?;
            let seen = who.may_touch(Verb::Read, kind, &resource.name, &claims::about(&resource)).is_ok();
            if seen && selector.matches(&resource.labels) {
                items.push(resource);
            }
        }
        Ok(ListResponse { items, revision: page.revision, next })
    }

    pub async fn watch(
        &self,
        who: &Identity,
        request: &WatchRequest,
    ) -> Result<BoxStream<'static, Result<WatchResponse, Error>>, Error> {
        let kind = kind_of(&request.kind)?;
        who.may(Verb::Read, kind, &request.project)?;
        let selector = selector(&request.label_selector)?;
        let after = match request.after_revision {
            0 => self.store.revision().await?,
            after => after,
        };
        let (me, holder) = (self.clone(), who.clone());
        let refused = stream::once(async move { Err(me.until_refused(&holder).await) });
        let who = who.clone();
        let batches = self.store.watch(&keys::kind(kind.name, &request.project), after).await?;
        // Where it starts is told first, so that a reader who is cut off before anything happens has a place to go on from.
        let start = stream::once(future::ready(Ok(WatchResponse { changes: Vec::new(), revision: after })));
        let told = batches
            .map(move |batch| {
                let batch = batch?;
                let mut changes = Vec::with_capacity(batch.changes.len());
                for change in &batch.changes {
                    let Some(change) = told(change, &selector)? else { continue };
                    let about =
                        change.resource.as_ref().map(|resource| (resource.name.clone(), claims::about(resource)));
                    let seen = about.is_some_and(|(name, of)| who.may_touch(Verb::Read, kind, &name, &of).is_ok());
                    if seen {
                        changes.push(change);
                    }
                }
                Ok(WatchResponse { changes, revision: batch.revision })
            })
            .chain(stream::once(future::ready(Err(Error::Store(StoreError::Stopped)))));
        let all = start.chain(stream::select(told, refused)).boxed();
        // The first error is the last that is told.
        let ended = stream::unfold(Some(all), async |all| {
            let mut all = all?;
            let response = all.next().await?;
            let rest = response.is_ok().then_some(all);
            Some((response, rest))
        });
        Ok(ended.boxed())
    }

    pub async fn create(&self, who: &Identity, request: CreateRequest) -> Result<Resource, Error> {
        self.one(who, operation::Operation::Create(request)).await
    }

    /// Answers with it, and whether it is new.
    pub async fn apply(&self, who: &Identity, resource: Resource) -> Result<(Resource, bool), Error> {
        let request = form_types::v1::ApplyRequest { resource: Some(resource) };
        let done = self.carry_out(who, &[Operation { operation: Some(operation::Operation::Apply(request)) }]).await?;
        let resource = done.results.into_iter().next();
        resource.map(|resource| (resource, done.created)).ok_or_else(empty)
    }

    pub async fn update_status(&self, who: &Identity, request: UpdateStatusRequest) -> Result<Resource, Error> {
        self.one(who, operation::Operation::UpdateStatus(request)).await
    }

    /// Answers with the resource as it last was, or as it is while its owner cleans up.
    pub async fn delete(&self, who: &Identity, request: DeleteRequest) -> Result<Resource, Error> {
        match canonical(request.key.as_ref())? {
            (kind, key) if kind.name == "Project" => self.delete_project(who, request, key).await,
            _ => self.one(who, operation::Operation::Delete(request)).await,
        }
    }

    async fn one(&self, who: &Identity, operation: operation::Operation) -> Result<Resource, Error> {
        let done = self.carry_out(who, &[Operation { operation: Some(operation) }]).await?;
        done.results.into_iter().next().ok_or_else(empty)
    }

    /// All of `operations`, or none. Each has to be about another resource.
    pub async fn transact(&self, who: &Identity, operations: &[Operation]) -> Result<Vec<Resource>, Error> {
        if operations.len() > MOST_OPERATIONS {
            let text = format!("{} operations are more than the most, {MOST_OPERATIONS}", operations.len());
            return Err(Invalid::at("operations", text).into());
        }
        for operation in operations {
            if let Some(operation::Operation::Delete(request)) = &operation.operation
                && canonical(request.key.as_ref())?.0.name == "Project"
            {
                return Err(Invalid::at("operations", "a project is deleted by itself: it has to be empty").into());
            }
        }
        Ok(self.carry_out(who, operations).await?.results)
    }

    async fn carry_out(&self, who: &Identity, operations: &[Operation]) -> Result<Plan, Error> {
        let mut attempts = 0;
        loop {
            let mut plan = Plan { again: attempts > 0, ..Plan::default() };
            let mut seen = HashSet::new();
            for operation in operations {
                let key = self.plan(&mut plan, who, operation).await?;
                if !seen.insert(keys::resource(&key)) {
                    return Err(
                        Invalid::at("operations", format!("{} is named twice", crate::error::show(&key))).into()
                    );
                }
            }
            if let Some(done) = self.commit(plan, &mut attempts).await? {
                return Ok(done);
            }
        }
    }

    /// The owner has cleaned up: what was to be deleted goes.
    pub async fn finalize(&self, who: &Identity, request: &FinalizeRequest) -> Result<(), Error> {
        let (kind, key) = canonical(request.key.as_ref())?;
        who.may(Verb::Finalize, kind, &key.project)?;
        let mut attempts = 0;
        loop {
            // Gone already: a finalize that was repeated.
            let Some((resource, revision)) = self.find(&key).await?.filter(|(found, _)| found.uid == request.uid)
            else {
                return Ok(());
            };
            who.may_touch(Verb::Finalize, kind, &key.name, &claims::about(&resource))?;
            if resource.deletion_requested_at.is_none() {
                return Err(Error::Denied(format!("nobody asked for {} to be deleted", crate::error::show(&key))));
            }
            let mut plan = Plan::default();
            plan.remove(&key, &resource, revision);
            if self.commit(plan, &mut attempts).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// A project goes when it is empty. It is closed first, so that nothing can be put into it meanwhile. Killed in
    /// between, it stays closed until the janitor looks.
    async fn delete_project(&self, who: &Identity, request: DeleteRequest, key: Key) -> Result<Resource, Error> {
        let mut attempts = 0;
        loop {
            let closed = self.one(who, operation::Operation::Delete(request.clone())).await?;
            let open = Resource { deletion_requested_at: None, ..closed.clone() };
            let holds = self.holds(&key.name).await?;
            let mut plan = Plan::default();
            if holds.is_empty() {
                self.drop_under(&keys::kind("Event", &key.name)).await?;
                // With the revision that it was closed at: whoever opened it again meanwhile may have put something in.
                plan.remove(&key, &open, closed.revision);
                let network = Key { kind: "Network".into(), project: key.name.clone(), name: "default".into() };
                plan.ops.push(Op::Delete { key: keys::resource(&network) });
            } else {
                plan.put(&key, open, Some(closed.revision), None);
            }
            let Some(done) = self.commit(plan, &mut attempts).await? else { continue };
            if !holds.is_empty() {
                return Err(Error::NotEmpty { key, holds: holds.join(", ") });
            }
            return done.results.into_iter().next().ok_or_else(empty);
        }
    }

    /// What keeps a project from going: `2 instances`, `1 Zone`.
    async fn holds(&self, project: &str) -> Result<Vec<String>, Error> {
        let mut holds = Vec::new();
        for kind in KINDS.iter().filter(|kind| kind.name == "Token" || !kind.is_cluster_scoped()) {
            let count = match kind.name {
                "Event" => 0,
                "Token" => {
                    let (tokens, _) = self.store.all(&keys::kind("Token", "")).await?;
                    let tokens = tokens.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
                    tokens.iter().filter(|token| claims::about(token) == project).count()
                }
                _ => {
                    let prefix = keys::kind(kind.name, project);
                    let page = self.store.list(Range { prefix, after: None, limit: PAGE }).await?;
                    let own = |entry: &&Entry| !(kind.name == "Network" && entry.key.ends_with("/default"));
                    page.entries.iter().filter(own).count()
                }
            };
            if count > 0 {
                holds.push(format!("{count} {}", if count == 1 { kind.name } else { kind.plural }));
            }
        }
        Ok(holds)
    }

    /// Projects that were closed when this process's last life ended are looked into again.
    pub(crate) async fn resume_deletions(&self) -> Result<(), Error> {
        let (projects, _) = self.store.all(&keys::kind("Project", "")).await?;
        for entry in &projects {
            let project = decode(entry)?;
            if project.deletion_requested_at.is_some() {
                let key = Key { kind: "Project".into(), project: String::new(), name: project.name };
                let request = DeleteRequest { key: Some(key), ..Default::default() };
                match self.delete(&Identity::myself(), request).await {
                    Ok(_) | Err(Error::NotEmpty { .. } | Error::NotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    async fn drop_under(&self, prefix: &str) -> Result<(), Error> {
        loop {
            let page = self.store.list(Range { prefix: prefix.to_owned(), after: None, limit: PAGE }).await?;
            if page.entries.is_empty() {
                return Ok(());
            }
            let ops = page.entries.into_iter().map(|entry| Op::Delete { key: entry.key }).collect();
            self.store.commit(store::Txn { compares: Vec::new(), ops }).await?;
        }
    }

    /// The lease of `node` has ended: it is not ready, unless it spoke up meanwhile.
    pub(crate) async fn mark_silent(&self, node: &str) -> Result<(), Error> {
        let key = Key { kind: "Node".into(), project: String::new(), name: node.to_owned() };
        let presence = keys::presence(node);
        let mut attempts = 0;
        loop {
            let Some((resource, revision)) = self.find(&key).await? else { return Ok(()) };
            let Ok(mut node) = Object::<kinds::Node>::try_from(resource) else { return Ok(()) };
            if !node.status.ready || self.store.get(&presence).await?.is_some() {
                return Ok(());
            }
            tracing::warn!(node = node.meta.name, "a node is silent");
            node.status.ready = false;
            node.status.ready_since = None;
            node.status.reason = "Silent".to_owned();
            node.status.message = "its vmm-service let its lease run out".to_owned();
            let mut plan = Plan::default();
            plan.put(&key, node.into(), Some(revision), None);
            plan.compares.push(Compare::Absent(presence.clone()));
            if self.commit(plan, &mut attempts).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// Records an event. That it could not be is no reason for what it is about to fail.
    pub(crate) async fn note(&self, event: Object<kinds::Event>) {
        let request = CreateRequest { resource: Some(event.into()), idempotency_key: String::new() };
        if let Err(error) = self.create(&Identity::myself(), request).await {
            tracing::warn!(%error, "an event was not recorded");
        }
    }

    /// How many instances are placed on `node`.
    async fn placed_on(&self, node: &str) -> Result<usize, Error> {
        let (mut count, mut after) = (0, None);
        loop {
            let range = Range { prefix: keys::kind(kinds::Instance::INFO.name, ""), after, limit: PAGE };
            let page = self.store.list(range).await?;
            for entry in &page.entries {
                count += usize::from(claims::about(&decode(entry)?) == node);
            }
            if !page.more {
                return Ok(count);
            }
            after = page.entries.last().map(|entry| entry.key.clone());
        }
    }

    pub async fn grant_lease(&self, who: &Identity, ttl_ms: u64) -> Result<Lease, Error> {
        services_only(who)?;
        if !(1000..=3_600_000).contains(&ttl_ms) {
            return Err(Invalid::at("ttl_ms", format!("{ttl_ms} is not between 1000 and 3600000")).into());
        }
        let id = self.store.grant(Duration::from_millis(ttl_ms)).await?;
        Ok(Lease { id, ttl_ms })
    }

    pub async fn keep_alive(&self, who: &Identity, lease: u64) -> Result<Lease, Error> {
        services_only(who)?;
        let ttl = self.store.keep_alive(lease).await?;
        Ok(Lease { id: lease, ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX) })
    }

    pub async fn revoke_lease(&self, who: &Identity, lease: u64) -> Result<(), Error> {
        services_only(who)?;
        Ok(self.store.revoke(lease).await?)
    }

    /// The resource under `key` and the revision of its last change.
    pub(crate) async fn find(&self, key: &Key) -> Result<Option<(Resource, u64)>, Error> {
        let entry = self.store.get(&keys::resource(key)).await?;
        entry.map(|entry| Ok((decode(&entry)?, entry.revision))).transpose()
    }

    /// The revision of an open project, which a write into it compares. Without `again`, what was known last will do.
    async fn open_project(&self, name: &str, again: bool) -> Result<u64, Error> {
        let projects = || self.projects.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (false, Some(revision)) = (again, projects().get(name).copied()) {
            return Ok(revision);
        }
        let key = Key { kind: "Project".into(), project: String::new(), name: name.to_owned() };
        let (found, revision) = self.find(&key).await?.ok_or_else(|| Error::NotFound(key.clone()))?;
        if found.deletion_requested_at.is_some() {
            return Err(Error::BeingDeleted(key));
        }
        let mut known = projects();
        if known.len() >= PROJECTS {
            known.clear();
        }
        known.insert(name.to_owned(), revision);
        Ok(revision)
    }

    /// `None`: another writer came between, and it has to be planned again.
    async fn commit(&self, mut plan: Plan, attempts: &mut usize) -> Result<Option<Plan>, Error> {
        if plan.ops.is_empty() {
            return Ok(Some(plan));
        }
        let txn = store::Txn { compares: std::mem::take(&mut plan.compares), ops: std::mem::take(&mut plan.ops) };
        match self.store.commit(txn).await? {
            Outcome::Committed { revision } => {
                // What its operation left as it was keeps its revision.
                for resource in plan.results.iter_mut().filter(|resource| resource.revision == 0) {
                    resource.revision = revision;
                }
                Ok(Some(plan))
            }
            Outcome::Conflict { .. } if *attempts < ATTEMPTS => {
                *attempts += 1;
                Ok(None)
            }
            Outcome::Conflict { .. } => Err(Error::Contended(plan.key)),
        }
    }
}

fn services_only(who: &Identity) -> Result<(), Error> {
    match who {
        Identity::Service { .. } => Ok(()),
        Identity::Person { .. } => Err(Error::Denied("leases are for services".to_owned())),
    }
}

fn selector(text: &str) -> Result<Selector, Error> {
    text.parse().map_err(|error: form_types::SelectorError| Invalid::at("label_selector", error.to_string()).into())
}

fn empty() -> Error {
    Invalid::at("", "an empty request").into()
}

/// The kind that `key` names, and the key with the kind's own name.
fn canonical(key: Option<&Key>) -> Result<(&'static KindInfo, Key), Error> {
    let key = key.ok_or_else(|| Invalid::at("key", "missing"))?;
    let kind = kind_of(&key.kind)?;
    Ok((kind, Key { kind: kind.name.to_owned(), ..key.clone() }))
}

pub(crate) fn kind_of(name: &str) -> Result<&'static KindInfo, Error> {
    KindInfo::find(name).ok_or_else(|| Invalid::at("kind", format!("{name:?} is not a kind")).into())
}

/// A change of the store as a change of resources; `None`: it is none for this selector. What stops matching is told as
/// deleted, so that a reader who had it drops it.
fn told(change: &store::Change, selector: &Selector) -> Result<Option<Change>, Error> {
    let read =
        |value: &Bytes| decode(&Entry { key: change.key.clone(), value: value.clone(), revision: change.revision });
    let (now, before) = (change.value.as_ref().map(read).transpose()?, change.previous.as_ref().map(read).transpose()?);
    let matches = |resource: &Option<Resource>| resource.as_ref().is_some_and(|it| selector.matches(&it.labels));
    // Only a change of labels and a deletion come with what was before; any other change matches now as it did then.
    let kind = match (matches(&now), matches(&before)) {
        (true, _) => change::Type::Put,
        (false, true) => change::Type::Deleted,
        (false, false) => return Ok(None),
    };
    Ok(Some(Change { r#type: kind.into(), resource: now.or(before) }))
}

pub(crate) fn decode(entry: &Entry) -> Result<Resource, Error> {
    let resource =
        Resource::decode(entry.value.clone()).map_err(|source| Error::Decode { key: entry.key.clone(), source })?;
    Ok(Resource { revision: entry.revision, ..resource })
}

/// As stored: without its revision, which is the store's to know.
fn encode(resource: &Resource) -> Bytes {
    debug_assert_eq!(resource.revision, 0);
    resource.encode_to_vec().into()
}
