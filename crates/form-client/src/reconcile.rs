//! The loop that every controller is: compare what is wanted with what is, act, and do it again when either changes.
//!
//! ```text
//!   list ──▶ watch ──▶ names ──▶ queue ──▶ Controller::reconcile(name, what is wanted now)
//!    ▲         │                  ▲ │                    │
//!    └─────────┘ broken, or       │ └── one at a time ───┤
//!      Compacted                  │      for a name      │ failed: after a back-off of its own
//!                                 └──────────────────────┘ Action::After: when the time is over
//! ```
//!
//! It goes by level, not by edge: a name in the queue says "look again", never what happened. A name that changes ten
//! times while it is worked on is looked at once more, and what is found then is what counts. So a lost or doubled
//! notification does no harm, and a restart needs no memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use form_types::{Kind, Object};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{Client, Error, Update};

const LEAST_BACK_OFF: Duration = Duration::from_millis(100);
const MOST_BACK_OFF: Duration = Duration::from_secs(60);

/// Project and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub project: String,
    pub name: String,
}

impl Name {
    pub fn of<K: Kind>(object: &Object<K>) -> Self {
        Self { project: object.meta.project.clone(), name: object.meta.name.clone() }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.project, self.name)
    }
}

/// When to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// When something changes.
    Wait,
    /// Then, or when something changes.
    After(Duration),
}

/// What makes the world as one kind of resource wants it.
pub trait Controller: Send + Sync + 'static {
    type Kind: Kind;
    type Error: std::error::Error + Send + Sync + 'static;

    /// Makes it so. `wanted` is what is stored now; `None`: it is gone. Called for one name at a time, and again after a
    /// back-off where it failed. It may be cut off at any await and called anew, so what it does has to bear repetition.
    fn reconcile(
        &self,
        name: &Name,
        wanted: Option<Object<Self::Kind>>,
    ) -> impl Future<Output = Result<Action, Self::Error>> + Send;

    /// What is stored of `name` has changed; `None`: it is gone. Called at once, while the name may be worked on: work that
    /// takes long hears so that it is not wanted any more. Must not block.
    fn changed(&self, name: &Name, wanted: Option<&Object<Self::Kind>>) {
        let _ = (name, wanted);
    }

    /// The first list has come: `all` is what there is. Called again with each new list; here leftovers can be swept.
    fn listed(&self, all: &[Object<Self::Kind>]) -> impl Future<Output = ()> + Send {
        let _ = all;
        async {}
    }
}

/// How a loop runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Names that are worked on at the same time.
    pub workers: usize,
    /// Everything is looked at again this often, in case the world changed by itself.
    pub resync: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 8, resync: Duration::from_secs(300) }
    }
}

/// Asks a running loop to look at a name again, because the world changed.
#[derive(Clone, Debug)]
pub struct Nudge(mpsc::Sender<Name>);

impl Nudge {
    /// Waits where the loop is behind, so that nothing is lost and nothing piles up.
    pub async fn nudge(&self, name: Name) {
        // The loop has ended; there is nobody left to look.
        let _ = self.0.send(name).await;
    }
}

/// The way to nudge a loop, and the loop's end of it.
pub fn nudges() -> (Nudge, mpsc::Receiver<Name>) {
    let (sender, receiver) = mpsc::channel(256);
    (Nudge(sender), receiver)
}

/// Runs the loop until it is dropped. Unreachable, form-state is tried again for ever; what is known goes on meanwhile.
pub async fn run<C: Controller>(
    client: Client,
    project: &str,
    controller: Arc<C>,
    options: Options,
    nudges: mpsc::Receiver<Name>,
) {
    let mut work = Work::new(controller, options.workers, nudges);
    let mut pause = LEAST_BACK_OFF;
    loop {
        match follow(&client, project, &mut work, options).await {
            Ok(never) => match never {},
            Err(Error::Compacted(_)) => pause = LEAST_BACK_OFF,
            Err(error) => {
                let kind = C::Kind::INFO.plural;
                tracing::warn!(error = form_service::run::chain(&error), "the watch of {kind} starts over");
            }
        }
        // Work goes on while form-state is away.
        let _ = tokio::time::timeout(pause, work.drive_for_ever()).await;
        pause = if work.heard { LEAST_BACK_OFF } else { (pause * 2).min(Duration::from_secs(5)) };
        work.heard = false;
    }
}

async fn follow<C: Controller>(
    client: &Client,
    project: &str,
    work: &mut Work<C>,
    options: Options,
) -> Result<std::convert::Infallible, Error> {
    let listed = tokio::select! {
        listed = client.list::<C::Kind>(project) => listed?,
        never = work.drive_for_ever() => match never {},
    };
    let mut revision = listed.revision;
    work.controller.listed(&listed.items).await;
    work.replace(listed.items);
    work.heard = true;
    let mut changes = std::pin::pin!(client.watch::<C::Kind>(project, revision).await?);
    let mut resync = tokio::time::interval_at(Instant::now() + options.resync, options.resync);
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(Update::Put(object))) => work.put(*object),
                Some(Ok(Update::Deleted(object))) => work.gone(&Name::of(&object)),
                Some(Ok(Update::Progress(at))) => revision = at,
                // The rest of what was missed is told by the next watch.
                Some(Err(error)) if !error.is_temporary() => return Err(error),
                Some(Err(_)) | None => {
                    // A server that lets everyone in and then ends the watch is not asked as fast as it answers.
                    let _ = tokio::time::timeout(LEAST_BACK_OFF, work.drive_for_ever()).await;
                    changes.set(client.watch::<C::Kind>(project, revision).await?);
                }
            },
            _ = resync.tick() => work.look_at_all(),
            never = work.drive_for_ever() => match never {},
        }
    }
}

/// The pause after that many failures in a row.
fn back_off(failures: u32) -> Duration {
    LEAST_BACK_OFF.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(MOST_BACK_OFF)
}

/// What is wanted, and what has to be looked at.
struct Work<C: Controller> {
    controller: Arc<C>,
    wanted: HashMap<Name, Object<C::Kind>>,
    /// To be looked at now, each once.
    due: HashSet<Name>,
    /// To be looked at later.
    later: BTreeMap<(Instant, Name), ()>,
    later_of: HashMap<Name, Instant>,
    /// Being worked on; changed meanwhile, they are in `due` too.
    busy: HashSet<Name>,
    /// Being worked on while their status changed: looked at once more, unless the work fails and comes again anyway.
    touched: HashSet<Name>,
    failures: HashMap<Name, u32>,
    tasks: JoinSet<(Name, Result<Action, String>)>,
    workers: usize,
    nudges: mpsc::Receiver<Name>,
    heard: bool,
}

impl<C: Controller> Work<C> {
    fn new(controller: Arc<C>, workers: usize, nudges: mpsc::Receiver<Name>) -> Self {
        Self {
            controller,
            wanted: HashMap::new(),
            due: HashSet::new(),
            later: BTreeMap::new(),
            later_of: HashMap::new(),
            busy: HashSet::new(),
            touched: HashSet::new(),
            failures: HashMap::new(),
            tasks: JoinSet::new(),
            workers,
            nudges,
            heard: false,
        }
    }

    fn replace(&mut self, items: Vec<Object<C::Kind>>) {
        let old: Vec<Name> = self.wanted.drain().map(|(name, _)| name).collect();
        self.due.extend(old.iter().cloned());
        items.into_iter().for_each(|item| self.put(item));
        for name in old.iter().filter(|name| !self.wanted.contains_key(name)) {
            self.controller.changed(name, None);
        }
    }

    fn put(&mut self, object: Object<C::Kind>) {
        let name = Name::of(&object);
        self.controller.changed(&name, Some(&object));
        let meaning = |object: &Object<C::Kind>| {
            let meta = &object.meta;
            (meta.uid.clone(), meta.generation, meta.labels.clone(), meta.deletion_requested_at)
        };
        let is_same = self.wanted.get(&name).is_some_and(|before| meaning(before) == meaning(&object));
        self.wanted.insert(name.clone(), object);
        // What is wanted is the same, and only the status is another: that may be the controller saying that it failed. It
        // is no reason to try again at once, or there would be no back-off.
        if is_same && self.busy.contains(&name) {
            self.touched.insert(name);
            return;
        }
        if is_same && self.failures.contains_key(&name) {
            return;
        }
        // A change gets its chance at once, however often the state before it failed.
        self.failures.remove(&name);
        self.look_at(name);
    }

    fn gone(&mut self, name: &Name) {
        self.wanted.remove(name);
        self.controller.changed(name, None);
        self.look_at(name.clone());
    }

    fn look_at(&mut self, name: Name) {
        self.forget_later(&name);
        self.due.insert(name);
    }

    fn look_at_all(&mut self) {
        self.due.extend(self.wanted.keys().cloned());
    }

    fn look_later(&mut self, name: Name, after: Duration) {
        self.forget_later(&name);
        let at = Instant::now() + after;
        self.later_of.insert(name.clone(), at);
        self.later.insert((at, name), ());
    }

    fn forget_later(&mut self, name: &Name) {
        if let Some(at) = self.later_of.remove(name) {
            self.later.remove(&(at, name.clone()));
        }
    }

    /// Works. May be dropped at any time; what was begun goes on.
    async fn drive_for_ever(&mut self) -> std::convert::Infallible {
        loop {
            self.start();
            let next = self.later.keys().next().map(|(at, _)| *at);
            let timer = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = timer => {
                    while let Some(((at, name), ())) = self.later.pop_first() {
                        if at > Instant::now() {
                            self.later.insert((at, name), ());
                            break;
                        }
                        self.later_of.remove(&name);
                        self.due.insert(name);
                    }
                }
                Some(name) = self.nudges.recv() => self.look_at(name),
                Some(ended) = self.tasks.join_next() => {
                    if let Ok((name, result)) = ended {
                        self.ended(name, result);
                    }
                }
            }
        }
    }

    fn start(&mut self) {
        while self.tasks.len() < self.workers {
            let Some(name) = self.due.iter().find(|name| !self.busy.contains(*name)).cloned() else { return };
            self.due.remove(&name);
            self.busy.insert(name.clone());
            let (controller, wanted) = (Arc::clone(&self.controller), self.wanted.get(&name).cloned());
            self.tasks.spawn(async move {
                // A panic is a failure like any other: it must not keep its name busy for ever.
                let result = match AssertUnwindSafe(controller.reconcile(&name, wanted)).catch_unwind().await {
                    Ok(result) => result.map_err(|error| form_service::run::chain(&error)),
                    Err(_) => Err("the controller panicked".to_owned()),
                };
                (name, result)
            });
        }
    }

    fn ended(&mut self, name: Name, result: Result<Action, String>) {
        self.busy.remove(&name);
        let is_touched = self.touched.remove(&name);
        match result {
            Ok(action) => {
                self.failures.remove(&name);
                if is_touched {
                    self.look_at(name);
                } else if let Action::After(after) = action {
                    self.look_later(name, after);
                }
            }
            Err(error) => {
                metrics::counter!("form_reconcile_failures_total", "kind" => C::Kind::INFO.name).increment(1);
                let failures = self.failures.entry(name.clone()).or_default();
                *failures = failures.saturating_add(1);
                let pause = back_off(*failures);
                let kind = C::Kind::INFO.name;
                tracing::warn!(%name, error, ?pause, "{kind} is tried again");
                self.look_later(name, pause);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_off_doubles_up_to_its_most() {
        let pauses: Vec<Duration> = (1..=20).map(back_off).collect();
        assert_eq!(pauses[..3], [LEAST_BACK_OFF, LEAST_BACK_OFF * 2, LEAST_BACK_OFF * 4]);
        assert_eq!(pauses[19], MOST_BACK_OFF);
        assert!(pauses.is_sorted());
    }
}
