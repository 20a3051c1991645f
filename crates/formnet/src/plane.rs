//! What this node wants of its kernel, and the one task that makes it so.
//!
//! ```text
//!   a Node, an Instance, a Peer ──set(owner, Share)──▶ queue ──▶ one task, all that waits in one pass:
//!                                                                  1. rules that let through what is new
//!                                                                  2. bridges, taps, routes, peers: made
//!   links.changes, rules.changes, a timer ──▶ look ──────────────▶ 3. peers, routes, taps, bridges: taken away
//!                                                                  4. rules that let through what is gone
//! ```
//!
//! Each resource owns a [`Share`]. A change is the difference between its share before and after, so the work is as large
//! as the change. What two shares want (a bridge, a member of a network) is there while one of them does.
//!
//! **Invariant:** rules come before what they are for, and go after it: nothing is ever attached that no rule watches.
//!
//! **Invariant:** every step may be repeated. A share that failed halfway is done again as a whole.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use form_service::run::chain;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};
use crate::links::{KernelObject, Links};
use crate::rules::{Element, Ranges, Rules};
use crate::tunnel::{PeerState, PrivateKey, Tunnel, TunnelPeer};

/// Changes that are made in one pass, at most.
const PASS: usize = 4096;

/// Whose share it is: a kind, a project and a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) kind: &'static str,
    pub(crate) project: String,
    pub(crate) name: String,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.project.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            project => write!(f, "{} {project}/{}", self.kind, self.name),
        }
    }
}

/// What one resource wants of the kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Share {
    pub(crate) elements: HashSet<Element>,
    /// The bridge of the network that an instance here is on.
    pub(crate) bridge: Option<Bridge>,
    /// The instance here that a tap is for: its uid.
    pub(crate) tap: Option<String>,
    /// What is reached through `bridge`, or else through the mesh.
    pub(crate) routes: Vec<IpNet>,
    pub(crate) peer: Option<TunnelPeer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bridge {
    pub(crate) name: String,
    /// `network:PROJECT/NAME`.
    pub(crate) owner: String,
}

/// What does not change while it runs, but for the MTU.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) interface: String,
    pub(crate) port: u16,
    pub(crate) ranges: Ranges,
    /// This node's own addresses, one alone in each prefix: /32 and /128.
    pub(crate) gateways: Vec<IpNet>,
    pub(crate) tap_owner: u32,
    pub(crate) mtu: u32,
}

/// A way to the task. It ends with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Plane {
    requests: mpsc::Sender<Request>,
    view: Arc<Mutex<View>>,
}

/// What others may know of it at any time.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) shares: BTreeMap<Owner, Share>,
    /// What is in the way, and since when nothing is.
    pub(crate) trouble: Option<String>,
    /// How often something had to be repaired that somebody else had changed.
    pub(crate) repairs: u64,
    pub(crate) mtu: u32,
    pub(crate) backend: &'static str,
}

#[derive(Debug)]
enum Request {
    Set(Owner, Option<Box<Share>>, oneshot::Sender<Result<()>>),
    /// Of this kind, nobody else has a share.
    Only(&'static str, HashSet<Owner>, oneshot::Sender<Result<()>>),
    Endpoint(TunnelPeer, oneshot::Sender<Result<()>>),
    Key(PrivateKey, oneshot::Sender<Result<()>>),
    Mtu(u32, oneshot::Sender<Result<()>>),
    Peers(oneshot::Sender<Result<Vec<PeerState>>>),
    /// Compares all with what the kernel has. Answers with what was not as it should be.
    Look(oneshot::Sender<Result<Vec<String>>>),
}

impl Plane {
    /// Starts from what `shares` want, known from before, and from what the kernel has: what nobody wants stays until the
    /// first look.
    pub(crate) async fn start(
        node: Node,
        key: PrivateKey,
        shares: Vec<(Owner, Share)>,
    ) -> Result<(Self, impl Future<Output = ()> + Send)> {
        let links = Links::connect()?;
        // Rules first: what is forwarded from here on is judged.
        let rules = Rules::install(&node.ranges).await?;
        let tunnel = Tunnel::up(&node.interface, &key, node.port).await?;
        links.ensure_link(&node.interface, &node.gateways, node.mtu).await?;
        let view = Arc::new(Mutex::new(View { mtu: node.mtu, backend: tunnel.backend().name(), ..View::default() }));
        let (sender, requests) = mpsc::channel(PASS);
        let mut task = Task {
            node,
            key,
            links,
            rules,
            tunnel,
            elements: Counts::default(),
            bridges: Counts::default(),
            unsure: HashSet::new(),
            view: Arc::clone(&view),
        };
        let known = shares.into_iter().map(|(owner, share)| (owner, Some(share))).collect();
        for (owner, result) in task.apply(known).await {
            if let Err(error) = result {
                tracing::warn!(error = chain(&error), "what is known of {owner} cannot be made so yet");
            }
        }
        Ok((Self { requests: sender, view }, task.run(requests)))
    }

    /// Makes `owner`'s share so; `None`: it has none any more.
    pub(crate) async fn set(&self, owner: Owner, share: Option<Share>) -> Result<()> {
        self.ask(|done| Request::Set(owner, share.map(Box::new), done)).await
    }

    pub(crate) async fn only(&self, kind: &'static str, owners: HashSet<Owner>) -> Result<()> {
        self.ask(|done| Request::Only(kind, owners, done)).await
    }

    /// Another endpoint for a peer that is there.
    pub(crate) async fn endpoint(&self, peer: TunnelPeer) -> Result<()> {
        self.ask(|done| Request::Endpoint(peer, done)).await
    }

    pub(crate) async fn key(&self, key: PrivateKey) -> Result<()> {
        self.ask(|done| Request::Key(key, done)).await
    }

    pub(crate) async fn mtu(&self, mtu: u32) -> Result<()> {
        self.ask(|done| Request::Mtu(mtu, done)).await
    }

    pub(crate) async fn peers(&self) -> Result<Vec<PeerState>> {
        self.ask(Request::Peers).await
    }

    pub(crate) async fn look(&self) -> Result<Vec<String>> {
        self.ask(Request::Look).await
    }

    pub(crate) fn view<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(&self.view.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request) -> Result<T> {
        let (done, answer) = oneshot::channel();
        self.requests.send(request(done)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }
}

/// How many want each.
#[derive(Debug)]
struct Counts<T>(HashMap<T, u32>);

impl<T> Default for Counts<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Clone + Eq + Hash> Counts<T> {
    fn add(&mut self, item: &T) {
        let count = self.0.entry(item.clone()).or_default();
        *count = count.saturating_add(1);
    }

    fn remove(&mut self, item: &T) {
        if let Entry::Occupied(mut entry) = self.0.entry(item.clone()) {
            *entry.get_mut() = entry.get().saturating_sub(1);
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    fn has(&self, item: &T) -> bool {
        self.0.contains_key(item)
    }
}

struct Task {
    node: Node,
    key: PrivateKey,
    links: Links,
    rules: Rules,
    tunnel: Tunnel,
    elements: Counts<Element>,
    bridges: Counts<Bridge>,
    /// Those whose share may not be so: something failed on the way.
    unsure: HashSet<Owner>,
    view: Arc<Mutex<View>>,
}

type Changes = Vec<(Owner, Option<Share>)>;

impl Task {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut pass = Vec::new();
        while requests.recv_many(&mut pass, PASS).await > 0 {
            let (mut changes, mut waiting): (Changes, HashMap<Owner, Vec<_>>) = Default::default();
            let mut others = Vec::new();
            for request in pass.drain(..) {
                match request {
                    // One resource is worked on once at a time, so none is twice in a pass.
                    Request::Set(owner, share, done) => {
                        waiting.entry(owner.clone()).or_default().push(done);
                        changes.push((owner, share.map(|share| *share)));
                    }
                    other => others.push(other),
                }
            }
            for (owner, result) in self.apply(changes).await {
                let mut result = Some(result);
                for done in waiting.remove(&owner).into_iter().flatten() {
                    // Who asked may be gone.
                    let _ = done.send(result.take().unwrap_or(Err(Error::Stopped)));
                }
            }
            for request in others {
                self.other(request).await;
            }
        }
    }

    async fn other(&mut self, request: Request) {
        match request {
            Request::Set(..) => {}
            Request::Only(kind, owners, done) => {
                let gone: Changes = self.shares(|shares| {
                    let of_kind = shares.keys().filter(|owner| owner.kind == kind && !owners.contains(*owner));
                    of_kind.map(|owner| (owner.clone(), None)).collect()
                });
                let failed = self.apply(gone).await.into_iter().find_map(|(_, result)| result.err());
                let _ = done.send(failed.map_or(Ok(()), Err));
            }
            Request::Endpoint(peer, done) => {
                let _ = done.send(self.tunnel.set_peer(&peer).await);
            }
            Request::Key(key, done) => {
                let result = self.tunnel.set_private_key(&key).await;
                if result.is_ok() {
                    self.key = key;
                }
                let _ = done.send(result);
            }
            Request::Mtu(mtu, done) => {
                self.node.mtu = mtu;
                self.tell(|view| view.mtu = mtu);
                let result = self.ensure_links().await.map(drop);
                let _ = done.send(result);
            }
            Request::Peers(done) => {
                let _ = done.send(self.tunnel.peers().await);
            }
            Request::Look(done) => {
                let result = self.look().await;
                self.tell(|view| {
                    view.trouble = result.as_ref().err().map(|error| chain(error));
                    view.repairs = view.repairs.saturating_add(result.as_ref().map_or(0, |found| found.len() as u64));
                });
                let _ = done.send(result);
            }
        }
    }

    /// Makes these changes, together. Says of each whether it is so now.
    async fn apply(&mut self, changes: Changes) -> Vec<(Owner, Result<()>)> {
        // What was wanted before, and what is from here on.
        let mut steps = Vec::with_capacity(changes.len());
        let (mut add, mut touched) = (HashSet::new(), HashSet::new());
        for (owner, new) in changes {
            let old = self.shares(|shares| match &new {
                Some(new) => shares.insert(owner.clone(), new.clone()),
                None => shares.remove(&owner),
            });
            let again = self.unsure.contains(&owner);
            if old == new && !again {
                steps.push((owner, None, new, false));
                continue;
            }
            if let Some(new) = &new {
                for element in &new.elements {
                    if again || !self.elements.has(element) {
                        add.insert(element.clone());
                    }
                    self.elements.add(element);
                }
                new.bridge.iter().for_each(|bridge| self.bridges.add(bridge));
            }
            if let Some(old) = &old {
                old.elements.iter().for_each(|element| self.elements.remove(element));
                old.bridge.iter().for_each(|bridge| self.bridges.remove(bridge));
                touched.extend(old.elements.iter().cloned());
            }
            steps.push((owner, old, new, true));
        }

        let add: Vec<Element> = add.into_iter().filter(|element| self.elements.has(element)).collect();
        let together = if add.is_empty() { Ok(()) } else { self.rules.change(&add, &[]).await };
        // One that is refused does not hold up the others: then each has its own. What is gone goes first, for it may be
        // what is in the way; until its tap is gone too, that is mute.
        let alone = together.is_err();
        if alone {
            self.forget(&touched).await;
        }
        let mut done = Vec::with_capacity(steps.len());
        for (owner, old, new, changed) in steps {
            let result = match &new {
                _ if !changed => Ok(()),
                // Nothing is attached without its rules.
                Some(share) if alone => self.rules.change(&Vec::from_iter(share.elements.clone()), &[]).await,
                _ => Ok(()),
            };
            let result = match result {
                Ok(()) if changed => self.step(old, new).await,
                result => result,
            };
            match &result {
                Ok(()) => drop(self.unsure.remove(&owner)),
                Err(_) => drop(self.unsure.insert(owner.clone())),
            }
            done.push((owner, result));
        }
        self.forget(&touched).await;
        done
    }

    /// Takes away the rules of those that nobody wants any more.
    async fn forget(&self, touched: &HashSet<Element>) {
        let remove: Vec<Element> = touched.iter().filter(|element| !self.elements.has(element)).cloned().collect();
        if !remove.is_empty()
            && let Err(error) = self.rules.change(&[], &remove).await
        {
            // They are found at the next look.
            tracing::warn!(error = chain(&error), "rules of what is gone stay for now");
        }
    }

    /// What is not a rule: made, and then what the share had before taken away.
    async fn step(&self, old: Option<Share>, new: Option<Share>) -> Result<()> {
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        self.ensure(&new).await?;
        if let Some(peer) = &old.peer
            && new.peer.as_ref().is_none_or(|new| new.public_key != peer.public_key)
        {
            self.tunnel.remove_peer(&peer.public_key).await?;
        }
        for route in old.routes.iter().filter(|route| !new.routes.contains(route)) {
            self.links.delete_route(*route).await?;
        }
        if let Some(uid) = old.tap.as_ref().filter(|uid| new.tap.as_ref() != Some(*uid)) {
            self.links.delete_tap(uid).await?;
        }
        if let Some(bridge) = old.bridge.filter(|bridge| !self.bridges.has(bridge)) {
            self.links.delete_bridge(&bridge.name).await?;
        }
        Ok(())
    }

    async fn ensure(&self, share: &Share) -> Result<()> {
        if let Some(bridge) = &share.bridge {
            self.links.ensure_bridge(&bridge.name, &bridge.owner, &self.node.gateways, self.node.mtu).await?;
            if let Some(uid) = &share.tap {
                self.links.ensure_tap(uid, &bridge.name, self.node.tap_owner, self.node.mtu).await?;
            }
        }
        if let Some(peer) = &share.peer {
            self.tunnel.set_peer(peer).await?;
        }
        let through = share.bridge.as_ref().map_or(&self.node.interface, |bridge| &bridge.name);
        for route in &share.routes {
            self.links.ensure_route(*route, through, self.source(*route)).await?;
        }
        Ok(())
    }

    /// This node's own address of the same family: what it sends by a route of ours comes from there.
    fn source(&self, to: IpNet) -> Option<IpAddr> {
        self.node.gateways.iter().map(IpNet::addr).find(|address| address.is_ipv4() == to.addr().is_ipv4())
    }

    async fn ensure_links(&self) -> Result<()> {
        self.links.ensure_link(&self.node.interface, &self.node.gateways, self.node.mtu).await?;
        let shares: Vec<Share> = self.shares(|shares| shares.values().filter(|it| it.tap.is_some()).cloned().collect());
        for share in shares {
            self.ensure(&share).await?;
        }
        Ok(())
    }

    /// Compares all that is wanted with all that is, and makes it so. Says what was not.
    async fn look(&mut self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        if !self.rules.are_whole().await? {
            self.rules.reinstall(&self.node.ranges).await?;
            found.push("rules of nftables were missing or changed".to_owned());
        }
        let there = self.rules.elements().await?;
        let missing: Vec<Element> = self.elements.0.keys().filter(|it| !there.contains(*it)).cloned().collect();
        let strange: Vec<Element> = there.iter().filter(|element| !self.elements.has(element)).cloned().collect();
        if !missing.is_empty() || !strange.is_empty() {
            self.rules.change(&missing, &strange).await?;
            found.push(format!("{} elements of nftables' sets were missing, {} strange", missing.len(), strange.len()));
        }
        if !self.tunnel.is_up().await {
            self.tunnel = Tunnel::up(&self.node.interface, &self.key, self.node.port).await?;
            found.push(format!("the interface {} was gone", self.node.interface));
        }
        found.extend(self.look_at_peers().await?);
        found.extend(self.look_at_objects().await?);
        self.unsure.clear();
        Ok(found)
    }

    async fn look_at_peers(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let wanted: HashMap<String, TunnelPeer> = self.shares(|shares| {
            let peers = shares.values().filter_map(|share| share.peer.clone());
            peers.map(|peer| (peer.public_key.clone(), peer)).collect()
        });
        let there = self.tunnel.peers().await?;
        for peer in there.iter().filter(|peer| !wanted.contains_key(&peer.public_key)) {
            self.tunnel.remove_peer(&peer.public_key).await?;
            found.push(format!("peer {} is nobody's", peer.public_key));
        }
        for (key, peer) in wanted {
            let is_so = there.iter().find(|it| it.public_key == key).is_some_and(|it| same(&it.allowed, &peer.allowed));
            if !is_so {
                self.tunnel.set_peer(&peer).await?;
                found.push(format!("peer {key} was missing or changed"));
            }
        }
        Ok(found)
    }

    async fn look_at_objects(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let shares: Vec<Share> = self.shares(|shares| shares.values().cloned().collect());
        let mut wanted: HashSet<(&str, String)> = HashSet::from([("wireguard", self.node.interface.clone())]);
        for share in &shares {
            wanted.extend(share.bridge.iter().map(|bridge| ("bridge", bridge.name.clone())));
            wanted.extend(share.tap.iter().map(|uid| ("tap", crate::links::tap_name(uid))));
            wanted.extend(share.routes.iter().map(|route| ("route", route.to_string())));
        }
        let objects = self.links.objects().await?;
        let there: HashSet<(&str, String)> = objects.iter().map(|object| (object.kind, object.name.clone())).collect();
        for (kind, name) in wanted.difference(&there) {
            found.push(format!("{kind} {name} was missing"));
        }
        if !found.is_empty() {
            self.links.ensure_link(&self.node.interface, &self.node.gateways, self.node.mtu).await?;
            for share in &shares {
                self.ensure(share).await?;
            }
        }
        let strange = |object: &&KernelObject| {
            // A mesh of another name is another formnet's.
            object.kind != "wireguard" && !wanted.contains(&(object.kind, object.name.clone()))
        };
        for object in objects.iter().filter(strange) {
            self.links.delete_object(object).await?;
            found.push(format!("{} {} is nobody's", object.kind, object.name));
        }
        Ok(found)
    }

    fn shares<T>(&self, with: impl FnOnce(&mut BTreeMap<Owner, Share>) -> T) -> T {
        with(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner).shares)
    }

    fn tell(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Whether these are the same prefixes, in whatever order.
fn same(left: &[IpNet], right: &[IpNet]) -> bool {
    left.len() == right.len() && left.iter().all(|prefix| right.contains(prefix))
}
