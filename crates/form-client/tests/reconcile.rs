//! The reconcile loop, against a real form-state that comes and goes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use form_client::reconcile::{self, Nudge, Options};
use form_client::{Action, Client, Controller, Endpoint, Name};
use form_service::{Authority, CancellationToken, Context, config};
use form_state::store::{Op, SqliteOptions, SqliteStore, Store as _, Txn};
use form_types::v1::ZoneSpec;
use form_types::{Object, kinds};
use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

type Zone = Object<kinds::Zone>;

struct Cloud {
    dir: tempfile::TempDir,
    authority: Authority,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Cloud {
    async fn start() -> Self {
        form_service::run::init_process();
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(&dir.path().join("ca")).unwrap();
        let address = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let mut cloud = Self { dir, authority, address, task: tokio::spawn(async {}) };
        cloud.come_back().await;
        cloud
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// In the middle of whatever it does.
    async fn go_away(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    async fn come_back(&mut self) {
        let config =
            form_state::Config { listen: self.address, data_dir: self.data_dir(), ..form_state::Config::default() };
        let identity = self.authority.issue("form-state", "one", &[], &[]).unwrap();
        let context = Context::new(config::fixed(config), identity, CancellationToken::new());
        let health = context.health.clone();
        self.task = tokio::spawn(async { form_state::run(context).await.unwrap() });
        health.ready().await;
    }

    fn client(&self, service: &str) -> Client {
        let identity = self.authority.issue(service, "one", &[], &[]).unwrap();
        Client::new(Endpoint::from(self.address), &identity, service).unwrap()
    }
}

fn zone(name: &str, ttl: u32) -> Zone {
    Object::new("default", name, ZoneSpec { domain: format!("{name}.example"), ttl: Some(ttl) })
}

#[derive(Debug, thiserror::Error)]
#[error("as the test asks")]
struct Refused;

type Behaviour = dyn Fn(Name, Option<Zone>) -> BoxFuture<'static, Result<Action, Refused>> + Send + Sync;

struct Watched {
    behaviour: Box<Behaviour>,
    lists: Arc<AtomicUsize>,
}

impl Controller for Watched {
    type Kind = kinds::Zone;
    type Error = Refused;

    async fn reconcile(&self, name: &Name, wanted: Option<Zone>) -> Result<Action, Refused> {
        (self.behaviour)(name.clone(), wanted).await
    }

    async fn listed(&self, _: &[Zone]) {
        self.lists.fetch_add(1, Ordering::SeqCst);
    }
}

struct Loop {
    nudge: Nudge,
    lists: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn run<F>(cloud: &Cloud, behaviour: impl Fn(Name, Option<Zone>) -> F + Send + Sync + 'static) -> Loop
where
    F: Future<Output = Result<Action, Refused>> + Send + 'static,
{
    let lists = Arc::new(AtomicUsize::new(0));
    let behaviour = Box::new(move |name, wanted| Box::pin(behaviour(name, wanted)) as BoxFuture<'static, _>);
    let controller = Arc::new(Watched { behaviour, lists: Arc::clone(&lists) });
    let (nudge, nudges) = reconcile::nudges();
    let client = cloud.client("form-dns");
    let task = tokio::spawn(async move {
        reconcile::run(client, "default", controller, Options::default(), nudges).await;
    });
    Loop { nudge, lists, task }
}

/// A loop that tells what it looks at.
fn telling(cloud: &Cloud) -> (Loop, mpsc::UnboundedReceiver<(String, Option<u32>)>) {
    let (tell, told) = mpsc::unbounded_channel();
    let running = run(cloud, move |name, wanted| {
        let _ = tell.send((name.name, wanted.and_then(|zone| zone.spec.ttl)));
        async { Ok(Action::Wait) }
    });
    (running, told)
}

/// Waits until `wanted` was looked at.
async fn until(told: &mut mpsc::UnboundedReceiver<(String, Option<u32>)>, wanted: (&str, Option<u32>)) {
    loop {
        let (name, ttl) = told.recv().await.unwrap();
        if (name.as_str(), ttl) == wanted {
            return;
        }
    }
}

#[tokio::test]
async fn what_is_there_what_comes_what_changes_and_what_goes_is_looked_at() {
    let cloud = Cloud::start().await;
    let user = cloud.client("form-state");
    user.apply(zone("old", 1)).await.unwrap();
    let (_running, mut told) = telling(&cloud);
    until(&mut told, ("old", Some(1))).await;
    let new = user.apply(zone("new", 2)).await.unwrap();
    until(&mut told, ("new", Some(2))).await;
    user.apply(zone("new", 3)).await.unwrap();
    until(&mut told, ("new", Some(3))).await;
    user.delete::<kinds::Zone>(&new.meta).await.unwrap();
    until(&mut told, ("new", None)).await;
}

#[tokio::test]
async fn changes_while_a_name_is_worked_on_come_to_one_more_look_at_the_last_of_them() {
    let cloud = Cloud::start().await;
    let user = cloud.client("form-state");
    user.apply(zone("z", 0)).await.unwrap();
    let (busy, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (go, looks) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::new())));
    let (entered, mut inside) = mpsc::unbounded_channel();
    let running = {
        let (busy, most, go, looks) = (Arc::clone(&busy), Arc::clone(&most), Arc::clone(&go), Arc::clone(&looks));
        run(&cloud, move |name, wanted| {
            let (busy, most, go, looks) = (Arc::clone(&busy), Arc::clone(&most), Arc::clone(&go), Arc::clone(&looks));
            let entered = entered.clone();
            async move {
                if name.name == "other" {
                    let _ = entered.send("other");
                    return Ok(Action::Wait);
                }
                most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                looks.lock().unwrap().push(wanted.unwrap().spec.ttl.unwrap());
                let _ = entered.send("z");
                go.notified().await;
                busy.fetch_sub(1, Ordering::SeqCst);
                Ok(Action::Wait)
            }
        })
    };
    assert_eq!(inside.recv().await, Some("z"));
    for ttl in 1..=10 {
        user.apply(zone("z", ttl)).await.unwrap();
        running.nudge.nudge(Name { project: "default".into(), name: "z".into() }).await;
    }
    // Changes come in order: with this one, all of the others are known.
    user.apply(zone("other", 0)).await.unwrap();
    assert_eq!(inside.recv().await, Some("other"), "another name goes on meanwhile");
    go.notify_one();
    assert_eq!(inside.recv().await, Some("z"));
    go.notify_one();
    user.apply(zone("other", 1)).await.unwrap();
    assert_eq!(inside.recv().await, Some("other"));
    assert_eq!(*looks.lock().unwrap(), [0, 10]);
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_failure_is_tried_again_after_a_pause_that_its_own_status_does_not_cut_short() {
    let cloud = Cloud::start().await;
    let user = cloud.client("form-state");
    let (failures, beats) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let fixed = Arc::new(Notify::new());
    let _running = {
        let (failures, beats, fixed) = (Arc::clone(&failures), Arc::clone(&beats), Arc::clone(&fixed));
        let owner = cloud.client("form-dns");
        run(&cloud, move |name, wanted| {
            let (failures, beats, fixed) = (Arc::clone(&failures), Arc::clone(&beats), Arc::clone(&fixed));
            let owner = owner.clone();
            async move {
                let mut wanted = wanted.unwrap();
                if name.name == "beat" {
                    beats.fetch_add(1, Ordering::SeqCst);
                    return Ok(Action::After(Duration::from_millis(50)));
                }
                if wanted.spec.ttl == Some(0) {
                    wanted.status.message = format!("failure {}", failures.fetch_add(1, Ordering::SeqCst));
                    wanted.meta.revision = 0;
                    owner.update_status(wanted).await.unwrap();
                    return Err(Refused);
                }
                fixed.notify_one();
                Ok(Action::Wait)
            }
        })
    };
    user.apply(zone("bad", 0)).await.unwrap();
    user.apply(zone("beat", 0)).await.unwrap();
    // A clock that runs on the same machine, so that a slow one is slow for both.
    while beats.load(Ordering::SeqCst) < 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let tried = failures.load(Ordering::SeqCst);
    assert!((2..=10).contains(&tried), "{tried} attempts");
    // What is wanted changed: the pause is over.
    user.apply(zone("bad", 1)).await.unwrap();
    fixed.notified().await;
}

#[tokio::test]
async fn a_panic_is_a_failure_and_stops_nothing() {
    let cloud = Cloud::start().await;
    let user = cloud.client("form-state");
    let calls = Arc::new(AtomicUsize::new(0));
    let (tell, mut told) = mpsc::unbounded_channel();
    let _running = {
        let calls = Arc::clone(&calls);
        run(&cloud, move |name, _| {
            let first = name.name == "z" && calls.fetch_add(1, Ordering::SeqCst) == 0;
            let tell = tell.clone();
            async move {
                assert!(!first, "as the test asks");
                let _ = tell.send(name.name);
                Ok(Action::Wait)
            }
        })
    };
    user.apply(zone("z", 0)).await.unwrap();
    assert_eq!(told.recv().await.unwrap(), "z");
    user.apply(zone("other", 0)).await.unwrap();
    assert_eq!(told.recv().await.unwrap(), "other");
}

#[tokio::test]
async fn a_nudge_and_an_action_after_look_again() {
    let cloud = Cloud::start().await;
    cloud.client("form-state").apply(zone("z", 7)).await.unwrap();
    let (running, mut told) = telling(&cloud);
    until(&mut told, ("z", Some(7))).await;
    running.nudge.nudge(Name { project: "default".into(), name: "z".into() }).await;
    until(&mut told, ("z", Some(7))).await;
    running.nudge.nudge(Name { project: "default".into(), name: "unknown".into() }).await;
    until(&mut told, ("unknown", None)).await;
    drop(running);

    let (tell, mut again) = mpsc::unbounded_channel();
    let _running = run(&cloud, move |_, _| {
        let _ = tell.send(());
        async { Ok(Action::After(Duration::from_millis(1))) }
    });
    for _ in 0..5 {
        again.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_form_state_that_comes_back_is_followed_again() {
    let mut cloud = Cloud::start().await;
    let user = cloud.client("form-state");
    user.apply(zone("z", 1)).await.unwrap();
    let (running, mut told) = telling(&cloud);
    until(&mut told, ("z", Some(1))).await;
    cloud.go_away().await;
    running.nudge.nudge(Name { project: "default".into(), name: "z".into() }).await;
    until(&mut told, ("z", Some(1))).await;
    cloud.come_back().await;
    user.apply(zone("z", 2)).await.unwrap();
    until(&mut told, ("z", Some(2))).await;
}

#[tokio::test]
async fn what_the_log_no_longer_tells_is_found_by_a_new_list() {
    let mut cloud = Cloud::start().await;
    let user = cloud.client("form-state");
    user.apply(zone("goes", 1)).await.unwrap();
    user.apply(zone("stays", 1)).await.unwrap();
    let (running, mut told) = telling(&cloud);
    until(&mut told, ("stays", Some(1))).await;
    cloud.go_away().await;
    let lists = running.lists.load(Ordering::SeqCst);
    {
        // As if it had been away for very long.
        let store = SqliteStore::open(&cloud.data_dir().join("state.db"), SqliteOptions::default()).await.unwrap();
        let ops = vec![Op::Delete { key: "resource/Zone/default/goes".into() }];
        store.commit(Txn { compares: vec![], ops }).await.unwrap();
        store.compact(store.revision().await.unwrap()).await.unwrap();
    }
    cloud.come_back().await;
    until(&mut told, ("goes", None)).await;
    assert!(running.lists.load(Ordering::SeqCst) > lists);
}
