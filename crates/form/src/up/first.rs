//! What the first node of a cluster has beside what every node has: the CA, form-state, the package store.

use std::path::Path;

use form_client::Endpoint;
use form_service::{Authority, CancellationToken};

use super::services::{Identities, Node, Services};
use super::{Config, UpError};
use crate::context::{Context, path_in};

/// This machine, as the node that the cluster was made on.
pub(super) fn node(config: std::sync::Arc<Config>, shutdown: CancellationToken) -> Result<Node, UpError> {
    let authority = Authority::open_or_create(&pki(&config))?;
    Ok(Node {
        name: config.node(),
        address: config.address,
        state: Endpoint::from(config.at(config.state_port)),
        zone: config.zone.clone(),
        pack_url: config.url(config.pack_port),
        identities: Identities::Issued(Box::new(authority)),
        shutdown,
        config,
    })
}

/// Starts what no other node has.
pub(super) fn start(node: &Node, services: &mut Services) -> Result<(), UpError> {
    let config = &node.config;
    let state = node.context(form_state::Config {
        listen: config.at(config.state_port),
        data_dir: config.dir("state"),
        authority_dir: pki(config),
        ..Default::default()
    })?;
    let pack = node.context(form_pack_manager::Config {
        listen: config.at(config.pack_port),
        public_url: node.pack_url.clone(),
        state: node.state.clone(),
        data_dir: config.dir("packages"),
        debian_mirror: config.debian_mirror.clone(),
        registries: config.registries.clone(),
        insecure_registries: config.insecure_registries.clone(),
        ..Default::default()
    })?;
    services.add(state, form_state::run);
    services.add(pack, form_pack_manager::run);
    Ok(())
}

/// Writes down where the cloud is, and the first admin's token, for the commands that are typed on this machine.
pub(super) fn write_context(config: &Config, ca: &str) -> Result<(), UpError> {
    let fail = |error: &(dyn std::error::Error + 'static)| UpError::Context(form_service::run::chain(error));
    let token = form_service::secret::read(&config.dir("state").join("admin.token")).map_err(|error| fail(&error))?;
    let (state, token, zone) = (config.at(config.state_port), token.reveal().to_owned(), config.zone.clone());
    let context = Context { state, token, ca: ca.to_owned(), zone };
    context.save(&path_in(&config.data_dir)).map_err(|error| fail(&error))
}

pub(super) fn pki(config: &Config) -> std::path::PathBuf {
    pki_in(&config.data_dir)
}

/// Where the CA of a cluster is that was made in `data_dir`.
pub(crate) fn pki_in(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("pki")
}
