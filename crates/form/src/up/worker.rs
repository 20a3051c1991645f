//! A node that joined a cluster: it has what every node has, and knows where form-state is.

use std::sync::Arc;

use form_service::identity::IdentityError;
use form_service::{CancellationToken, Config as _, Identity};

use super::Config;
use super::services::{Identities, Node};
use crate::joined::{self, Joined};

/// This machine, as the node that it joined as.
pub(super) fn node(joined: Joined, config: Arc<Config>, shutdown: CancellationToken) -> Node {
    Node {
        // What is configured is for reaching this machine from others, or it is the default, which is for none.
        address: if config.address.is_loopback() { joined.address } else { config.address },
        name: joined.node,
        state: joined.state,
        zone: joined.zone,
        pack_url: String::new(),
        identities: Identities::Joined(joined::identities(&config.data_dir)),
        shutdown,
        config,
    }
}

/// One of the identities that came with the join; `None`: this machine did not join.
pub(super) fn identity(config: &Config) -> Result<Option<Identity>, IdentityError> {
    if !joined::is_there(&config.data_dir)? {
        return Ok(None);
    }
    Identity::load(&joined::identities(&config.data_dir).join(vmm_service::Config::SERVICE)).map(Some)
}
