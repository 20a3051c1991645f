//! Opens the blob store, follows the builds, and moves bytes.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use form_client::{Client, reconcile};
use form_service::Context;
use form_service::identity::IdentityError;
use form_service::listener::{self, Limits};
use tokio::net::TcpListener;

use crate::api;
use crate::builds::Builds;
use crate::config::Config;
use crate::store::{DirStore, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("listening on {address}; is another form-pack-manager running?")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("scratch directory {}", .path.display())]
    Scratch { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Client(#[from] form_client::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Runs until the context's shutdown.
pub async fn run(context: Context<Config>) -> Result<(), RunError> {
    let config = Arc::clone(&context.config.borrow());
    let client = Client::new(config.state.clone(), &context.identity, "form-pack-manager")?;
    let store = DirStore::open(&config.data_dir)?;
    let scratch = config.data_dir.join("scratch");
    std::fs::create_dir_all(&scratch).map_err(|source| RunError::Scratch { path: scratch.clone(), source })?;

    context.health.wait_for("builds", "form-state has not listed them yet");
    let builds = Arc::new(Builds {
        client: client.clone(),
        store: store.clone(),
        scratch,
        url: config.public_url.clone(),
        health: context.health.clone(),
    });
    let options = reconcile::Options { workers: config.builds, ..Default::default() };
    // Nothing but the store's resources tells when to look again.
    let (_nudge, nudges) = reconcile::nudges();
    let following = tokio::spawn(reconcile::run(client.clone(), "", builds, options, nudges));

    let listener =
        TcpListener::bind(config.listen).await.map_err(|source| RunError::Listen { address: config.listen, source })?;
    let limits = Limits {
        body_bytes: usize::try_from(config.max_context_mib << 20).unwrap_or(usize::MAX),
        // A build context may come over a slow line.
        request: Duration::from_secs(3600),
        ..Limits::default()
    };
    tracing::info!(address = %config.listen, "form-pack-manager serves");
    let tls = context.identity.server()?;
    listener::serve(listener, tls, api::routes(client, store), context.health, limits, context.shutdown).await;
    following.abort();
    Ok(())
}
