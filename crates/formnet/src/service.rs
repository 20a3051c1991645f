//! Follows the cluster, and makes this node's end of its network.
//!
//! ```text
//!   what was last known, on disk ──▶ Plane ◀── Nodes, Instances, Peers: a controller each, over form-state's watches
//!                                      │
//!   Mesh (our key, our endpoints) ──▶ Node.status.mesh      Endpoints: where the others are      api: who asks
//! ```

mod api;
mod endpoints;
mod explain;
mod instances;
mod meter;
mod nodes;
mod peers;
mod probe;
mod publish;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, SystemTime};

use form_client::{Client, Controller, reconcile};
use form_service::Context;
use form_service::identity::IdentityError;
use form_service::listener::{self, Limits};
use form_types::v1::{NodeSpec, Resource, event_spec};
use form_types::{Kind as _, Object, kinds};
use futures::future::{Either, select};
use futures::{FutureExt as _, StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use self::api::Sight;
use self::endpoints::Endpoints;
use self::instances::{Here, Instances};
use self::meter::Meter;
use self::nodes::Nodes;
use self::peers::Peers;
use self::probe::Probe;
use self::publish::Publisher;
use crate::address::Addresses;
use crate::config::Config;
use crate::error::Error;
use crate::keys::Keys;
use crate::known::{Known, KnownError};
use crate::links::Links;
use crate::plane::{self, Owner, Plane, Share};
use crate::rules::{Ranges, Rules};
use crate::{forwarding, mtu};

type Node = Object<kinds::Node>;

/// For so long form-state is waited for, where there is something to start with.
const AWAY: Duration = Duration::from_secs(2);
/// What somebody changed by hand is looked for this often, though nothing said so.
const LOOK: Duration = Duration::from_secs(60);
/// And after something was changed, once it is quiet for this long: most of it is our own doing.
const SETTLED: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("listening on {address}; is another formnet running?")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("data directory {}", .path.display())]
    DataDir { path: PathBuf, source: io::Error },
    #[error("node {0} has no prefixes in form-state that addresses could come from")]
    NoPrefix(String),
    #[error("answering other nodes' probes at {address}")]
    Probe { address: IpAddr, source: io::Error },
    #[error(transparent)]
    Network(#[from] Error),
    #[error(transparent)]
    Known(#[from] KnownError),
    #[error(transparent)]
    Client(#[from] form_client::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why a resource could not be made so.
#[derive(Debug, thiserror::Error)]
enum ControlError {
    #[error(transparent)]
    Client(#[from] form_client::Error),
    #[error(transparent)]
    Network(#[from] Error),
    #[error("all addresses of this node are taken")]
    NoAddress,
}

/// Runs until the context's shutdown. The network stays as it is.
pub async fn run(context: Context<Config>) -> Result<(), RunError> {
    let config = Arc::clone(&context.config.borrow());
    for kind in ["nodes", "instances", "peers"] {
        context.health.wait_for(kind, "form-state has not listed them yet");
    }
    context.health.wait_for(publish::MESH, "form-state has not heard yet how this node is reached");
    let client = Client::new(config.state.clone(), &context.identity, "formnet")?;
    let tls = context.identity.server()?;
    let listener =
        TcpListener::bind(config.listen).await.map_err(|source| RunError::Listen { address: config.listen, source })?;
    // It listens from the first, and says what it waits for.
    let sight = Sight::default();
    let routes = api::routes(client.clone(), sight.clone());
    tracing::info!(address = %config.listen, "formnet serves");
    let (health, shutdown) = (context.health.clone(), context.shutdown.clone());
    let serving = listener::serve(listener, tls, routes, health, Limits::default(), shutdown.clone());
    let working = async {
        let tasks = start(&context, &config, &client, &sight).await?;
        shutdown.cancelled().await;
        Ok(tasks)
    };
    let (serving, working) = (std::pin::pin!(serving), std::pin::pin!(working));
    match select(serving, working).await {
        Either::Left(((), _)) => Ok(()),
        Either::Right((Err(error), _)) => Err(error),
        Either::Right((Ok(_tasks), serving)) => {
            serving.await;
            Ok(())
        }
    }
}

async fn start(
    context: &Context<Config>,
    config: &Arc<Config>,
    client: &Client,
    sight: &Sight,
) -> Result<JoinSet<()>, RunError> {
    let dir = &config.data_dir;
    std::fs::create_dir_all(dir).map_err(|source| RunError::DataDir { path: dir.clone(), source })?;
    let keys = Keys::open(dir)?;
    let (known, resources) = Known::open(&dir.join("known.db"))?;
    // form-state says who we are; while it is away, what was last known of ourselves will do.
    let registered = tokio::time::timeout(AWAY, register(client, config)).await;
    let own = match (registered, own(&resources, &config.node)) {
        (Ok(registered), _) => registered?,
        (Err(_), Some(known)) => known,
        (Err(_), None) => register(client, config).await?,
    };
    let addresses = Addresses::of(&own.spec).ok_or_else(|| RunError::NoPrefix(config.node.clone()))?;
    let range = |text: &str| text.parse().map_err(|_| RunError::NoPrefix(config.node.clone()));
    let ranges = Ranges {
        cluster: [range(&own.spec.cluster_ipv4)?, range(&own.spec.cluster_ipv6)?],
        own: addresses.prefixes(),
        mesh: config.interface.clone(),
    };
    let here = Here { node: config.node.as_str().into(), addresses };
    let node = plane::Node {
        interface: config.interface.clone(),
        port: config.port,
        ranges,
        gateways: addresses.gateways().to_vec(),
        tap_owner: config.tap_owner,
        mtu: mtu::of_mesh(config.mtu, None),
    };
    let trouble = forwarding::turn_on();
    let (plane, task) = Plane::start(node, keys.current().clone(), shares(&resources, &here)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(task);

    let address = addresses.gateways().map(|net| net.addr())[0];
    let probe = Probe::bind(address).await.map_err(|source| RunError::Probe { address, source })?;
    let (probe, endpoints) = (Arc::new(probe), Arc::new(Endpoints::default()));
    sight.show(config, &plane, &endpoints, &probe);
    let answering = Arc::clone(&probe);
    tasks.spawn(async move { answering.serve().await });
    let looking_after = (Arc::clone(&endpoints), plane.clone(), Arc::clone(&probe));
    tasks.spawn(async move { looking_after.0.run(&looking_after.1, &looking_after.2).await });

    let meter = Meter {
        client: client.clone(),
        config: Arc::clone(config),
        plane: plane.clone(),
        endpoints: Arc::clone(&endpoints),
    };
    tasks.spawn(meter.run());

    let health = || context.health.clone();
    follow(
        &mut tasks,
        client,
        Nodes {
            plane: plane.clone(),
            known: known.clone(),
            health: health(),
            node: config.node.as_str().into(),
            endpoints,
        },
    );
    follow(
        &mut tasks,
        client,
        Instances {
            client: client.clone(),
            plane: plane.clone(),
            known: known.clone(),
            health: health(),
            here,
            next: AtomicU32::new(*addresses.numbers().start()),
        },
    );
    follow(&mut tasks, client, Peers { plane: plane.clone(), known, health: health() });

    tasks.spawn(keep_whole(client.clone(), Arc::clone(config), plane.clone()));
    let publisher = Publisher {
        client: client.clone(),
        config: Arc::clone(config),
        health: health(),
        plane,
        links: Links::connect()?,
        trouble,
        keys,
    };
    tasks.spawn(publisher.run());
    Ok(tasks)
}

/// What we were when we last ran, if that is enough to start with.
fn own(resources: &[Resource], node: &str) -> Option<Node> {
    let ours = resources.iter().find(|it| it.kind == kinds::Node::INFO.name && it.name == node)?;
    let ours = Node::try_from(ours.clone()).ok()?;
    let whole = Addresses::of(&ours.spec).is_some() && !ours.spec.cluster_ipv4.is_empty();
    whole.then_some(ours)
}

/// What all that was last known wants.
fn shares(resources: &[Resource], here: &Here) -> Vec<(Owner, Share)> {
    let now = SystemTime::now();
    let share = |resource: &Resource| match resource.kind.as_str() {
        "Node" => {
            let node = Node::try_from(resource.clone()).ok()?;
            let first = |_: &str, candidates: &[SocketAddr]| candidates.first().copied();
            Some((nodes::owner(&node.meta.name), nodes::share(&node, &here.node, first)?))
        }
        "Instance" => {
            let instance = Object::<kinds::Instance>::try_from(resource.clone()).ok()?;
            Some((instances::owner(&instance.meta.project, &instance.meta.name), here.share(&instance)))
        }
        "Peer" => {
            let peer = Object::<kinds::Peer>::try_from(resource.clone()).ok()?;
            Some((peers::owner(&peer.meta.project, &peer.meta.name), peers::share(&peer, now)?))
        }
        _ => None,
    };
    resources.iter().filter_map(share).collect()
}

/// Makes the Node, or finds it; waits for form-state for as long as that takes.
async fn register(client: &Client, config: &Config) -> Result<Node, form_client::Error> {
    loop {
        let result = match client.get::<kinds::Node>("", &config.node).await {
            Err(form_client::Error::NotFound(_)) => {
                client.apply(Node::new("", &config.node, NodeSpec::default())).await
            }
            result => result,
        };
        match result {
            Err(error) if error.is_temporary() => {
                tracing::debug!(%error, "form-state is waited for");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            // vmm-service made it in between.
            Err(form_client::Error::Conflict(_) | form_client::Error::AlreadyExists(_)) => {}
            result => return result,
        }
    }
}

fn follow<C: Controller>(tasks: &mut JoinSet<()>, client: &Client, controller: C) {
    let (client, controller) = (client.clone(), Arc::new(controller));
    let options = reconcile::Options { workers: 256, ..Default::default() };
    tasks.spawn(async move { reconcile::run(client, "", controller, options, reconcile::nudges().1).await });
}

/// Takes away the shares of those that are no more.
async fn sweep(plane: &Plane, kind: &'static str, owners: HashSet<Owner>) {
    if let Err(error) = plane.only(kind, owners).await {
        tracing::warn!(error = form_service::run::chain(&error), kind, "not all that is nobody's could be taken away");
    }
}

/// Puts back what somebody else changed, and says so.
async fn keep_whole(client: Client, config: Arc<Config>, plane: Plane) {
    let mut changes = match (Links::changes(), Rules::changes()) {
        (Ok(links), Ok(rules)) => stream::select(links.boxed(), rules.boxed()).boxed(),
        (links, rules) => {
            let error = links.err().or(rules.err()).map(|error| form_service::run::chain(&error));
            tracing::warn!(error, "the kernel does not tell of changes; they are looked for every {LOOK:?}");
            stream::pending().boxed()
        }
    };
    loop {
        // Until something is changed, or for long enough.
        let _ = tokio::time::timeout(LOOK, changes.next()).await;
        tokio::time::sleep(SETTLED).await;
        while changes.next().now_or_never().flatten().is_some() {}
        match plane.look().await {
            Ok(found) if found.is_empty() => {}
            Ok(found) => {
                let text = found.join("; ");
                tracing::warn!(found = text, "the network was not as it should be; it is again");
                metrics::counter!("formnet_repairs_total").increment(found.len() as u64);
                if let Ok(node) = client.get::<kinds::Node>("", &config.node).await {
                    let kind = event_spec::Type::Warning;
                    client.event::<kinds::Node>(&node.meta, kind, "NetworkRepaired", short(text)).await;
                }
            }
            Err(error) => {
                tracing::warn!(error = form_service::run::chain(&error), "the network cannot be put right yet");
            }
        }
    }
}

/// As much of it as an Event takes.
fn short(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(1000));
    text
}
