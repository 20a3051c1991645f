//! Opens the store, makes what a new cluster needs, and serves.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use form_service::identity::IdentityError;
use form_service::listener::{self, Limits};
use form_service::{Authority, Context, secret};
use form_types::v1::token_spec::Role;
use form_types::v1::{CreateRequest, DeleteRequest, ProjectSpec, Resource, TokenSpec, TokenStatus};
use form_types::{Object, kinds};
use ipnet::{IpNet, Ipv4Net};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::store::{Compare, Op, SqliteOptions, SqliteStore, Store, StoreError, Txn};
use crate::{Cluster, Config, Error, Identity, Registry, api, expiry, janitor, keys, scheduler};

/// Where the first admin's token is put, in the data directory.
const ADMIN_TOKEN: &str = "admin.token";
const BOOTSTRAPPED: &str = "cluster/bootstrapped";

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("data directory {}", .path.display())]
    DataDir { path: PathBuf, source: io::Error },
    #[error("store {}", .path.display())]
    Store { path: PathBuf, source: StoreError },
    #[error("listening on {address}; is another form-state running?")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("{key}: {wanted}; this cluster was made with {decided}, and its addresses are in use: put that back")]
    Range { key: &'static str, wanted: IpNet, decided: IpNet },
    #[error("the cluster's ranges, cluster.toml in {}", .dir.display())]
    Cluster { dir: PathBuf, source: io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("making what a new cluster needs")]
    Bootstrap(#[from] Error),
}

/// Runs until the context's shutdown.
pub async fn run(context: Context<Config>) -> Result<(), RunError> {
    let config = Arc::clone(&context.config.borrow());
    context.health.wait_for("store", "it is being opened");
    let fail = |source| RunError::DataDir { path: config.data_dir.clone(), source };
    std::fs::create_dir_all(&config.data_dir).map_err(fail)?;
    let path = config.data_dir.join("state.db");
    let options = SqliteOptions { history: config.history, max_bytes: config.max_mib << 20 };
    let store = SqliteStore::open(&path, options).await.map_err(|source| RunError::Store { path, source })?;

    let (authority, written) = match &config.authority_dir {
        dir if dir.as_os_str().is_empty() => (None, None),
        dir => {
            let written = Cluster::read(dir).map_err(|source| RunError::Cluster { dir: dir.clone(), source })?;
            (Some(Authority::open(dir)?), written)
        }
    };
    let cluster = decide(&store, written, config.ipv4_range).await?;
    let home = context.identity.name().map(|name| name.node).unwrap_or_default();
    let registry = Registry::new(Arc::new(store), cluster).on(&home, authority);
    bootstrap(&registry, &config.data_dir).await?;
    let removed = registry.load_removed().await?;

    let listener =
        TcpListener::bind(config.listen).await.map_err(|source| RunError::Listen { address: config.listen, source })?;
    let tls = context.identity.server()?;
    // A set, so that they go with this future, however it ends: they hold the store open.
    let mut background = JoinSet::new();
    background.spawn(scheduler::run(registry.clone(), config.cpu_overcommit));
    background.spawn(janitor::run(registry.clone()));
    background.spawn(expiry::run(registry.clone()));
    background.spawn(registry.clone().follow_removed(removed));
    context.health.done("store");
    tracing::info!(address = %config.listen, "form-state serves");
    let routes = api::routes(registry, context.shutdown.clone());
    listener::serve(listener, tls, routes, context.health, Limits::default(), context.shutdown).await;
    background.shutdown().await;
    Ok(())
}

/// The cluster's ranges: those that were decided at the first start, on what was written down beside the CA, or else on
/// the configured one and a random one.
async fn decide(store: &impl Store, written: Option<Cluster>, configured: Ipv4Net) -> Result<Cluster, RunError> {
    let proposal = written.clone().unwrap_or_else(|| Cluster::new(configured));
    let ipv4 = decided(store, keys::CLUSTER_IPV4, proposal.ipv4).await?;
    let ipv6 = decided(store, keys::CLUSTER_IPV6, proposal.ipv6).await?;
    if ipv4 != proposal.ipv4 {
        let key = if written.is_some() { "cluster.toml, ipv4" } else { "ipv4_range" };
        return Err(RunError::Range { key, wanted: proposal.ipv4.into(), decided: ipv4.into() });
    }
    if written.is_some() && ipv6 != proposal.ipv6 {
        return Err(RunError::Range { key: "cluster.toml, ipv6", wanted: proposal.ipv6.into(), decided: ipv6.into() });
    }
    Ok(Cluster { ipv4, ipv6 })
}

/// What is decided once: the first value that was proposed for `key`.
async fn decided<T: FromStr + ToString>(store: &impl Store, key: &str, proposal: T) -> Result<T, Error> {
    let txn = Txn {
        compares: vec![Compare::Absent(key.to_owned())],
        ops: vec![Op::Put { key: key.to_owned(), value: proposal.to_string().into(), lease: None }],
    };
    store.commit(txn).await?;
    let entry = store.get(key).await?;
    let text = entry.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()).unwrap_or_default();
    text.parse()
        .map_err(|_| Error::Store(StoreError::Engine(format!("{key} is {text:?}, which cannot be read").into())))
}

/// Makes the project `default`, and the first admin's token. Killed in between, it is done again: the token counts only
/// once its file is written.
async fn bootstrap(registry: &Registry, data_dir: &Path) -> Result<(), Error> {
    if registry.store().get(BOOTSTRAPPED).await?.is_some() {
        return Ok(());
    }
    let me = Identity::myself();
    let create = async |resource: Resource| {
        registry.create(&me, CreateRequest { resource: Some(resource), idempotency_key: String::new() }).await
    };
    let project = ProjectSpec { description: "where things go that name no project".to_owned() };
    match create(Object::<kinds::Project>::new("", "default", project).into()).await {
        Ok(_) | Err(Error::AlreadyExists(_)) => {}
        Err(error) => return Err(error),
    }

    let spec = TokenSpec {
        role: Role::Admin.into(),
        description: "made when the cluster was; put to the operator's side".to_owned(),
        ..Default::default()
    };
    let token = Object::<kinds::Token>::new("", "admin", spec);
    let delete = DeleteRequest { key: Some(token.key()), ..Default::default() };
    match registry.delete(&me, delete).await {
        Ok(_) | Err(Error::NotFound(_)) => {}
        Err(error) => return Err(error),
    }
    let made = create(token.into()).await?;
    let status = TokenStatus::decode(made.status.unwrap_or_default().value.as_slice()).unwrap_or_default();
    secret::write(&data_dir.join(ADMIN_TOKEN), &status.secret)
        .map_err(|error| Error::Store(StoreError::Engine(error.into())))?;
    let done = Op::Put { key: BOOTSTRAPPED.to_owned(), value: "1".into(), lease: None };
    registry.store().commit(Txn { compares: Vec::new(), ops: vec![done] }).await?;
    Ok(())
}
