//! Binds each Instance to a Node that has room for it.
//!
//! It keeps what the watches told in memory, so that a change costs as much as it changes. What it decides is written
//! with the revision that it decided from: where someone was faster, the watch brings the news and it decides again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use form_types::v1::{
    Change, InstanceSpec, Key, ListRequest, Resource, UpdateStatusRequest, WatchRequest, change, event_spec,
    instance_status::Phase,
};
use form_types::{Kind, Object, event, kinds};
use futures::StreamExt as _;
use futures::stream::{BoxStream, SelectAll};

use crate::registry::claims;
use crate::{Error, Identity, Registry};

type Instance = Object<kinds::Instance>;
type Node = Object<kinds::Node>;
type Name = (String, String);

/// Runs until it is dropped.
pub(crate) async fn run(registry: Registry, cpu_overcommit: f64) {
    loop {
        if let Err(error) = Scheduler::new(registry.clone(), cpu_overcommit).follow().await {
            tracing::warn!(error = form_service::run::chain(&error), "the scheduler starts over from a list");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

struct Scheduler {
    registry: Registry,
    me: Identity,
    cpu_overcommit: f64,
    nodes: BTreeMap<String, Node>,
    used: HashMap<String, Use>,
    placed: HashMap<Name, Placed>,
    /// Who has a port of a node, as its claim names it.
    ports: HashMap<String, Name>,
    pending: BTreeMap<Name, Instance>,
}

/// What an instance has of its node.
#[derive(Clone, PartialEq, Eq)]
struct Placed {
    node: String,
    held: Use,
    ports: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Use {
    vcpu: u32,
    memory_mib: u32,
}

/// What may let a waiting instance be placed.
#[derive(Default)]
struct Try {
    these: BTreeSet<Name>,
    all: bool,
}

impl Scheduler {
    fn new(registry: Registry, cpu_overcommit: f64) -> Self {
        Self {
            registry,
            me: Identity::myself(),
            cpu_overcommit,
            nodes: BTreeMap::new(),
            used: HashMap::new(),
            placed: HashMap::new(),
            ports: HashMap::new(),
            pending: BTreeMap::new(),
        }
    }

    async fn follow(&mut self) -> Result<(), Error> {
        let mut changes: SelectAll<BoxStream<'static, Result<Vec<Change>, Error>>> = SelectAll::new();
        for kind in [kinds::Node::INFO, kinds::Instance::INFO, kinds::Package::INFO] {
            let revision = self.list(kind.name).await?;
            let request = WatchRequest { kind: kind.name.to_owned(), after_revision: revision, ..Default::default() };
            let watch = self.registry.watch(&self.me, &request).await?;
            changes.push(watch.map(|response| response.map(|response| response.changes)).boxed());
        }
        self.place(Try { all: true, ..Try::default() }).await?;
        while let Some(changes) = changes.next().await {
            let mut attempt = Try::default();
            for change in changes? {
                let deleted = change.r#type() == change::Type::Deleted;
                if let Some(resource) = change.resource {
                    self.note(resource, deleted, &mut attempt);
                }
            }
            self.place(attempt).await?;
        }
        Ok(())
    }

    /// Takes in all of a kind; answers with the revision that a watch goes on from.
    async fn list(&mut self, kind: &str) -> Result<u64, Error> {
        let mut request = ListRequest { kind: kind.to_owned(), ..Default::default() };
        let mut first = None;
        loop {
            let page = self.registry.list(&self.me, &request).await?;
            let revision = *first.get_or_insert(page.revision);
            for resource in page.items {
                self.note(resource, false, &mut Try::default());
            }
            if page.next.is_empty() {
                return Ok(revision);
            }
            request.page = page.next;
        }
    }

    fn note(&mut self, resource: Resource, deleted: bool, attempt: &mut Try) {
        match resource.kind.as_str() {
            "Node" => {
                let Ok(node) = Node::try_from(resource) else { return };
                attempt.all = true;
                if deleted {
                    self.nodes.remove(&node.meta.name);
                } else {
                    self.nodes.insert(node.meta.name.clone(), node);
                }
            }
            "Instance" => {
                let Ok(instance) = Instance::try_from(resource) else { return };
                self.note_instance(instance, deleted, attempt);
            }
            // A package that has come may be one that was waited for.
            _ => attempt.all |= !deleted && !self.pending.is_empty(),
        }
    }

    fn note_instance(&mut self, instance: Instance, deleted: bool, attempt: &mut Try) {
        let name = (instance.meta.project.clone(), instance.meta.name.clone());
        let status = &instance.status;
        let now = (!deleted && !status.node.is_empty()).then(|| Placed {
            node: status.node.clone(),
            held: Use { vcpu: status.vcpu, memory_mib: status.memory_mib },
            ports: claims::ports(&status.node, &instance.spec),
        });
        let before = match &now {
            Some(now) => self.placed.insert(name.clone(), now.clone()),
            None => self.placed.remove(&name),
        };
        if let Some(Placed { node, held, ports }) = &before {
            let used = self.used.entry(node.clone()).or_default();
            used.vcpu = used.vcpu.saturating_sub(held.vcpu);
            used.memory_mib = used.memory_mib.saturating_sub(held.memory_mib);
            for port in ports {
                self.ports.remove(port);
            }
        }
        if let Some(Placed { node, held, ports }) = &now {
            let used = self.used.entry(node.clone()).or_default();
            used.vcpu = used.vcpu.saturating_add(held.vcpu);
            used.memory_mib = used.memory_mib.saturating_add(held.memory_mib);
            self.ports.extend(ports.iter().map(|port| (port.clone(), name.clone())));
        }
        if before.is_some() && before != now {
            attempt.all = true;
        }
        if now.is_none() && !deleted && !instance.is_being_deleted() {
            attempt.these.insert(name.clone());
            self.pending.insert(name, instance);
        } else {
            self.pending.remove(&name);
        }
    }

    async fn place(&mut self, attempt: Try) -> Result<(), Error> {
        let names: Vec<Name> =
            if attempt.all { self.pending.keys().cloned().collect() } else { attempt.these.into_iter().collect() };
        for name in names {
            let Some(instance) = self.pending.get(&name).cloned() else { continue };
            let resource = self.decide(instance).await?;
            let request = UpdateStatusRequest { resource: Some(resource.into()), lease: 0 };
            match self.registry.update_status(&self.me, request).await {
                Ok(resource) => {
                    self.tell(&resource).await;
                    self.note(resource, false, &mut Try::default());
                }
                // Changed or gone meanwhile, or somebody took a port: the watch tells.
                Err(Error::Conflict { .. } | Error::NotFound(_) | Error::OtherUid { .. } | Error::Taken { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Records where an instance was placed.
    async fn tell(&self, resource: &Resource) {
        let Ok(instance) = Instance::try_from(resource.clone()) else { return };
        if !instance.status.node.is_empty() {
            let message = instance.status.message;
            let kind = event_spec::Type::Normal;
            self.registry.note(event::<kinds::Instance>(&instance.meta, kind, "Placed", message, "form-state")).await;
        }
    }

    /// The instance with a status that says where it goes, or why nowhere.
    async fn decide(&self, mut instance: Instance) -> Result<Instance, Error> {
        let key = Key {
            kind: kinds::Package::INFO.name.to_owned(),
            project: instance.meta.project.clone(),
            name: instance.spec.package.clone(),
        };
        let package =
            self.registry.find(&key).await?.and_then(|(found, _)| Object::<kinds::Package>::try_from(found).ok());
        let missing = if package.is_some() { "is not stored yet" } else { "is missing" };
        let status = &mut instance.status;
        status.set_phase(Phase::Pending);
        let gpus = package.as_ref().map_or(0, |package| package.spec.gpus);
        let Some(sizes) = package.filter(|package| package.status.ready).and_then(|package| package.spec.sizes) else {
            status.reason = "NoPackage".to_owned();
            status.message = format!("the package {:?} of project {} {missing}", key.name, key.project);
            return Ok(instance);
        };
        if gpus > 0 {
            // To place it would be to promise what no driver of ours can give.
            let there = self.nodes.values().fold(0_u32, |sum, node| sum.saturating_add(node.status.gpus));
            status.reason = "NoGpu".to_owned();
            status.message = format!(
                "the package {:?} needs {gpus} GPU; the nodes have {there}, and machines cannot be given one yet",
                key.name
            );
            return Ok(instance);
        }
        let wanted = Use {
            vcpu: instance.spec.vcpu.unwrap_or(sizes.vcpu),
            memory_mib: instance.spec.memory_mib.unwrap_or(sizes.memory_mib),
        };
        let with_room: Vec<_> = self.nodes.values().filter_map(|node| Some((self.room(node, wanted)?, node))).collect();
        let fitting = with_room.iter().filter(|(_, node)| self.taken_port(node, &instance.spec).is_none());
        // The most memory left; of equals, the first by name.
        let best = fitting.reduce(|best, next| if next.0 > best.0 { next } else { best });
        let taken = with_room.iter().find_map(|(_, node)| self.taken_port(node, &instance.spec));
        let status = &mut instance.status;
        match best {
            Some((_, node)) => {
                status.node = node.meta.name.clone();
                (status.vcpu, status.memory_mib) = (wanted.vcpu, wanted.memory_mib);
                status.reason = "Placed".to_owned();
                status.message = format!("placed on {}", node.meta.name);
            }
            None if let Some((port, (project, name))) = taken => {
                status.reason = "PortTaken".to_owned();
                status.message = format!(
                    "no node with room for it has all of its ports free; {port} belongs to Instance {project}/{name}"
                );
            }
            None => {
                status.reason = "NoRoom".to_owned();
                status.message = format!(
                    "no node has {} vCPU and {} MiB free; of {} nodes {} are ready",
                    wanted.vcpu,
                    wanted.memory_mib,
                    self.nodes.len(),
                    self.nodes.values().filter(|node| node.status.ready).count()
                );
            }
        }
        Ok(instance)
    }

    /// A port of `node` that an instance with this spec would need and somebody has, and who.
    fn taken_port(&self, node: &Node, spec: &InstanceSpec) -> Option<(String, &Name)> {
        let ports = claims::ports(&node.meta.name, spec).into_iter();
        ports.filter_map(|port| self.ports.get_key_value(&port)).map(|(port, owner)| (port.clone(), owner)).next()
    }

    /// The memory that `node` would have left, MiB; `None`: it does not fit.
    fn room(&self, node: &Node, wanted: Use) -> Option<u32> {
        if !node.status.ready || node.spec.cordoned {
            return None;
        }
        let used = self.used.get(&node.meta.name).copied().unwrap_or_default();
        let vcpu = f64::from(node.status.vcpu) * self.cpu_overcommit;
        let cpu_fits = f64::from(used.vcpu) + f64::from(wanted.vcpu) <= vcpu;
        let memory = node.status.memory_mib.checked_sub(used.memory_mib)?.checked_sub(wanted.memory_mib)?;
        cpu_fits.then_some(memory)
    }
}
