//! Nodes: each other one is a peer of the mesh, with its prefixes behind it.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use form_client::{Action, Controller, Name};
use form_service::Health;
use form_types::{Kind as _, Object, kinds};
use ipnet::IpNet;

use super::ControlError;
use super::endpoints::Endpoints;
use crate::address::Addresses;
use crate::known::Known;
use crate::plane::{Owner, Plane, Share};
use crate::rules::Element;
use crate::tunnel::TunnelPeer;

type Node = Object<kinds::Node>;

/// Often enough for every NAT on the way to remember us.
pub(super) const KEEPALIVE: u16 = 25;

pub(super) struct Nodes {
    pub(super) plane: Plane,
    pub(super) known: Known,
    pub(super) health: Health,
    pub(super) node: Arc<str>,
    pub(super) endpoints: Arc<Endpoints>,
}

impl Controller for Nodes {
    type Kind = kinds::Node;
    type Error = ControlError;

    async fn reconcile(&self, name: &Name, wanted: Option<Node>) -> Result<Action, ControlError> {
        let owner = owner(&name.name);
        let Some(node) = wanted else {
            // Cut first: nothing else counts now.
            self.plane.set(owner, None).await?;
            self.endpoints.forget(&name.name);
            self.known.gone::<kinds::Node>("", &name.name).await;
            return Ok(Action::Wait);
        };
        self.known.put(node.clone()).await;
        let share = share(&node, &self.node, |key, candidates| self.endpoints.first(&name.name, key, candidates));
        self.plane.set(owner, share).await?;
        if name.name != *self.node {
            self.endpoints.follow(&node);
        }
        Ok(Action::Wait)
    }

    async fn listed(&self, all: &[Node]) {
        self.known.only(all).await;
        let owners: HashSet<Owner> = all.iter().map(|it| owner(&it.meta.name)).collect();
        super::sweep(&self.plane, kinds::Node::INFO.name, owners).await;
        self.health.done("nodes");
    }
}

pub(super) fn owner(name: &str) -> Owner {
    Owner { kind: kinds::Node::INFO.name, project: String::new(), name: name.to_owned() }
}

/// Of our own node the addresses alone; of one that has no mesh yet, too. `None`: it has no prefixes.
pub(super) fn share(
    node: &Node,
    own: &str,
    endpoint: impl FnOnce(&str, &[SocketAddr]) -> Option<SocketAddr>,
) -> Option<Share> {
    let addresses = Addresses::of(&node.spec)?;
    let gateways = addresses.gateways();
    let elements = gateways.iter().map(|net| Element::Node { address: net.addr() }).collect();
    let mesh = node.status.mesh.as_ref().filter(|_| node.meta.name != own);
    let peer = mesh.map(|mesh| TunnelPeer {
        public_key: mesh.public_key.clone(),
        endpoint: endpoint(&mesh.public_key, &candidates(node)),
        allowed: addresses.prefixes().to_vec(),
        keepalive: Some(KEEPALIVE),
    });
    let routes = if peer.is_some() { addresses.prefixes().to_vec() } else { Vec::new() };
    Some(Share { elements, routes, peer, ..Share::default() })
}

/// Where the node's WireGuard may be, the likeliest first.
pub(super) fn candidates(node: &Node) -> Vec<SocketAddr> {
    let mesh = node.status.mesh.as_ref();
    mesh.iter().flat_map(|mesh| &mesh.endpoints).filter_map(|endpoint| endpoint.parse().ok()).collect()
}

/// A node's own address that its probes answer at: the IPv4 one.
pub(super) fn address(node: &Node) -> Option<IpAddr> {
    Addresses::of(&node.spec)?.gateways().first().map(IpNet::addr)
}

#[cfg(test)]
mod tests {
    use form_types::v1::{Mesh, NodeSpec};

    use super::*;

    #[test]
    fn another_node_is_a_peer_with_its_prefixes_and_we_are_not() {
        let spec = NodeSpec {
            ipv4_prefix: "100.64.3.0/24".into(),
            ipv6_prefix: "fd00:1:2:3::/64".into(),
            ..Default::default()
        };
        let mut node = Node::new("", "two", spec);
        let first = |_: &str, candidates: &[SocketAddr]| candidates.first().copied();
        assert_eq!(share(&node, "one", first).unwrap().peer, None, "it has no key yet");
        let endpoints = vec!["192.0.2.2:51820".to_owned(), "nonsense".to_owned()];
        node.status.mesh = Some(Mesh { public_key: "k".into(), endpoints, ..Default::default() });
        let shared = share(&node, "one", first).unwrap();
        let peer = shared.peer.unwrap();
        assert_eq!(peer.endpoint, "192.0.2.2:51820".parse().ok());
        assert_eq!(peer.allowed, shared.routes);
        assert_eq!(share(&node, "two", first).unwrap().peer, None, "ourselves");
        assert_eq!(address(&node).unwrap().to_string(), "100.64.3.1");
    }
}
