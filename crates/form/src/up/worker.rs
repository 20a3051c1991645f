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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_where_it_is_configured_to_be_or_where_it_joined_from() {
        let of = |address: &str| {
            let joined = Joined {
                node: "two".into(),
                state: "192.0.2.1:3004".to_owned().try_into().unwrap(),
                address: "192.0.2.2".parse().unwrap(),
                zone: "test.internal".into(),
                token: "two-1".into(),
            };
            let config = Config { address: address.parse().unwrap(), zone: "other".into(), ..Config::default() };
            let node = node(joined, Arc::new(config), CancellationToken::new());
            (node.address.to_string(), node.zone, node.pack_url)
        };
        assert_eq!(of("127.0.0.1"), ("192.0.2.2".into(), "test.internal".into(), String::new()));
        assert_eq!(of("198.51.100.2").0, "198.51.100.2");
    }
}
