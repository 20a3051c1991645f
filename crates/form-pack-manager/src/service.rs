//! Opens the blob store, follows the builds, and moves bytes.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use form_client::{Client, reconcile};
use form_service::Context;
use form_service::identity::IdentityError;
use form_service::listener::{self, Limits, Routes};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::api;
use crate::builds::{Builds, Known};
use crate::config::Config;
use crate::logs::Logs;
use crate::registry::packages::Packages;
use crate::registry::sweep::Sweeper;
use crate::registry::{self, Names, Registry};
use crate::secrets::Secrets;
use crate::store::{DirStore, StoreError};
use crate::workshop::{Workshop, WorkshopError};

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("listening on {address}; is another form-pack-manager running?")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("the directory of logs {}", .path.display())]
    Logs { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Workshop(#[from] WorkshopError),
    #[error(transparent)]
    Client(#[from] form_client::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Builds that wait at the same time, and say so.
const WAITING: usize = 64;

/// Runs until the context's shutdown.
pub async fn run(context: Context<Config>) -> Result<(), RunError> {
    let config = Arc::clone(&context.config.borrow());
    let client = Client::new(config.state.clone(), &context.identity, "form-pack-manager")?;
    let store = DirStore::open(&config.data_dir)?;
    let workshop = Workshop::open(store.clone(), config.workshop())?;
    let logs = config.data_dir.join("logs");
    let logs = Logs::open(logs.clone()).map_err(|source| RunError::Logs { path: logs, source })?;
    let secrets = Secrets::default();

    let names = Names::new(store.clone());
    let idle = Duration::from_secs(config.idle_seconds);
    let uploads = registry::Limits {
        blob_bytes: config.max_blob_mib << 20,
        idle,
        abandoned: Duration::from_secs(config.upload_seconds),
        per_project: config.max_uploads,
        sparse: config.sparse_manifests,
    };
    let registry = Registry::new(client.clone(), names.clone(), Packages::new(client.clone()), uploads);
    let grace = Duration::from_secs(config.grace_seconds);
    let sweeper = Sweeper::new(
        registry.clone(),
        names.clone(),
        client.clone(),
        grace,
        config.keep_builds,
        config.cache_mib << 20,
    );

    context.health.wait_for("builds", "form-state has not listed them yet");
    let known = Known::default();
    let builds = Arc::new(Builds {
        client: client.clone(),
        names: names.clone(),
        workshop,
        logs: logs.clone(),
        secrets: secrets.clone(),
        room: Arc::new(Semaphore::new(config.builds)),
        url: config.public_url.clone(),
        health: context.health.clone(),
        known: known.clone(),
    });
    let options = reconcile::Options { workers: config.builds.saturating_add(WAITING), ..Default::default() };
    // Nothing but the store's resources tells when to look again.
    let (_nudge, nudges) = reconcile::nudges();
    let following = tokio::spawn(reconcile::run(client.clone(), "", builds, options, nudges));

    let listener =
        TcpListener::bind(config.listen).await.map_err(|source| RunError::Listen { address: config.listen, source })?;
    let contexts = config.max_context_mib << 20;
    let routes = Routes {
        limited: sweeper.routes(),
        streams: api::streams(client, store, logs, secrets, known, contexts, idle).merge(registry.routes()),
    };
    let sweeping = tokio::spawn(sweeper.run(Duration::from_secs(config.sweep_seconds)));
    tracing::info!(address = %config.listen, "form-pack-manager serves");
    let tls = context.identity.server()?;
    listener::serve(listener, tls, routes, context.health, Limits::default(), context.shutdown).await;
    following.abort();
    sweeping.abort();
    Ok(())
}
