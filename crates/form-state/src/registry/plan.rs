//! From an operation to what the store has to compare and to change.

use std::time::SystemTime;

use data_encoding::HEXLOWER;
use form_types::v1::{
    ApplyRequest, CreateRequest, DeleteRequest, InstanceSpec, InstanceStatus, JoinTokenSpec, JoinTokenStatus, Key,
    NetworkSpec, NodeSpec, Operation, PeerSpec, PeerStatus, Resource, TokenSpec, TokenStatus, UpdateStatusRequest,
    operation,
};
use form_types::{Invalid, Kind as _, KindInfo, Object, kinds, timestamp, validate};
use prost::Message as _;
use prost_types::Any;
use sha2::{Digest as _, Sha256};

use super::claims::{self, part};
use super::{Registry, canonical, encode, joining, kind_of, parts, removed};
use crate::auth::{Role, Verb};
use crate::store::{Compare, Op};
use crate::{Error, Identity, keys, tokens};

/// How long an Idempotency-Key is remembered.
const REMEMBERED: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// The most bytes that a resource may take: what a watcher that is slow holds of many of them has to fit in memory.
const MOST_BYTES: usize = 512 << 10;

/// A transaction in the making.
#[derive(Default)]
pub(super) struct Plan {
    /// A plan before this one failed a compare: nothing may be taken as it was.
    pub(super) again: bool,
    /// What it is about, for messages.
    pub(super) key: Key,
    pub(super) compares: Vec<Compare>,
    pub(super) ops: Vec<Op>,
    /// What the caller gets. Revision 0: that of the commit.
    pub(super) results: Vec<Resource>,
    /// Something in it is new.
    pub(super) created: bool,
}

impl Plan {
    /// Writes `resource`, if nobody changed it since `found` (`None`: if nobody made it).
    pub(super) fn put(&mut self, key: &Key, resource: Resource, found: Option<u64>, lease: Option<u64>) {
        self.key = key.clone();
        let at = keys::resource(key);
        self.compares.push(match found {
            Some(revision) => Compare::Revision(at.clone(), revision),
            None => Compare::Absent(at.clone()),
        });
        let resource = Resource { revision: 0, ..resource };
        self.ops.push(Op::Put { key: at, value: encode(&resource), lease });
        self.results.push(resource);
    }

    /// Takes `resource` away, with all that it claims.
    pub(super) fn remove(&mut self, key: &Key, resource: &Resource, found: u64) {
        self.key = key.clone();
        let at = keys::resource(key);
        self.compares.push(Compare::Revision(at.clone(), found));
        self.ops.push(Op::Delete { key: at });
        let claims = claims::of(resource).into_iter();
        self.ops.extend(claims.map(|(what, value)| Op::Delete { key: keys::claim(what, &value) }));
        match resource.kind.as_str() {
            "Token" => self.ops.push(Op::Delete { key: keys::token(&resource.name) }),
            "JoinToken" => {
                let own = [keys::join_token(&resource.name), keys::joined(&resource.name)];
                self.ops.extend(own.map(|key| Op::Delete { key }));
            }
            _ => {}
        }
        self.results.push(Resource { revision: 0, ..resource.clone() });
    }
}

impl Registry {
    /// Adds `operation` to `plan`; answers with what it is about.
    pub(super) async fn plan(&self, plan: &mut Plan, who: &Identity, operation: &Operation) -> Result<Key, Error> {
        match &operation.operation {
            Some(operation::Operation::Create(request)) => self.plan_create(plan, who, request).await,
            Some(operation::Operation::Apply(request)) => self.plan_apply(plan, who, request).await,
            Some(operation::Operation::UpdateStatus(request)) => self.plan_status(plan, who, request).await,
            Some(operation::Operation::Delete(request)) => self.plan_delete(plan, who, request).await,
            None => Err(Invalid::at("operations", "one of them is empty").into()),
        }
    }

    async fn plan_create(&self, plan: &mut Plan, who: &Identity, request: &CreateRequest) -> Result<Key, Error> {
        let (resource, kind, key) = given(request.resource.as_ref())?;
        who.may(Verb::Write, kind, &key.project)?;
        if request.idempotency_key.is_empty() {
            // At first there is hope: if it exists, the compare fails, and then it is looked for. Not where the claim of the
            // one that exists would be found first.
            let hope = !plan.again && claims::of(resource).is_empty();
            if !hope && self.find(&key).await?.is_some() {
                return Err(Error::AlreadyExists(key));
            }
        } else if let Some(made) = self.made_before(plan, who, &request.idempotency_key, &key).await? {
            plan.results.push(made);
            return Ok(key);
        }
        self.plan_new(plan, who, resource, kind, &key).await?;
        Ok(key)
    }

    async fn plan_apply(&self, plan: &mut Plan, who: &Identity, request: &ApplyRequest) -> Result<Key, Error> {
        let (resource, kind, key) = given(request.resource.as_ref())?;
        who.may(Verb::Write, kind, &key.project)?;
        let Some((old, revision)) = self.find(&key).await? else {
            if resource.revision != 0 || !resource.uid.is_empty() {
                return Err(Error::NotFound(key));
            }
            self.plan_new(plan, who, resource, kind, &key).await?;
            return Ok(key);
        };
        who.may_touch(Verb::Write, kind, &key.name, &claims::about(&old))?;
        still(&key, &old, resource.revision, &resource.uid)?;
        if old.deletion_requested_at.is_some() {
            return Err(Error::BeingDeleted(key));
        }
        let mut new = Resource { labels: resource.labels.clone(), spec: resource.spec.clone(), ..old.clone() };
        match kind.name {
            "Node" => {
                // A node that says nothing of its prefixes keeps them.
                let had = part::<NodeSpec>(&old.spec);
                let mut spec = parts::node_spec(who, &had, part(&new.spec));
                self.plan_prefixes(plan, &had, &mut spec).await?;
                new.spec = Some(any(&spec));
            }
            "JoinToken" => new.spec = Some(any(&joining::with_end(part(&new.spec), part(&old.spec)))),
            _ => {}
        }
        let same_spec = form_types::same_spec(kind, &old.spec, &new.spec);
        if same_spec && old.labels == new.labels {
            plan.results.push(old);
            return Ok(key);
        }
        self.admit(plan, who, kind, &new).await?;
        if !same_spec {
            new.generation += 1;
        }
        self.plan_claims(plan, Some(&old), &new).await?;
        let relabelled = old.labels != new.labels;
        plan.put(&key, new, Some(revision), None);
        // A watch with a selector has to know whether it matched before.
        if relabelled && let Some(Op::Put { key, value, .. }) = plan.ops.pop() {
            plan.ops.push(Op::Replace { key, value });
        }
        Ok(key)
    }

    async fn plan_status(&self, plan: &mut Plan, who: &Identity, request: &UpdateStatusRequest) -> Result<Key, Error> {
        let Some(resource) = request.resource.as_ref() else { return Err(Invalid::at("resource", "missing").into()) };
        let kind = kind_of(&resource.kind)?;
        let key = key_of(kind, resource);
        who.may(Verb::Status, kind, &key.project)?;
        let (old, revision) = self.find(&key).await?.ok_or_else(|| Error::NotFound(key.clone()))?;
        who.may_touch(Verb::Status, kind, &key.name, &claims::about(&old))?;
        still(&key, &old, resource.revision, &resource.uid)?;
        let mut new = Resource { status: resource.status.clone(), ..old.clone() };
        validate(&new)?;
        new.status = parts::status(who, &old, new.status);
        fits(&new)?;
        // Placing is the scheduler's.
        who.may_touch(Verb::Status, kind, &key.name, &claims::about(&new))?;
        if request.lease != 0 && kind.name == kinds::Node::INFO.name && parts::speaks_for_the_node(who) {
            let presence = keys::presence(&key.name);
            plan.ops.push(Op::Put { key: presence, value: key.name.clone().into(), lease: Some(request.lease) });
        }
        if form_types::same_status(kind, &old.status, &new.status) {
            plan.key = key.clone();
            plan.results.push(old);
            return Ok(key);
        }
        self.check_addresses(&old, &new).await?;
        self.plan_placement(plan, &old, &new).await?;
        self.plan_claims(plan, Some(&old), &new).await?;
        plan.put(&key, new, Some(revision), None);
        Ok(key)
    }

    /// An instance that is placed on a node while that is removed would have nobody: each of the two fails where the other
    /// was faster, and is planned again.
    async fn plan_placement(&self, plan: &mut Plan, old: &Resource, new: &Resource) -> Result<(), Error> {
        let node = part::<InstanceStatus>(&new.status).node;
        let is_placed = new.kind == kinds::Instance::INFO.name && !node.is_empty();
        if !is_placed || part::<InstanceStatus>(&old.status).node == node {
            return Ok(());
        }
        let key = Key { kind: kinds::Node::INFO.name.to_owned(), project: String::new(), name: node };
        if self.find(&key).await?.is_none() {
            return Err(Error::NotFound(key));
        }
        plan.compares.push(Compare::Exists(keys::resource(&key)));
        plan.ops.push(Op::Put { key: keys::placed(&key.name), value: "".into(), lease: None });
        Ok(())
    }

    async fn plan_delete(&self, plan: &mut Plan, who: &Identity, request: &DeleteRequest) -> Result<Key, Error> {
        let (kind, key) = canonical(request.key.as_ref())?;
        who.may(Verb::Delete, kind, &key.project)?;
        let (resource, revision) = self.find(&key).await?.ok_or_else(|| Error::NotFound(key.clone()))?;
        who.may_touch(Verb::Delete, kind, &key.name, &claims::about(&resource))?;
        still(&key, &resource, request.revision, &request.uid)?;
        if kind.name == kinds::Network::INFO.name && key.name == "default" {
            return Err(Error::Denied("the network default goes with its project".to_owned()));
        }
        if kind.name == kinds::Node::INFO.name {
            let at = keys::placed(&key.name);
            let last = self.store.get(&at).await?;
            plan.compares
                .push(last.map_or(Compare::Absent(at.clone()), |last| Compare::Revision(at.clone(), last.revision)));
            plan.ops.push(Op::Delete { key: at });
            // Its machines would have nobody left who could clean up after them.
            match self.placed_on(&key.name).await? {
                0 => {}
                count => return Err(Error::NotEmpty { key, holds: format!("{count} instances") }),
            }
        }
        // An instance that was never placed has nobody to clean up after it. A project is closed before it is looked into.
        let placed = !part::<InstanceStatus>(&resource.status).node.is_empty();
        let waits = (kind.finalized && placed) || kind.name == kinds::Project::INFO.name;
        match (waits, resource.deletion_requested_at.is_some()) {
            (false, _) => {
                plan.remove(&key, &resource, revision);
                if kind.name == kinds::Node::INFO.name && key.name != self.home {
                    plan.ops.push(removed::op(&key.name));
                }
            }
            (true, true) => plan.results.push(resource),
            (true, false) => {
                let now = Some(timestamp(SystemTime::now()));
                plan.put(&key, Resource { deletion_requested_at: now, ..resource }, Some(revision), None);
            }
        }
        Ok(key)
    }

    pub(super) async fn plan_new(
        &self,
        plan: &mut Plan,
        who: &Identity,
        wanted: &Resource,
        kind: &KindInfo,
        key: &Key,
    ) -> Result<(), Error> {
        let mut new = Resource {
            uid: uuid::Uuid::now_v7().to_string(),
            generation: 1,
            revision: 0,
            created_at: Some(timestamp(SystemTime::now())),
            deletion_requested_at: None,
            status: None,
            ..wanted.clone()
        };
        let mut secret = None;
        match kind.name {
            "Node" => {
                let mut spec = part::<NodeSpec>(&new.spec);
                self.plan_prefixes(plan, &NodeSpec::default(), &mut spec).await?;
                new.spec = Some(any(&spec));
            }
            "Token" => {
                let (token, hash) = tokens::mint(tokens::TOKEN, &key.name)?;
                plan.ops.push(Op::Put { key: keys::token(&key.name), value: hash.into(), lease: None });
                secret = Some(any(&TokenStatus { secret: token }));
            }
            "JoinToken" => {
                let (token, hash) = tokens::mint(tokens::JOIN, &key.name)?;
                plan.ops.push(Op::Put { key: keys::join_token(&key.name), value: hash.into(), lease: None });
                secret = Some(any(&JoinTokenStatus { secret: token, ..Default::default() }));
                new.spec = Some(any(&joining::with_end(part(&new.spec), JoinTokenSpec::default())));
            }
            "Peer" => {
                let addresses = self.free_peer_addresses(plan).await?;
                new.status = Some(any(&PeerStatus { addresses }));
            }
            "Project" => {
                let spec = NetworkSpec { description: format!("the network of project {}", key.name) };
                let network = Object::<kinds::Network>::new(&key.name, "default", spec);
                let network = Resource {
                    uid: uuid::Uuid::now_v7().to_string(),
                    generation: 1,
                    created_at: new.created_at,
                    status: None,
                    ..network.into()
                };
                let network_key = key_of(kinds::Network::INFO, &network);
                plan.ops.push(Op::Put { key: keys::resource(&network_key), value: encode(&network), lease: None });
            }
            _ => {}
        }
        self.admit(plan, who, kind, &new).await?;
        self.plan_claims(plan, None, &new).await?;
        plan.put(key, new, None, None);
        plan.created = true;
        if let (Some(secret), Some(result)) = (secret, plan.results.last_mut()) {
            result.status = Some(secret);
        }
        Ok(())
    }

    /// What depends on more than the resource itself.
    async fn admit(&self, plan: &mut Plan, who: &Identity, kind: &KindInfo, new: &Resource) -> Result<(), Error> {
        who.may_touch(Verb::Write, kind, &new.name, &claims::about(new))?;
        fits(new)?;
        match kind.name {
            "Token" => {
                if let Some(role) = Role::of(part::<TokenSpec>(&new.spec).role()) {
                    who.may_grant(role)?;
                }
            }
            "Instance" | "Peer" => {
                let name = match kind.name {
                    "Peer" => part::<PeerSpec>(&new.spec).network,
                    _ => part::<InstanceSpec>(&new.spec).network,
                };
                let key = Key { kind: "Network".into(), project: new.project.clone(), name };
                // `default`, which no name stands for, is there whenever the project is.
                if !key.name.is_empty() && self.find(&key).await?.is_none() {
                    // Where there is no project, that is what is missing.
                    self.open_project(&new.project, true).await?;
                    let text = format!("there is no network {:?} in project {}", key.name, new.project);
                    return Err(Invalid::at("spec.network", text).into());
                }
            }
            _ => {}
        }
        // A token of a project goes with it, like what is in it.
        let home = if kind.name == "Token" { claims::about(new) } else { new.project.clone() };
        if !home.is_empty() {
            // Not only that it exists: closing it for deletion changes its revision.
            let revision = self.open_project(&home, plan.again).await?;
            let project = Key { kind: "Project".into(), project: String::new(), name: home };
            let compare = Compare::Revision(keys::resource(&project), revision);
            if !plan.compares.contains(&compare) {
                plan.compares.push(compare);
            }
        }
        Ok(())
    }

    /// What a creation with this key made before; where there was none, plans that this one is remembered.
    async fn made_before(
        &self,
        plan: &mut Plan,
        who: &Identity,
        idempotency_key: &str,
        key: &Key,
    ) -> Result<Option<Resource>, Error> {
        let hash = HEXLOWER.encode(&Sha256::digest(idempotency_key.as_bytes()));
        let at = keys::idempotency(&who.subject(), &hash);
        let what = keys::resource(key);
        // Looked for first: what this key makes in between is then found by it, and is not taken for another's.
        let exists = self.find(key).await?.is_some();
        let Some(entry) = self.store.get(&at).await? else {
            if exists {
                return Err(Error::AlreadyExists(key.clone()));
            }
            let lease = self.store.grant(REMEMBERED).await?;
            plan.compares.push(Compare::Absent(at.clone()));
            plan.ops.push(Op::Put { key: at, value: what.into(), lease: Some(lease) });
            return Ok(None);
        };
        if entry.value[..] != *what.as_bytes() {
            return Err(Invalid::at("Idempotency-Key", "was used for the creation of something else").into());
        }
        Ok(Some(self.find(key).await?.ok_or_else(|| Error::NotFound(key.clone()))?.0))
    }
}

fn given(resource: Option<&Resource>) -> Result<(&Resource, &'static KindInfo, Key), Error> {
    let resource = resource.ok_or_else(|| Invalid::at("resource", "missing"))?;
    let kind = validate(resource)?;
    Ok((resource, kind, key_of(kind, resource)))
}

fn fits(resource: &Resource) -> Result<(), Error> {
    match resource.encoded_len() {
        0..=MOST_BYTES => Ok(()),
        bytes => Err(Invalid::at("", format!("{bytes} bytes are more than the most, {MOST_BYTES}")).into()),
    }
}

fn key_of(kind: &KindInfo, resource: &Resource) -> Key {
    Key { kind: kind.name.to_owned(), project: resource.project.clone(), name: resource.name.clone() }
}

pub(super) fn any<M: prost::Message + prost::Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Whether `found` is still what the caller saw.
fn still(key: &Key, found: &Resource, revision: u64, uid: &str) -> Result<(), Error> {
    if !uid.is_empty() && uid != found.uid {
        return Err(Error::OtherUid { key: key.clone(), given: uid.to_owned(), current: found.uid.clone() });
    }
    if revision != 0 && revision != found.revision {
        return Err(Error::Conflict { key: key.clone(), given: revision, current: found.revision });
    }
    Ok(())
}
